"""Shared sessions: what each role may do, and what becomes at once of those who may no more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from aerodrome.errors import Forbidden, Invalid, NotFound, SessionBusy, StoreUnavailable
from aerodrome.model import OnBusy, Principal, Role, SessionKind, TurnStatus
from aerodrome.sessions.api import OpenSession, SendMessage
from aerodrome.sessions.hub import Channel
from aerodrome.sessions.members import MAX_MEMBERS
from aerodrome.sessions.service import SessionService
from support.scripted_node import ALICE, BOB, ScriptedNode, scripted_node, settle

CAROL = Principal("acme", "carol")
BOB_ELSEWHERE = Principal("bank", "bob")

Call = Callable[[SessionService, Principal], Awaitable[Any]]

READS: dict[str, Call] = {
    "get": lambda service, who: service.get(who, "s1"),
    "history": lambda service, who: service.history(who, "s1"),
    "events": lambda service, who: _events(service, who),
    "open": lambda service, who: service.open_session(who, OpenSession(id="s1")),
    "members": lambda service, who: service.members(who, "s1"),
    "live_session": lambda service, who: service.native.session(who, "s1"),
    "fork": lambda service, who: service.fork(who, "s1"),
}
WRITES: dict[str, Call] = {
    "send": lambda service, who: service.send(who, "s1", SendMessage("hello")),
    "send_native": lambda service, who: service.native.send(who, "s1", {"prompt": "hello"}),
    "abort": lambda service, who: service.abort(who, "s1"),
    "answer": lambda service, who: _answer(service, who),
    "retitle": lambda service, who: service.retitle(who, "s1", "a title"),
    "live_session to write": lambda service, who: service.native.session(who, "s1", Role.WRITER),
}
OWNS: dict[str, Call] = {
    "set_member": lambda service, who: service.set_member(who, "s1", "dave", Role.READER),
    "remove_member": lambda service, who: service.remove_member(who, "s1", "carol"),
    "delete": lambda service, who: service.delete(who, "s1"),
}


async def _events(service: SessionService, who: Principal) -> None:
    (await service.events(who, "s1")).close()


async def _answer(service: SessionService, who: Principal) -> None:
    try:
        await service.answer(who, "s1", "r1", {"decision": "approve"})
    except NotFound as error:
        if "no such request" not in error.detail:
            raise


async def shared(node: ScriptedNode, **roles: Role) -> None:
    """A session of Alice's with a turn in it, and these members."""
    await node.open("s1")
    for user, role in roles.items():
        await node.service.set_member(ALICE, "s1", user, role)
    await node.say("s1", "from alice")


async def send_as(node: ScriptedNode, who: Principal, prompt: str, **message: Any) -> Any:
    return await node.service.send(who, "s1", SendMessage(prompt, **message))


async def next_of(stream: Channel) -> str:
    async with asyncio.timeout(20):
        return (await anext(stream)).type


# --- who may do what ---


@pytest.mark.parametrize("name", [*READS, *WRITES, *OWNS])
async def test_each_role_may_do_what_it_is_for_and_others_learn_nothing(name: str) -> None:
    call = {**READS, **WRITES, **OWNS}[name]
    async with scripted_node() as node:
        await shared(node, bob=Role.READER, carol=Role.WRITER)
        for stranger in (Principal("acme", "dave"), BOB_ELSEWHERE, Principal("bank", "alice")):
            if name == "open":
                if stranger.tenant == "acme":
                    with pytest.raises(NotFound):
                        await call(node.service, stranger)
                continue
            with pytest.raises(NotFound, match="no such session"):
                await call(node.service, stranger)
        for who, allowed in ((BOB, name in READS), (CAROL, name not in OWNS or name == "remove_member")):
            if allowed:
                await call(node.service, who)
            else:
                with pytest.raises(Forbidden):
                    await call(node.service, who)
            await settle()
        if name == "remove_member":
            await node.service.set_member(ALICE, "s1", "carol", Role.READER)
        await call(node.service, ALICE)


async def test_the_list_has_what_is_shared_and_nothing_of_another_tenant() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.READER)
        await node.open("s2")
        assert [row.key.id for row in (await node.service.list(BOB)).rows] == ["s1"]
        assert (await node.service.list(BOB_ELSEWHERE)).rows == []
        assert await node.service.members(BOB, "s1") == [("alice", Role.OWNER), ("bob", Role.READER)]
        await node.service.remove_member(ALICE, "s1", "bob")
        assert (await node.service.list(BOB)).rows == []


@pytest.mark.parametrize("user", ["", "a/b", "-x", "x" * 101, "zoë", "a b", "*"])
async def test_what_is_no_name_is_no_member(user: str) -> None:
    async with scripted_node() as node:
        await node.open("s1")
        with pytest.raises(Invalid):
            await node.service.set_member(ALICE, "s1", user, Role.READER)
        with pytest.raises(NotFound):
            await node.service.remove_member(ALICE, "s1", user)


async def test_the_owner_stays_the_owner() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.WRITER)
        for call in (
            node.service.set_member(ALICE, "s1", "alice", Role.READER),
            node.service.set_member(ALICE, "s1", "bob", Role.OWNER),
            node.service.remove_member(ALICE, "s1", "alice"),
        ):
            with pytest.raises(Invalid):
                await call
        assert (await node.service.get(ALICE, "s1")).members == {"bob": Role.WRITER}


async def test_ephemeral_sessions_and_crowds_are_not_shared() -> None:
    async with scripted_node() as node:
        await node.open("once", SessionKind.EPHEMERAL)
        with pytest.raises(Invalid, match="ephemeral"):
            await node.service.set_member(ALICE, "once", "bob", Role.READER)
        await node.open("s1")
        for number in range(MAX_MEMBERS):
            await node.service.set_member(ALICE, "s1", f"user{number}", Role.READER)
        with pytest.raises(Invalid, match=str(MAX_MEMBERS)):
            await node.service.set_member(ALICE, "s1", "one-more", Role.READER)
        await node.service.set_member(ALICE, "s1", "user0", Role.WRITER)


async def test_a_member_may_leave_and_take_nobody_along() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.READER, carol=Role.READER)
        with pytest.raises(Forbidden):
            await node.service.remove_member(BOB, "s1", "carol")
        await node.service.remove_member(BOB, "s1", "bob")
        with pytest.raises(NotFound):
            await node.service.get(BOB, "s1")
        with pytest.raises(NotFound, match="no member"):
            await node.service.remove_member(ALICE, "s1", "bob")
        assert (await node.service.get(CAROL, "s1")).role_of(CAROL) is Role.READER


async def test_a_fork_of_a_reader_belongs_to_the_reader_alone() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.READER)
        copy = await node.service.fork(BOB, "s1")
        assert (copy.owner, copy.members) == ("bob", {})
        with pytest.raises(NotFound):
            await node.service.get(ALICE, copy.key.id)
        assert next(m.content for m in (await node.service.history(BOB, copy.key.id)).messages) == "from alice"


# --- one queue, and who wrote what ---


async def test_all_writers_share_one_queue_and_it_is_kept_who_wrote_what() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.WRITER, carol=Role.WRITER)
        first = await send_as(node, BOB, "from bob")
        await settle()
        with pytest.raises(SessionBusy) as busy:
            await send_as(node, CAROL, "not now", on_busy=OnBusy.REJECT)
        assert busy.value.extra == {"turn": first.id, "author": "bob"}
        second = await send_as(node, CAROL, "from carol")
        native = await node.service.native.send(ALICE, "s1", {"prompt": "from alice again"})
        for _run in (first, second, native):
            await node.loaded("s1").answer()
            await settle()
        assert {(await run.wait()).status for run in (first, second, native)} == {TurnStatus.COMPLETED}
        said = [(m.author, m.content) for m in (await node.service.history(BOB, "s1")).messages if m.role == "user"]
        assert sorted(said) == sorted(
            [("alice", "from alice"), ("bob", "from bob"), ("carol", "from carol"), ("alice", "from alice again")]
        )


@pytest.mark.parametrize("native", [False, True])
async def test_the_author_of_a_turn_that_was_retried_is_kept(native: bool) -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.WRITER)
        if native:
            run = await node.service.native.send(BOB, "s1", {"prompt": "from bob"})
        else:
            run = await send_as(node, BOB, "from bob")
        await settle()
        node.runtime.kill("gone")
        await settle()
        await node.loaded("s1").answer()
        assert (await run.wait()).retried
        await settle()
        said = [(m.author, m.content) for m in (await node.service.history(ALICE, "s1")).messages if m.role == "user"]
        assert said == [("alice", "from alice"), ("bob", "from bob")]


# --- changes take effect at once ---


async def test_a_removed_member_s_streams_end_at_once_and_others_go_on() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.WRITER, carol=Role.READER)
        theirs, others = await node.service.events(BOB, "s1"), await node.service.events(CAROL, "s1")
        run = await send_as(node, BOB, "from bob")
        turn = run.events("bob")
        waiting = asyncio.create_task(run.wait("bob"))
        await settle()
        assert theirs.backlog
        await node.service.remove_member(ALICE, "s1", "bob")
        # Nor what it has not read yet.
        for stream in (theirs, turn):
            with pytest.raises(NotFound):
                await next_of(stream)
        with pytest.raises(NotFound):
            await waiting
        with pytest.raises(NotFound):
            await node.service.events(BOB, "s1")
        assert await next_of(others) == "user.message"
        # What was accepted is answered, and the others see it.
        await node.loaded("s1").answer()
        assert (await run.wait()).status is TurnStatus.COMPLETED
        assert not theirs.backlog
        for stream in (theirs, turn, others):
            stream.close()


async def test_a_member_that_comes_back_reads_again() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.WRITER)
        run = await send_as(node, BOB, "from bob")
        waiting = asyncio.create_task(run.wait("bob"))
        await settle()
        await node.service.remove_member(ALICE, "s1", "bob")
        await node.service.set_member(ALICE, "s1", "bob", Role.READER)
        again = asyncio.create_task(run.wait("bob"))
        await node.loaded("s1").answer()
        assert (await again).status is TurnStatus.COMPLETED
        with pytest.raises(NotFound):
            await waiting


async def test_a_reader_that_subscribes_while_it_is_removed_gets_nothing() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.READER)
        await node.service.hibernate(node.service.live[0])  # else its row is not read
        node.stores.slow_directory.held_after.add("get")
        subscribing = asyncio.create_task(node.service.events(BOB, "s1"))
        await settle()
        await node.stores.directory.set_member((await node.stores.directory.list("acme")).rows[0].key, "bob", None)
        node.stores.slow_directory.let_go("get")
        with pytest.raises(NotFound):
            await subscribing


async def test_prompts_of_a_demoted_writer_stay_and_new_ones_are_refused() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.WRITER)
        runs = [await send_as(node, BOB, "one"), await send_as(node, BOB, "two")]
        await settle()
        reading = await node.service.events(BOB, "s1")
        await node.service.set_member(ALICE, "s1", "bob", Role.READER)
        with pytest.raises(Forbidden):
            await send_as(node, BOB, "three")
        for run in runs:
            await node.loaded("s1").answer()
            assert (await run.wait("bob")).status is TurnStatus.COMPLETED
            await settle()
        assert "user.message" in [event.type for event in reading.backlog]
        reading.close()
        assert node.prompts("s1") == ["from alice", "one", "two"]


async def test_what_another_node_has_changed_is_noticed() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await shared(a, bob=Role.READER, carol=Role.READER)
        heard: list[tuple[str, Role | None, Role | None]] = []
        a.service.members_here.listen(lambda row, user, before, now: heard.append((user, before, now)))
        theirs, others = await a.service.events(BOB, "s1"), await a.service.events(CAROL, "s1")
        await b.service.remove_member(ALICE, "s1", "bob")
        await b.service.set_member(ALICE, "s1", "carol", Role.WRITER)
        await b.service.set_member(ALICE, "s1", "dave", Role.READER)
        await a.janitor.sweep()
        with pytest.raises(NotFound):
            await next_of(theirs)
        assert heard == [
            ("bob", Role.READER, None),
            ("carol", Role.READER, Role.WRITER),
            ("dave", None, Role.READER),
        ]
        assert a.service.native.is_own(Principal("acme", "dave"), "s1")
        assert not a.service.native.is_own(BOB, "s1")
        await a.janitor.sweep()
        assert len(heard) == 3
        for stream in (theirs, others):
            stream.close()


async def test_a_change_takes_effect_when_its_caller_has_gone() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.READER)
        reading = await node.service.events(BOB, "s1")
        node.stores.slow_directory.held_after.add("set_member")
        removing = asyncio.create_task(node.service.remove_member(ALICE, "s1", "bob"))
        await settle()
        removing.cancel()
        await asyncio.wait({removing})
        node.stores.slow_directory.let_go("set_member")
        with pytest.raises(NotFound):
            await next_of(reading)
        reading.close()


async def test_deletion_leaves_no_member() -> None:
    async with scripted_node() as node:
        await shared(node, bob=Role.WRITER)
        await node.service.delete(ALICE, "s1")
        await settle()
        await node.open("s1")
        with pytest.raises(NotFound):
            await node.service.get(BOB, "s1")


async def test_a_store_that_is_away_when_somebody_shares_is_no_fault_of_ours() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_directory.fails.add("set_member")
        with capture_logs() as logged, pytest.raises(StoreUnavailable):
            await node.service.set_member(ALICE, "s1", "bob", Role.READER)
        assert "task.failed" not in {line["event"] for line in logged}
        node.stores.slow_directory.fails.clear()
