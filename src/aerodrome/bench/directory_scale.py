"""What opening and listing sessions costs the directory with many rows in it, against with few.

The user has as many sessions in both; the other rows are those of other users of the tenant. On SQLite, and on the
PostgreSQL that the environment variable `AERODROME_BENCH_POSTGRESQL` names, in schemas that are dropped afterwards.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aerodrome.app.stores import open_stores
from aerodrome.bench.lab import Lab
from aerodrome.bench.report import Row, compare, skipped
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale
from aerodrome.config.settings import Settings
from aerodrome.coordination.ports import Directory
from aerodrome.model import SessionKey, SessionRow

VARIABLE = "AERODROME_BENCH_POSTGRESQL"
TENANT, USER = "acme", "alice"
#: Of the user, in both.
_OWN = 100
#: Users whose the other rows are.
_OTHERS = 1000
#: Rows that are inserted at the same time, at the start.
_AT_ONCE = 50
_WARM_UP = 5
_TARGET = 2.0
_WHAT = {"open": "open a session", "list": "list a user's sessions"}


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    rows = await _rows(lab, scale, "sqlite", "sqlite", lambda done: progress(done / 2))
    url = os.environ.get(VARIABLE)
    if url is None:
        return [*rows, *(skipped("directory-scale", _what(do, "postgresql"), f"no {VARIABLE}") for do in _WHAT)]
    return rows + await _rows(lab, scale, "postgresql", url, lambda done: progress(0.5 + done / 2))


def _what(do: str, store: str) -> str:
    return f"{_WHAT[do]}, with many rows / with 100, {store}"


async def _rows(lab: Lab, scale: Scale, store: str, url: str, progress: Callable[[float], None]) -> list[Row]:
    async with AsyncExitStack() as stack:
        few = await stack.enter_async_context(_directory(lab, url))
        many = await stack.enter_async_context(_directory(lab, url))
        for directory, count in ((few, _OWN), (many, scale.directory_rows)):
            await _fill(directory, count)
        progress(0.5)
        opened = await interleave(
            {"open_many": lambda: _open(many), "open_few": lambda: _open(few)},
            scale.directory_rounds,
            warm_up=_WARM_UP,
            pause=0,
        )
        listed = await interleave(
            {"list_many": lambda: _list(many), "list_few": lambda: _list(few)},
            scale.directory_rounds,
            warm_up=_WARM_UP,
            pause=0,
        )
    progress(1.0)
    return [
        compare("directory-scale", _what(do, store), (f"{do}_many", f"{do}_few"), times, target=_TARGET)
        for do, times in (("open", opened), ("list", listed))
    ]


@asynccontextmanager
async def _directory(lab: Lab, url: str) -> AsyncIterator[Directory]:
    # With "full", waiting for the disk would be most of what is measured, and hide the rest.
    state: dict[str, Any] = {"url": url, "synchronous": "normal"}
    if url != "sqlite":
        state["database_schema"] = f"aerodrome_bench_{secrets.token_hex(6)}"
    settings = Settings.model_validate(
        {
            "server": {"data_dir": str(lab.new_directory("directory"))},
            "provider": {"type": "openai", "base_url": lab.model_url, "api_key": "bench"},
            "state": state,
        }
    )
    try:
        async with open_stores(settings) as stores:
            yield stores.directory
    finally:
        if url != "sqlite":
            await _drop(url, state["database_schema"])


async def _drop(url: str, schema: str) -> None:
    from aerodrome._util.postgres import Postgres

    async with Postgres(url, max_connections=1) as database:
        await database.execute(f'DROP SCHEMA "{schema}" CASCADE')


async def _fill(directory: Directory, count: int) -> None:
    for first in range(0, count, _AT_ONCE):
        await asyncio.gather(*(directory.insert(_row(number)) for number in range(first, min(count, first + _AT_ONCE))))


def _row(number: int) -> SessionRow:
    owner = USER if number < _OWN else f"user-{number % _OTHERS}"
    return _session(f"s-{number}", owner, float(number))


def _session(session: str, owner: str, at: float) -> SessionRow:
    return SessionRow(SessionKey(TENANT, session), owner, title="A title", created_at=at, last_used_at=at)


async def _open(directory: Directory) -> None:
    """A new session, and one that is there."""
    row = _session(f"new-{secrets.token_hex(8)}", USER, 1e9)
    await directory.insert(row)
    await directory.get(SessionKey(TENANT, "s-50"))
    await directory.remove(row.key, row.created_at)


async def _list(directory: Directory) -> None:
    page = await directory.list(TENANT, user=USER, limit=50)
    assert len(page.rows) == 50
