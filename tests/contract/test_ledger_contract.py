"""What every message ledger does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aerodrome.errors import Conflict
from aerodrome.model import SessionKey, TurnRow, TurnStatus
from aerodrome.sessions.backends.memory import MemoryLedger
from aerodrome.sessions.backends.postgresql import PostgresLedger
from aerodrome.sessions.backends.sqlite import SqliteLedger
from aerodrome.sessions.ports import Ledger
from support.databases import database, query_plan
from support.postgres import fresh_schema, postgres
from support.postgres import query_plan as query_plan_of

KEY = SessionKey("acme", "chat")
OTHER = SessionKey("beta", "chat")


class Pair(NamedTuple):
    a: Ledger
    b: Ledger


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "memory":
        shared = MemoryLedger()
        await shared.open()
        yield Pair(shared, shared)
        await shared.aclose()
        return
    if request.param == "postgresql":
        schema = fresh_schema()
        async with postgres(schema) as one, postgres(schema) as two:
            both = Pair(PostgresLedger(one), PostgresLedger(two))
            await both.a.open()
            await both.b.open()
            yield both
        return
    async with database(tmp_path / "s.db") as first, database(tmp_path / "s.db") as second:
        a, b = SqliteLedger(first), SqliteLedger(second)
        await a.open()
        await b.open()
        yield Pair(a, b)
        await a.aclose()
        await b.aclose()


def turn(id_: str = "t-1", key: SessionKey = KEY, **columns: Any) -> TurnRow:
    return replace(TurnRow(key, id_, "alice", TurnStatus.QUEUED, "hello", created_at=1.0), **columns)


FULL = turn(
    prompt="5 MB of every kind: \ud800 \0 \U0001f600 ' ; --",
    attachments=[{"type": "file", "path": "/a\udfff"}],
    idempotency_key="key \xe9",
    digest="d1",
)


async def test_an_accepted_turn_is_read_again_as_it_was(pair: Pair) -> None:
    assert await pair.a.accept(FULL) is None
    assert await pair.b.get(KEY, "t-1") == FULL
    assert await pair.b.get(OTHER, "t-1") is None
    long = turn("t-2", prompt="\u65e5" * 2_000_000, status=TurnStatus.RUNNING, started_at=2.0)
    assert await pair.a.accept(long) is None
    assert await pair.b.turns(KEY) == [FULL, long]


async def test_rows_are_values(pair: Pair) -> None:
    attachments = [{"a": 1}]
    await pair.a.accept(turn(attachments=attachments))
    attachments[0]["a"] = 2
    found = await pair.a.get(KEY, "t-1")
    assert found is not None
    found.attachments[0]["a"] = 3
    assert await pair.b.get(KEY, "t-1") == turn(attachments=[{"a": 1}])


async def test_an_idempotency_key_is_accepted_once_a_session(pair: Pair) -> None:
    assert await pair.a.accept(FULL) is None
    again = turn("t-2", idempotency_key=FULL.idempotency_key, prompt="another", digest="d2")
    assert await pair.b.accept(again) == FULL
    assert await pair.b.get(KEY, "t-2") is None
    assert await pair.b.by_idempotency_key(KEY, "key \xe9") == FULL
    assert await pair.b.by_idempotency_key(KEY, "another") is None
    assert await pair.b.by_idempotency_key(OTHER, "key \xe9") is None
    assert await pair.b.accept(replace(again, key=OTHER)) is None
    assert await pair.b.accept(turn("t-3")) is None
    assert await pair.b.accept(turn("t-4")) is None  # no key at all is not a key


async def test_of_many_with_one_key_one_is_accepted(pair: Pair) -> None:
    rows = [turn(f"t-{number}", idempotency_key="k") for number in range(10)]
    results = await asyncio.gather(*(pair[number % 2].accept(row) for number, row in enumerate(rows)))
    (winner,) = await pair.a.turns(KEY)
    assert results.count(None) == 1
    assert [result for result in results if result is not None] == [winner] * 9


async def test_a_turn_id_is_used_once_a_session(pair: Pair) -> None:
    await pair.a.accept(turn())
    with pytest.raises(Conflict):
        await pair.b.accept(turn(prompt="another"))
    assert await pair.b.accept(turn(key=OTHER)) is None
    assert await pair.b.get(KEY, "t-1") == turn()


async def test_start(pair: Pair) -> None:
    assert not await pair.a.start(KEY, "t-1", 2.0)
    await pair.a.accept(turn())
    assert await pair.a.start(KEY, "t-1", 2.0)
    assert await pair.b.start(KEY, "t-1", 3.0)
    assert await pair.b.get(KEY, "t-1") == turn(status=TurnStatus.RUNNING, started_at=2.0)
    await pair.b.finish(KEY, "t-1", TurnStatus.ABORTED, 4.0)
    assert not await pair.a.start(KEY, "t-1", 5.0)


async def test_notes_are_taken_until_the_end(pair: Pair) -> None:
    await pair.a.accept(turn())
    await pair.a.note(KEY, "t-1")
    await pair.a.note(KEY, "t-1", message_id="m-1")
    await pair.b.note(KEY, "t-1", tool_ran=True, retried=True)
    await pair.b.note(KEY, "t-1", tool_ran=False)
    expected = turn(message_id="m-1", tool_ran=False, retried=True)
    assert await pair.a.get(KEY, "t-1") == expected
    await pair.a.finish(KEY, "t-1", TurnStatus.COMPLETED, 4.0)
    await pair.b.note(KEY, "t-1", message_id="late")
    assert await pair.a.get(KEY, "t-1") == replace(expected, status=TurnStatus.COMPLETED, ended_at=4.0)
    await pair.a.note(KEY, "unknown", message_id="x")


async def test_whoever_finishes_first_is_right(pair: Pair) -> None:
    assert not await pair.a.finish(KEY, "t-1", TurnStatus.FAILED, 4.0)
    await pair.a.accept(turn())
    answer, usage = {"id": "m", "content": "\ud800 ok"}, {"tokens": 3}
    results = await asyncio.gather(
        pair.a.finish(KEY, "t-1", TurnStatus.COMPLETED, 4.0, answer=answer, usage=usage),
        pair.b.finish(KEY, "t-1", TurnStatus.INTERRUPTED, 5.0, error={"code": "turn_interrupted", "detail": "x"}),
    )
    assert sorted(results) == [False, True]
    found = await pair.b.get(KEY, "t-1")
    if results[0]:
        assert found == turn(status=TurnStatus.COMPLETED, ended_at=4.0, answer=answer, usage=usage)
    else:
        error = {"code": "turn_interrupted", "detail": "x"}
        assert found == turn(status=TurnStatus.INTERRUPTED, ended_at=5.0, error=error)
    with pytest.raises(ValueError, match="does not finish"):
        await pair.a.finish(KEY, "t-1", TurnStatus.RUNNING, 6.0)


async def test_unfinished_turns_are_found_in_the_order_of_acceptance(pair: Pair) -> None:
    for number, (id_, key) in enumerate([("z", KEY), ("done", KEY), ("y", OTHER), ("a", KEY)]):
        await pair.a.accept(turn(id_, key, created_at=-float(number)))  # a clock that went back
    await pair.a.start(KEY, "z", 1.0)
    await pair.a.finish(KEY, "done", TurnStatus.COMPLETED, 2.0)
    assert [row.id for row in await pair.b.unfinished()] == ["z", "y", "a"]
    assert [row.id for row in await pair.b.unfinished(KEY)] == ["z", "a"]
    assert [row.id for row in await pair.b.unfinished(limit=2)] == ["z", "y"]
    assert [row.id for row in await pair.b.turns(KEY)] == ["z", "done", "a"]


async def test_only_the_turns_that_are_named_are_forgotten(pair: Pair) -> None:
    """What was accepted in a session that has the id now is no part of the one that had it before."""
    await pair.a.accept(turn("t-1"))
    await pair.a.accept(turn("t-2"))
    await pair.a.accept(turn("t-1", OTHER))
    assert await pair.b.forget(KEY, ["t-1"])
    assert await pair.a.turn_ids(KEY) == ["t-2"]
    assert await pair.a.turn_ids(OTHER) == ["t-1"]


async def test_forget_is_complete(pair: Pair) -> None:
    await pair.a.accept(FULL)
    await pair.a.accept(turn("t-2"))
    await pair.a.accept(turn(key=OTHER))
    assert await pair.b.turn_ids(KEY) == [FULL.id, "t-2"]
    assert await pair.b.forget(KEY, [FULL.id, "t-2", "unknown"])
    assert not await pair.a.forget(KEY, [FULL.id, "t-2"])
    assert not await pair.a.forget(KEY, [])
    assert await pair.a.turns(KEY) == []
    assert await pair.a.turn_ids(KEY) == []
    assert await pair.a.unfinished() == [turn(key=OTHER)]
    assert await pair.a.accept(FULL) is None  # its idempotency key is free again


async def test_unfinished_turns_cost_no_scan_of_the_history(tmp_path: Path) -> None:
    async with database(tmp_path / "s.db") as db:
        ledger = SqliteLedger(db)
        await ledger.open()
        statements: list[str] = []
        await db.read(lambda connection: connection.set_trace_callback(statements.append))
        await ledger.unfinished()
        await db.read(lambda connection: connection.set_trace_callback(None))
        (select,) = [statement for statement in statements if statement.startswith("SELECT")]
        assert "turn_unfinished" in await query_plan(db, select)


async def test_postgresql_reads_unfinished_turns_and_histories_by_index() -> None:
    async with postgres() as db:
        ledger = PostgresLedger(db)
        await ledger.open()
        await db.execute(
            "INSERT INTO turn (tenant, session, id, author, status, prompt, incarnation, attachments, digest, retried,"
            " tool_ran, created_at, accepted_by) SELECT 'acme', 's-' || n % 500, 't-' || n, 'alice',"
            " CASE WHEN n % 1000 = 0 THEN 'running' ELSE 'completed' END, 'x', 'i', '[]', '', false, false, n, n"
            " FROM generate_series(1, 20000) AS n"
        )
        await db.execute("ANALYZE turn")
        parameters = {"tenant": "acme", "session": "s-7", "except_of": ["x"], "limit": 100}
        plan = await query_plan_of(db, ledger.queries["unfinished"], parameters)
        assert "turn_unfinished" in plan
        assert "Sort" not in plan
        assert "turn_by_session" in await query_plan_of(db, ledger.queries["turns"], parameters)
        assert len(await ledger.unfinished(except_of=["x"])) == 20
        assert len(await ledger.turns(SessionKey("acme", "s-7"))) == 40


async def test_the_unfinished_turns_of_living_nodes_are_left_out(pair: Pair) -> None:
    await pair.a.accept(turn("t-1", incarnation="dead"))
    await pair.a.accept(turn("t-2", incarnation="alive"))
    assert [row.id for row in await pair.b.unfinished(except_of=["alive", "other"])] == ["t-1"]
    assert [row.id for row in await pair.b.unfinished(KEY, except_of=["dead"])] == ["t-2"]
    assert [row.id for row in await pair.b.unfinished()] == ["t-1", "t-2"]


async def test_a_freed_key_may_be_used_for_another_try(pair: Pair) -> None:
    await pair.a.accept(turn("t-1", idempotency_key="k"))
    assert await pair.a.finish(KEY, "t-1", TurnStatus.FAILED, 2.0, free_key=True)
    assert await pair.b.by_idempotency_key(KEY, "k") is None
    assert await pair.a.accept(turn("t-2", idempotency_key="k")) is None
    first = await pair.b.get(KEY, "t-1")
    assert first is not None
    assert (first.status, first.idempotency_key) == (TurnStatus.FAILED, None)


async def test_the_sessions_with_turns_are_walked_in_pages(pair: Pair) -> None:
    assert await pair.a.sessions() == []
    keys = [SessionKey("acme", "b"), SessionKey("acme", "a"), SessionKey("beta", "a")]
    for key in keys:
        for id_ in ("t-1", "t-2"):
            await pair.a.accept(turn(id_, key))
    found: list[SessionKey] = []
    while page := await pair.b.sessions(found[-1] if found else None, 2):
        assert len(page) <= 2
        found += page
    assert sorted(found) == sorted(keys)
    await pair.a.forget(keys[0], await pair.a.turn_ids(keys[0]))
    assert sorted(await pair.b.sessions()) == sorted(keys[1:])
