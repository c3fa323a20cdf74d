"""SQLite databases for tests, and another process that locks one."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aerodrome._util.sqlite import Database

_HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"BEGIN {sys.argv[2]}")
print("held", flush=True)
sys.stdin.read()
connection.execute("COMMIT")
"""


class LockHolder:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def release(self) -> None:
        """Give the lock back and wait until it is free."""
        self._process.communicate(timeout=60)


@asynccontextmanager
async def locked_by_another_process(path: Path, lock: str = "EXCLUSIVE") -> AsyncIterator[LockHolder]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path), lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line == "held\n"
        try:
            yield LockHolder(process)
        finally:
            process.kill()


def database(path: Path, *, busy_timeout: float = 30.0) -> Database:
    """One that does not wait for the disk: tests kill processes, not the machine."""
    return Database(path, synchronous="OFF", busy_timeout=busy_timeout)


async def fetch(db: Database, sql: str) -> list[tuple[Any, ...]]:
    def run(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
        return connection.execute(sql).fetchall()

    return await db.read(run)


async def query_plan(db: Database, sql: str) -> str:
    """The steps by which SQLite would run the statement."""
    return " / ".join(step[-1] for step in await fetch(db, f"EXPLAIN QUERY PLAN {sql}"))
