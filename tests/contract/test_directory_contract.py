"""What every directory does. `pair` is the store as two nodes see it, in the worst case two processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aerodrome.coordination.backends.memory_directory import MemoryDirectory
from aerodrome.coordination.backends.postgresql_directory import PostgresDirectory
from aerodrome.coordination.backends.sqlite_directory import SqliteDirectory
from aerodrome.coordination.ports import Directory
from aerodrome.errors import Invalid
from aerodrome.model import Isolation, LastTurn, Role, SessionKey, SessionKind, SessionRow, SessionState, TurnStatus
from support.databases import database, query_plan
from support.postgres import fresh_schema, postgres
from support.postgres import query_plan as postgres_plan

KEY = SessionKey("acme", "chat")


class Pair(NamedTuple):
    a: Directory
    b: Directory


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "memory":
        shared = MemoryDirectory()
        await shared.open()
        yield Pair(shared, shared)
        await shared.aclose()
        return
    if request.param == "postgresql":
        schema = fresh_schema()
        async with postgres(schema) as one, postgres(schema) as two:
            both = Pair(PostgresDirectory(one), PostgresDirectory(two))
            await both.a.open()
            await both.b.open()
            yield both
        return
    async with database(tmp_path / "c.db") as first, database(tmp_path / "c.db") as second:
        a, b = SqliteDirectory(first), SqliteDirectory(second)
        await a.open()
        await b.open()
        yield Pair(a, b)
        await a.aclose()
        await b.aclose()


def row(id_: str = "chat", tenant: str = "acme", **columns: Any) -> SessionRow:
    return replace(SessionRow(SessionKey(tenant, id_), "alice", created_at=1.5, last_used_at=2.5), **columns)


FULL = row(
    kind=SessionKind.EPHEMERAL,
    isolation=Isolation.USER,
    state=SessionState.RESIDENT,
    model="gpt-4.1",
    title="Überschrift \ud83d \U0001f600 '; DROP TABLE session; --",
    options={"tools": ["view"], "system_message": "\ud800 \0 ok"},
    members={"bob": Role.WRITER, "carol \u00e9": Role.READER},
    last_turn=LastTurn("t-1", TurnStatus.INTERRUPTED),
)


async def test_insert_is_first_come_first_served(pair: Pair) -> None:
    assert await pair.a.insert(FULL) is None
    assert await pair.b.insert(row(owner="mallory")) == FULL
    assert await pair.b.get(KEY) == FULL
    assert await pair.b.get(SessionKey("other", "chat")) is None
    results = await asyncio.gather(*(store.insert(row("new")) for store in pair * 5))
    assert results.count(None) == 1


async def test_rows_are_values(pair: Pair) -> None:
    options = {"tools": ["view"]}
    await pair.a.insert(row(options=options))
    options["tools"].append("shell")
    found = await pair.a.get(KEY)
    assert found is not None
    found.options["tools"].append("shell")
    assert await pair.b.get(KEY) == row(options={"tools": ["view"]})


async def test_update_changes_what_it_names(pair: Pair) -> None:
    assert not await pair.a.update(KEY, title="x")
    assert not await pair.a.update(KEY)
    await pair.a.insert(FULL)
    assert await pair.b.update(KEY)
    assert await pair.b.get(KEY) == FULL
    turn = LastTurn("t-2", TurnStatus.RUNNING)
    changes: dict[str, Any] = {
        "state": SessionState.RUNNING,
        "title": "",
        "model": "m",
        "options": {},
        "last_turn": turn,
    }
    assert await pair.b.update(KEY, last_used_at=9.25, **changes)
    assert await pair.a.get(KEY) == replace(FULL, last_used_at=9.25, **changes)


async def test_last_use_never_goes_back(pair: Pair) -> None:
    await pair.a.insert(row(last_used_at=10.0))
    await asyncio.gather(*(store.update(KEY, last_used_at=at) for at in (12.0, 15.0, 11.0) for store in pair))
    found = await pair.a.get(KEY)
    assert found is not None
    assert found.last_used_at == 15.0


async def test_remove(pair: Pair) -> None:
    await pair.a.insert(FULL)
    assert not await pair.b.remove(SessionKey("other", "chat"), FULL.created_at)
    # Another session that had the same id before it.
    assert not await pair.b.remove(KEY, FULL.created_at - 0.001)
    assert await pair.a.get(KEY) == FULL
    assert await pair.b.remove(KEY, FULL.created_at)
    assert not await pair.a.remove(KEY, FULL.created_at)
    assert await pair.a.get(KEY) is None
    assert await pair.a.insert(row()) is None


async def pages(store: Directory, tenant: str | None, *, user: str | None = None, limit: int) -> list[list[str]]:
    found, cursor = [], None
    while True:
        page = await store.list(tenant, user=user, cursor=cursor, limit=limit)
        found.append([f"{row.key.tenant}/{row.key.id}" for row in page.rows])
        if (cursor := page.next) is None:
            return found


async def test_listings_are_by_last_use_in_stable_pages(pair: Pair) -> None:
    for tenant, id_, used, owner in [
        ("acme", "a", 1.0, "alice"),
        ("acme", "b", 3.0, "bob"),
        ("acme", "c", 3.0, "alice"),
        ("beta", "b", 3.0, "alice"),
        ("acme", "d", 0.1 + 0.2, "alice"),  # no short decimal form: a cursor must carry it exactly
        ("beta", "e", 4.0, "eve"),
    ]:
        await pair.a.insert(row(id_, tenant, last_used_at=used, owner=owner))
    everything = ["beta/e", "acme/b", "beta/b", "acme/c", "acme/a", "acme/d"]
    for limit in (1, 2, 3, 6, 7):
        found = await pages(pair.b, None, limit=limit)
        assert [name for page in found for name in page] == everything
        assert all(len(page) == limit for page in found[:-1])
        assert found[-1]
    assert await pages(pair.b, "acme", limit=2) == [["acme/b", "acme/c"], ["acme/a", "acme/d"]]
    assert await pages(pair.b, "acme", user="alice", limit=2) == [["acme/c", "acme/a"], ["acme/d"]]
    assert await pages(pair.b, None, user="eve", limit=2) == [["beta/e"]]
    assert await pages(pair.b, "nobody", limit=2) == [[]]
    assert (await pair.b.count(), await pair.b.count("acme"), await pair.b.count("nobody")) == (6, 4, 0)


async def test_pages_do_not_shift_when_rows_come_and_go(pair: Pair) -> None:
    for number in range(6):
        await pair.a.insert(row(str(number), last_used_at=float(number)))
    first = await pair.a.list("acme", limit=2)
    assert [row.key.id for row in first.rows] == ["5", "4"]
    await pair.b.insert(row("new", last_used_at=99.0))
    await pair.b.remove(SessionKey("acme", "4"), 1.5)  # the very row the cursor names
    second = await pair.a.list("acme", cursor=first.next, limit=2)
    assert [row.key.id for row in second.rows] == ["3", "2"]


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "Ø",
        "W10",
        "!!!!",
        "[" * 5000,
        "WzEsMiwzXQ",
        "WzFlOTk5LCJhIiwiYiJd",
        "bnVsbA",
        "\ud800",
        "WzEuMCwiXHUwMDAwIiwiYSJd",
    ],
)
async def test_a_cursor_nobody_returned_is_invalid(pair: Pair, cursor: str) -> None:
    with pytest.raises(Invalid):
        await pair.a.list("acme", cursor=cursor)


async def test_a_page_has_at_least_one_row(pair: Pair) -> None:
    with pytest.raises(Invalid):
        await pair.a.list("acme", limit=0)


async def test_members_are_made_changed_and_removed(pair: Pair) -> None:
    assert await pair.a.set_member(KEY, "bob", Role.WRITER) is None
    await pair.a.insert(row())
    found = await pair.b.set_member(KEY, "bob", Role.READER)
    assert found == row(members={"bob": Role.READER})
    assert await pair.a.set_member(KEY, "bob", Role.WRITER) == row(members={"bob": Role.WRITER})
    assert await pair.b.set_member(KEY, "carol", Role.OWNER) == row(members={"bob": Role.WRITER, "carol": Role.OWNER})
    assert await pair.a.set_member(KEY, "nobody", None) == await pair.b.get(KEY)
    assert await pair.a.set_member(KEY, "bob", None) == row(members={"carol": Role.OWNER})
    assert await pair.b.get(SessionKey("other", "chat")) is None
    await pair.b.update(KEY, title="shared")
    assert await pair.a.get(KEY) == row(title="shared", members={"carol": Role.OWNER})


async def test_members_go_with_their_session(pair: Pair) -> None:
    await pair.a.insert(row(members={"bob": Role.WRITER}))
    assert await pair.b.insert(row(members={"eve": Role.OWNER})) == row(members={"bob": Role.WRITER})
    assert not await pair.b.remove(KEY, row().created_at + 1)
    assert await pair.a.get(KEY) == row(members={"bob": Role.WRITER})
    assert await pair.b.remove(KEY, row().created_at)
    assert await pair.a.set_member(KEY, "eve", Role.OWNER) is None
    assert await pair.a.insert(row()) is None
    assert await pair.b.get(KEY) == row()
    assert await pages(pair.b, "acme", user="bob", limit=5) == await pages(pair.b, "acme", user="eve", limit=5) == [[]]


async def test_a_user_sees_what_is_theirs_and_what_is_shared_with_them_in_one_order(pair: Pair) -> None:
    for number in range(9):
        owner, members = [("alice", {}), ("bob", {"alice": Role.READER}), ("bob", {"carol": Role.WRITER})][number % 3]
        await pair.a.insert(row(str(number), last_used_at=float(number // 2), owner=owner, members=members))
    await pair.a.insert(row("elsewhere", "beta", last_used_at=9.0, owner="bob", members={"alice": Role.WRITER}))
    theirs = [f"acme/{number}" for number in (6, 7, 4, 3, 0, 1)]
    for limit in (1, 2, 3, 6, 7):
        found = await pages(pair.b, "acme", user="alice", limit=limit)
        assert [name for page in found for name in page] == theirs
        assert all(len(page) == limit for page in found[:-1])
        assert found[-1]
    assert await pages(pair.b, None, user="alice", limit=9) == [["beta/elsewhere", *theirs]]
    page = await pair.b.list("acme", user="carol")
    assert [row.members for row in page.rows] == [{"carol": Role.WRITER}] * 3
    await pair.b.set_member(SessionKey("acme", "4"), "alice", None)
    await pair.b.set_member(SessionKey("acme", "8"), "alice", Role.READER)
    assert (await pages(pair.a, "acme", user="alice", limit=9))[0][:3] == ["acme/8", "acme/6", "acme/7"]


async def test_unused_since_is_about_use(pair: Pair) -> None:
    await pair.a.insert(row("old", created_at=0.0, last_used_at=10.0))
    await pair.a.insert(row("older", created_at=9.0, last_used_at=9.0, members={"bob": Role.READER}))
    await pair.a.insert(row("oldest", last_used_at=1.0, state=SessionState.RUNNING))
    await pair.a.insert(row("daily", created_at=0.0, last_used_at=20.0))
    assert [row.key.id for row in await pair.b.unused_since(20.0)] == ["oldest", "older", "old"]
    assert [row.key.id for row in await pair.b.unused_since(20.0, limit=1)] == ["oldest"]
    assert [row.key.id for row in await pair.b.unused_since(20.0, limit=1, skip=1)] == ["older"]
    assert [row.key.id for row in await pair.b.unused_since(20.0, skip=3)] == []
    assert await pair.b.unused_since(1.0) == []


# What only the SQLite adapter has to know


async def test_no_listing_scans_or_sorts_the_table(tmp_path: Path) -> None:
    """With 100,000 sessions a page must cost its rows: every listing walks an index in the index's own order."""
    async with database(tmp_path / "c.db") as db:
        store = SqliteDirectory(db)
        await store.open()
        for number in range(3):
            await store.insert(row(str(number), last_used_at=float(number), members={"bob": Role.READER}))
        statements: list[str] = []
        await db.read(lambda connection: connection.set_trace_callback(statements.append))
        cursor = (await store.list(None, limit=1)).next
        await store.list(None, cursor=cursor)
        await store.list("acme", cursor=cursor)
        await store.list("acme", user="alice", cursor=cursor)
        await store.get(KEY)
        await store.unused_since(99.0)
        await db.read(lambda connection: connection.set_trace_callback(None))
        selects = [statement for statement in statements if statement.startswith("SELECT")]
        assert len(selects) == 7
        for select in selects:
            steps = await query_plan(db, select)
            # What is shared with a user is found from the members and sorted; there is not much of it.
            assert steps.startswith("SEARCH mine USING") is ("AS mine" in select), f"{select}: {steps}"
            assert "TEMP B-TREE" not in steps or "AS mine" in select, f"{select}: {steps}"
            assert "INDEX" in steps or "PRIMARY KEY" in steps, f"{select}: {steps}"


# What only the PostgreSQL adapter has to know


async def test_whatever_text_a_user_sends_for_a_model_is_stored() -> None:
    async with postgres() as db:
        store = PostgresDirectory(db)
        await store.open()
        strange = row(model="\ud800 \0 gpt")
        assert await store.insert(strange) is None
        assert await store.get(KEY) == strange
        assert await store.update(KEY, model="\udfff\0")
        assert await store.get(KEY) == replace(strange, model="\udfff\0")


async def test_with_100_000_rows_open_and_lists_walk_an_index() -> None:
    async with postgres(statement_timeout=60.0) as db:
        store = PostgresDirectory(db)
        await store.open()
        await db.execute(
            "INSERT INTO session (tenant, id, owner, kind, isolation, state, options, created_at, last_used_at,"
            " inserted_by) SELECT 'tenant-' || n % 500, 's-' || n, 'user-' || n % 1000, 'persistent', 'tenant',"
            " 'hibernated', '{}', n, n, 0 FROM generate_series(1, 100000) AS n"
        )
        await db.execute(
            "INSERT INTO member SELECT tenant, id, 'user-' || last_used_at::bigint % 997, 'reader' FROM session"
            " WHERE last_used_at::bigint % 3 = 0 AND owner <> 'user-' || last_used_at::bigint % 997"
        )
        await db.execute("ANALYZE session")
        await db.execute("ANALYZE member")
        cursor = (await store.list(None, limit=50_000)).next
        for tenant, user, indexes in [
            (None, None, ["session_by_use"]),
            ("tenant-7", None, ["session_by_tenant"]),
            ("tenant-7", "user-7", ["session_by_owner", "member_by_user"]),
            (None, "user-7", ["session_by_owner_anywhere", "member_by_user"]),
        ]:
            for start in (None, cursor):
                plan = await postgres_plan(db, *store.listing(tenant, user, start, 50))
                assert "Seq Scan" not in plan, plan
                assert all(index in plan for index in indexes), plan
                # What a user owns or is a member of is found by index; the planner may sort it when it is little.
                assert user is not None or "Sort" not in plan, plan
        for query, parameters in [
            ("get", {"tenant": "tenant-7", "id": "s-7"}),
            ("update", {"tenant": "tenant-7", "id": "s-7", "last_used_at": 1.0, **dict.fromkeys(UNCHANGED)}),
            ("unused_since", {"before": 500.0, "limit": 100, "skip": 0}),
        ]:
            plan = await postgres_plan(db, store.queries[query], parameters)
            assert "Seq Scan" not in plan, plan
            assert "Sort" not in plan, plan
        page = await store.list("tenant-7", user="user-7", cursor=cursor)
        assert page.rows


UNCHANGED = ("state", "title", "model", "options", "last_turn_id", "last_turn_status")
