"""What `aerodrome doctor --cluster` makes of what it has seen. Pure: reports in, findings out.

Each finding that is not well says how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from aerodrome.peers.versions import side_by_side

OK, WARNING, FAILED = "ok", "warning", "failed"
#: Seconds by which clocks may differ before times in listings, and the order of sessions, are misleading.
_SKEW = 2.0
#: Seconds for one answer of a store, from which on users feel it in each turn.
_SLOW = 0.1
#: Bytes below which a disk will soon be full.
_LITTLE_DISK = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    #: `node NAME`, `coordination`, `state`, `sessions` or `fleet`.
    subject: str
    check: str
    #: `ok`, `warning` or `failed`.
    result: str
    detail: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class NodeReport:
    name: str
    incarnation: str
    address: str
    version: str | None
    draining: bool
    sessions: int
    runtimes: int
    #: Seconds since its last heartbeat, as far as the clocks say; ``None``: it does not tell.
    beat_age: float | None
    #: Seconds for a question and its answer over the peer protocol; ``None``: it was not reached.
    round_trip: float | None
    #: Why it was not reached.
    reason: str = ""
    #: Seconds by which its clock is ahead of the machine that asks.
    ahead: float | None = None
    #: Setting -> why its secret may be an old one.
    secrets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreReport:
    #: `coordination` or `state`.
    name: str
    #: What it is, for people.
    where: str
    #: Seconds for an answer; ``None``: there was none.
    latency: float | None
    #: Why there was none.
    reason: str = ""
    #: Seconds by which its clock is ahead of the machine that asks; ``None``: it has none of its own.
    ahead: float | None = None
    #: What its server says of itself; see `redis_facts` and `postgresql_facts`.
    facts: dict[str, str] = field(default_factory=dict)
    #: Bytes that are free for it, where that can be known.
    free: int | None = None
    #: What is wrong with the structure of its files, where that can be looked at.
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class SessionsReport:
    sessions: int
    #: How many of them were looked at: the latest used.
    looked_at: int
    #: Listed as loaded, and no living node has their lease.
    orphaned: Sequence[str] = ()
    #: Turns without an end whose node is not among the living.
    unfinished_of_dead: int = 0
    #: Sessions that have made runtimes end, and are not loaded any more.
    quarantined: Sequence[str] = ()


def judge(
    own_version: str,
    ttl: float,
    nodes: Sequence[NodeReport],
    stores: Sequence[StoreReport],
    sessions: SessionsReport | None,
    *,
    max_runtimes: int,
) -> list[Finding]:
    """Everything there is to say, in the order of the reports.

    Args:
        own_version: Of the command, and so of the node that would be started next.
        ttl: `coordination.ttl`, in seconds.
    """
    findings = [finding for store in stores for finding in _store(store)]
    store_ahead = next((store.ahead for store in stores if store.name == "coordination" and store.ahead), 0.0)
    findings += _fleet(own_version, nodes)
    for node in nodes:
        findings += _node(node, own_version, ttl, store_ahead, max_runtimes)
    if sessions is not None:
        findings += _sessions(sessions)
    return findings


def _fleet(own_version: str, nodes: Sequence[NodeReport]) -> Iterator[Finding]:
    if not nodes:
        yield Finding("fleet", "nodes", FAILED, "no node lives", "start one: aerodrome serve")
        return
    yield Finding("fleet", "nodes", OK, f"{len(nodes)} live: {', '.join(node.name for node in nodes)}")
    names = [node.name for node in nodes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Finding(
            "fleet",
            "names",
            WARNING,
            f"{names.count(name)} nodes are named {name}",
            "give each its own server.node_name: commands and logs tell them apart by it",
        )
    if len({node.version for node in nodes}) > 1:
        listed = ", ".join(f"{node.name} {node.version or 'unknown'}" for node in nodes)
        yield Finding(
            "fleet",
            "releases",
            WARNING,
            f"nodes of several releases: {listed}",
            "bring the upgrade to its end (docs/upgrades.md)",
        )
    elif nodes[0].version not in (None, own_version):
        yield Finding(
            "fleet",
            "releases",
            WARNING,
            f"the nodes run {nodes[0].version}, this command is {own_version}",
            "run commands of the nodes' release",
        )


def _node(node: NodeReport, own_version: str, ttl: float, store_ahead: float, max_runtimes: int) -> Iterator[Finding]:
    subject = f"node {node.name}"
    if node.round_trip is None:
        yield Finding(
            subject,
            "address",
            FAILED,
            f"{node.address or 'no address'}: {node.reason}",
            "other nodes must reach it there: set server.advertise and server.gateway of that node, or open the port",
        )
    else:
        yield Finding(subject, "address", OK, f"{node.address} answers in {node.round_trip * 1000:.0f} ms")
    if node.version is not None and not side_by_side(own_version, node.version):
        yield Finding(
            subject,
            "release",
            FAILED,
            f"it runs {node.version}, this is {own_version}: they do not understand each other",
            "go through the releases in between (docs/upgrades.md)",
        )
    if node.beat_age is not None and node.beat_age > ttl * 2 / 3:
        yield Finding(
            subject,
            "heartbeat",
            WARNING,
            f"the last was {node.beat_age:.1f} s ago, of {ttl:g} s that it may be silent",
            "is the machine overloaded, or the coordination store slow? A longer coordination.ttl bears more",
        )
    if node.ahead is not None and abs(skew := node.ahead - store_ahead) > _SKEW:
        yield Finding(
            subject,
            "clock",
            WARNING,
            f"its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the coordination store's",
            "synchronise it (NTP): leases do not depend on it, but times of sessions and their expiry do",
        )
    for setting, reason in sorted(node.secrets.items()):
        yield Finding(
            subject,
            "secrets",
            WARNING,
            f"{setting} is an old value: {reason}",
            "mend what the reference leads to (docs/secrets.md)",
        )
    yield _load(subject, node, max_runtimes)


def _load(subject: str, node: NodeReport, max_runtimes: int) -> Finding:
    load = f"{node.sessions} sessions loaded, {node.runtimes} runtimes"
    if node.draining:
        return Finding(subject, "load", WARNING, f"it drains; {load}", "it takes no new work: is that meant to be?")
    if node.runtimes >= max_runtimes:
        return Finding(
            subject,
            "load",
            WARNING,
            f"{load}, of at most {max_runtimes}",
            "it is full: another node, or a higher runtime.max_runtimes (docs/capacity.md)",
        )
    return Finding(subject, "load", OK, load)


def _store(store: StoreReport) -> Iterator[Finding]:
    if store.latency is None:
        yield Finding(store.name, "reachable", FAILED, f"{store.where}: {store.reason}", "see docs/fleet-stores.md")
        return
    slow = store.latency > _SLOW
    yield Finding(
        store.name,
        "reachable",
        WARNING if slow else OK,
        f"{store.where} answers in {store.latency * 1000:.0f} ms",
        "each turn asks it several times: bring it nearer, or make it faster" if slow else None,
    )
    if store.free is not None:
        little = store.free < _LITTLE_DISK
        yield Finding(
            store.name,
            "space",
            WARNING if little else OK,
            f"{store.free >> 20} MiB free",
            "make room: writes fail when the disk is full" if little else None,
        )
    if store.damage is not None:
        yield Finding(
            store.name,
            "structure",
            FAILED,
            f"damaged: {store.damage}",
            "stop all nodes, and aerodrome restore --replace with the latest backup",
        )
    yield from _settings(store)


def _settings(store: StoreReport) -> Iterator[Finding]:
    """What a server is set to that endangers what is stored in it."""
    for problem, mend in [*redis_facts(store.facts), *postgresql_facts(store.facts)]:
        yield Finding(store.name, "server", WARNING, problem, mend)


def redis_facts(facts: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What its `INFO` says that should be otherwise."""
    if "refused" in facts:
        yield "its settings could not be looked at", "+info for the user of coordination.url (docs/fleet-stores.md)"
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield (
            f"maxmemory-policy is {policy}: it may throw away leases and nodes when its memory is full",
            "CONFIG SET maxmemory-policy noeviction, and in its configuration file",
        )
    if facts.get("evicted_keys", "0") != "0":
        yield f"it has thrown away {facts['evicted_keys']} keys", "give it more memory, and noeviction"
    limit, used = int(facts.get("maxmemory", 0)), int(facts.get("used_memory", 0))
    if limit and used > 0.9 * limit:
        yield f"{used >> 20} of {limit >> 20} MiB are used", "raise maxmemory: writes fail when it is full"
    if facts.get("rdb_last_bgsave_status", "ok") != "ok":
        yield (
            "its last snapshot could not be written, after which it may refuse writes",
            "free its disk; or, as nothing in it has to last, CONFIG SET save '' (docs/fleet-stores.md)",
        )
    if facts.get("role", "master") != "master":
        yield "it is a replica", "name the primary in coordination.url, or use redis+sentinel://"
    version = facts.get("redis_version", "7").partition(".")[0]
    if version.isdigit() and int(version) < 7:
        yield f"it is version {facts['redis_version']}", "Redis 7 or later, or Valkey"


def postgresql_facts(facts: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What `pg_settings` say that should be otherwise."""
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        if facts.get(name) == "off":
            yield (
                f"{name} = off: a crash of the server loses what was acknowledged",
                f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()",
            )
    if (version := int(facts.get("server_version_num", 140000))) < 140000:
        yield f"it is version {version // 10000}", "PostgreSQL 14 or later"
    if facts.get("in_recovery") == "true":
        yield "it is a standby", "add target_session_attrs=read-write to its address, with all hosts"
    if int(standbys := facts.get("asynchronous_standbys", "0")):
        yield (
            f"its commits wait for no standby server ({standbys}): a fail-over to one loses what was acknowledged last",
            "set synchronous_standby_names, or never make such a one the primary (docs/operations.md)",
        )
    most, used = int(facts.get("max_connections", 0)), int(facts.get("connections", 0))
    if most and used > 0.9 * most:
        yield f"{used} of {most} connections are used", "raise max_connections, or lower state.connections"
    for problem in facts.get("tables", "").splitlines():
        yield problem, "aerodrome migrate, with the release that is to be started"


def _sessions(report: SessionsReport) -> Iterator[Finding]:
    looked = "" if report.looked_at == report.sessions else f" (the {report.looked_at} used last were looked at)"
    if report.orphaned:
        yield Finding(
            "sessions",
            "leases",
            WARNING,
            f"{len(report.orphaned)} sessions are listed as loaded and no living node has them: "
            f"{_some(report.orphaned)}{looked}",
            "nothing, if a node died within the last minute; else any prompt to them loads them anew",
        )
    else:
        yield Finding("sessions", "leases", OK, f"{report.sessions} sessions, none of them with a dead node{looked}")
    if report.quarantined:
        yield Finding(
            "sessions",
            "quarantine",
            WARNING,
            f"{len(report.quarantined)} sessions make runtimes end and are not loaded: "
            f"{_some(report.quarantined)}{looked}",
            "see why (docs/operations.md, A session is quarantined), then aerodrome sessions release",
        )
    if report.unfinished_of_dead:
        yield Finding(
            "sessions",
            "turns",
            WARNING,
            f"{report.unfinished_of_dead} turns of nodes that have gone are not reported yet",
            "a living node does that within half a minute; if not, its log says why (janitor.failed)",
        )
    else:
        yield Finding("sessions", "turns", OK, "no turn of a node that has gone is unfinished")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
