"""What `aerodrome doctor --cluster` makes of what it has seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aerodrome.app.cluster_report import Finding, NodeReport, SessionsReport, StoreReport, judge

NODE = NodeReport(
    name="a",
    incarnation="a-1",
    address="10.0.0.1:4321",
    version="0.2.0",
    draining=False,
    sessions=3,
    runtimes=1,
    beat_age=0.5,
    round_trip=0.002,
    ahead=0.0,
)
REDIS = StoreReport("coordination", "redis://h", 0.001, ahead=0.0, facts={"maxmemory_policy": "noeviction"})
POSTGRESQL = StoreReport("state", "postgresql://h", 0.001, ahead=0.0, facts={"fsync": "on"})
SESSIONS = SessionsReport(10, 10)


def found(
    *nodes: NodeReport, stores: tuple[StoreReport, ...] = (REDIS, POSTGRESQL), sessions: SessionsReport = SESSIONS
) -> list[Finding]:
    """What is not well."""
    findings = judge("0.2.0", 5.0, nodes, stores, sessions, max_runtimes=4)
    assert all((finding.mend is None) is (finding.result == "ok") for finding in findings)
    return [finding for finding in findings if finding.result != "ok"]


def test_a_fleet_that_is_well() -> None:
    assert found(NODE, replace(NODE, name="b", incarnation="b-1")) == []


@pytest.mark.parametrize(
    ("change", "check", "result", "words"),
    [
        ({"round_trip": None, "reason": "refused"}, "address", "failed", "10.0.0.1:4321: refused"),
        ({"version": "0.4.1"}, "release", "failed", "it runs 0.4.1, this is 0.2.0"),
        ({"version": "0.3.0"}, "releases", "warning", "the nodes run 0.3.0, this command is 0.2.0"),
        ({"beat_age": 4.0}, "heartbeat", "warning", "the last was 4.0 s ago, of 5 s"),
        ({"ahead": 3.0}, "clock", "warning", "3.0 s ahead of the coordination store's"),
        ({"ahead": -3.0}, "clock", "warning", "3.0 s behind the coordination store's"),
        ({"secrets": {"provider.api_key": "gone"}}, "secrets", "warning", "provider.api_key is an old value: gone"),
        ({"draining": True}, "load", "warning", "it drains"),
        ({"runtimes": 4}, "load", "warning", "of at most 4"),
    ],
)
def test_a_node_that_is_not_well(change: dict[str, Any], check: str, result: str, words: str) -> None:
    findings = found(replace(NODE, **change))
    (one,) = [finding for finding in findings if finding.check == check]
    assert (one.result, words in one.detail) == (result, True)
    assert one.mend


def test_clocks_are_compared_with_that_of_the_store() -> None:
    ahead = replace(REDIS, ahead=10.0)
    assert found(replace(NODE, ahead=10.0), stores=(ahead, POSTGRESQL)) == []
    (one,) = found(replace(NODE, ahead=0.0), stores=(ahead, POSTGRESQL))
    assert one.detail == "its clock is 10.0 s behind the coordination store's"


def test_nodes_of_two_releases_and_of_one_name() -> None:
    findings = found(NODE, replace(NODE, version="0.3.0", incarnation="a-2"))
    assert [(finding.subject, finding.check) for finding in findings] == [("fleet", "names"), ("fleet", "releases")]


def test_nobody_there() -> None:
    (one,) = found()
    assert (one.result, one.detail) == ("failed", "no node lives")


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (replace(REDIS, latency=None, reason="away"), "redis://h: away"),
        (replace(REDIS, latency=0.5), "answers in 500 ms"),
        (replace(REDIS, facts={"maxmemory_policy": "allkeys-lru"}), "maxmemory-policy is allkeys-lru"),
        (replace(REDIS, facts={"evicted_keys": "3"}), "it has thrown away 3 keys"),
        (replace(REDIS, facts={"maxmemory": str(10 << 20), "used_memory": str(95 << 17)}), "11 of 10 MiB are used"),
        (replace(REDIS, facts={"rdb_last_bgsave_status": "err"}), "its last snapshot could not be written"),
        (replace(REDIS, facts={"role": "slave"}), "it is a replica"),
        (replace(REDIS, facts={"redis_version": "6.2.1"}), "it is version 6.2.1"),
        (replace(REDIS, facts={"refused": "INFO"}), "could not be looked at"),
        (replace(POSTGRESQL, facts={"fsync": "off"}), "fsync = off: a crash"),
        (replace(POSTGRESQL, facts={"server_version_num": "130004"}), "it is version 13"),
        (replace(POSTGRESQL, facts={"in_recovery": "true"}), "it is a standby"),
        (replace(POSTGRESQL, facts={"asynchronous_standbys": "2"}), "its commits wait for no standby server (2)"),
        (replace(POSTGRESQL, facts={"max_connections": "100", "connections": "95"}), "95 of 100 connections"),
        (replace(POSTGRESQL, facts={"tables": "they are behind"}), "they are behind"),
        (replace(POSTGRESQL, free=5 << 20), "5 MiB free"),
        (replace(POSTGRESQL, damage="state.sqlite3: page 7"), "damaged: state.sqlite3: page 7"),
    ],
)
def test_a_store_that_is_not_well(store: StoreReport, words: str) -> None:
    (one,) = found(NODE, stores=(store,))
    assert words in one.detail
    assert one.result == ("failed" if store.latency is None or store.damage else "warning")


def test_what_the_dead_have_left() -> None:
    left = replace(
        SESSIONS,
        looked_at=5,
        orphaned=[f"acme/s{n}" for n in range(6)],
        unfinished_of_dead=2,
        quarantined=["acme/huge"],
    )
    leases, quarantine, turns = found(NODE, sessions=left)
    assert "1 sessions make runtimes end and are not loaded: acme/huge" in quarantine.detail
    assert "6 sessions are listed as loaded and no living node has them: acme/s0, " in leases.detail
    assert leases.detail.endswith("acme/s4, ... (the 5 used last were looked at)")
    assert "2 turns of nodes that have gone" in turns.detail
