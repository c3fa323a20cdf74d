"""What a turn of a loaded session asks of the stores that all nodes share."""

from __future__ import annotations

from collections import Counter

import pytest

from aerodrome.errors import NotFound
from aerodrome.model import Principal, SessionState, TurnStatus
from aerodrome.sessions.admission import TurnLimits
from support.scripted_node import ALICE, BOB, Counting, ScriptedNode, scripted_node, settle

pytestmark = pytest.mark.timeout(30)


def count(node: ScriptedNode) -> tuple[Counter[str], Counter[str]]:
    stores = node.stores
    coordination, directory = Counting(stores.coordination), Counting(stores.directory)
    stores.slow_coordination._store, stores.slow_directory._store = coordination, directory
    return coordination.calls, directory.calls


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        (TurnLimits(), {}),
        (
            TurnLimits(per_minute=100, per_minute_of_tenant=100, at_once=10, at_once_of_tenant=10),
            {"admit": 5, "vacate": 5},
        ),
    ],
    ids=["no limits", "all limits"],
)
async def test_a_turn_costs_at_most_two_of_coordination_and_two_of_the_directory(
    limits: TurnLimits, asked: dict[str, int]
) -> None:
    async with scripted_node(limits=limits) as node:
        await node.open("s1")
        await node.say("s1", "first")
        await settle()
        coordination, directory = count(node)
        for number in range(5):
            assert (await node.say("s1", f"prompt {number}")).status is TurnStatus.COMPLETED
        (live,) = node.service.live
        await live.updates.flush()
        await settle()
        assert coordination == asked
        assert coordination.total() <= 2 * 5
        # Its state and last use behind what happens, and nothing is read.
        assert set(directory) == {"update"}
        assert directory.total() <= 2 * 5


async def test_whoever_may_not_read_a_loaded_session_learns_nothing_of_it() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        for who in (BOB, Principal("other", "alice")):
            with pytest.raises(NotFound):
                await node.service.get(who, "s1")


async def test_a_change_through_this_node_is_seen_at_once() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        assert (await node.service.retitle(ALICE, "s1", "new")).title == "new"
        assert (await node.service.get(ALICE, "s1")).title == "new"
        deleting = node.tasks.start(node.service.delete(ALICE, "s1"), "delete")
        await deleting
        with pytest.raises(NotFound):
            await node.service.get(ALICE, "s1")


@pytest.mark.parametrize("doubt", ["may not serve", "fenced"])
async def test_in_doubt_the_directory_is_asked(doubt: str) -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        (live,) = node.service.live
        if doubt == "may not serve":
            node.may_serve = False
        else:
            assert live.activation is not None
            live.activation.discard("fenced")
        await node.stores.directory.remove(live.row.key, live.row.created_at)
        with pytest.raises(NotFound):
            await node.service.get(ALICE, "s1")
        node.may_serve = True
        await node.service.tidy()


async def test_a_list_asks_once_which_of_its_sessions_are_held() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        for name in ("s1", "s2", "s3"):
            await a.open(name)
            await a.say(name, "one")
        await b.open("s4")
        for live in a.service.live:
            await live.updates.flush()
        coordination, _ = count(b)
        rows = (await b.service.list(ALICE)).rows
        assert {row.key.id: row.state for row in rows} == {
            **dict.fromkeys(("s1", "s2", "s3"), SessionState.RESIDENT),
            "s4": SessionState.HIBERNATED,
        }
        assert coordination == {"holders": 1}
