"""A SQLite database for asyncio: one thread that writes, one that reads, and commits shared by a group.

**Writing.** All writes of a process go through one connection in one thread. The thread takes every operation
that is queued, runs them in one ``BEGIN IMMEDIATE ... COMMIT``, each of several inside a savepoint of its own, and only
then resolves their futures: while one group waits for the disk the next one gathers, so that the price of an
fsync is shared by whoever is there. An operation that raises takes back only what it did itself; a COMMIT
that fails fails the whole group. (As with any database, a write whose COMMIT failed with an I/O error is in
doubt until the next successful one, never half done.)

**Reading.** A second thread has its own connection and reads a consistent snapshot (WAL), so that a reader
never waits for a writer, not even for one in another process.

**Operations** are plain functions of a connection. They run off the loop, in a transaction somebody else
begins and ends, and possibly twice (when SQLite rolled back the group because of another member), so they
touch nothing but the connection and read the clock themselves if they need to know when they run: they may
have waited for the lock. They leave no cursor half read.

**Cancellation.** Whoever is cancelled while waiting stops waiting, no more: an operation once queued still
happens, and the connection never notices.

**Several processes** use one file. ``BEGIN IMMEDIATE`` takes the write lock before the first read, so that
what an operation read is still true when it writes; a lock held elsewhere is waited for up to `busy_timeout`
seconds *from the moment the operation was queued*, and then is `StoreUnavailable`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Self, TypeVar

from aerodrome._util.sqlite_threads import Operation, Reader, Synchronous, Worker, Writer
from aerodrome._util.sqlite_trouble import Health
from aerodrome.errors import StoreUnavailable

T = TypeVar("T")


class Database:
    """One SQLite file, shared by the adapters that are given this object. Whoever makes it opens and closes it.

    Args:
        path: The file; made with mode 0600 if absent, its directory with mode 0700.
        synchronous: ``FULL``: a write that returned survives a power failure. ``NORMAL``: it survives the
            death of the process only. ``OFF``: for tests.
        busy_timeout: Seconds an operation waits for a lock that another process holds.
        max_queued: Operations that may wait in each thread's queue; past it they are refused at once.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        synchronous: Synchronous = "FULL",
        busy_timeout: float = 5.0,
        max_queued: int = 10_000,
    ) -> None:
        self.path = Path(path)
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._max_queued = max_queued
        self._writer: Writer | None = None
        self._reader: Reader | None = None
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Make the file if need be and start the threads. Does nothing when open. Raises `StoreUnavailable`."""
        async with self._lock:
            if self._writer is not None:
                return
            health = Health(self.path)
            writer = Writer(self.path, self._synchronous, self._busy_timeout, health)
            reader = Reader(self.path, self._synchronous, self._busy_timeout, health)
            try:
                await writer.start()
                await reader.start()
            except BaseException:
                writer.stop()
                reader.stop()
                raise
            self._writer, self._reader = writer, reader

    async def aclose(self) -> None:
        """Finish what is queued and end the threads. Safe to call twice; the database may be opened again."""
        async with self._lock:
            if self._writer is None or self._reader is None:
                return
            ended = [self._writer.stop(), self._reader.stop()]
            self._writer = self._reader = None
            await asyncio.gather(*ended)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def write(self, operation: Operation[T], *, durable: bool = True) -> T:
        """Run the operation in a write transaction; returns when it is committed.

        Args:
            durable: With ``False`` nobody waits for the disk: a power failure may take it back, as long as nothing
                durable has been written after it.

        Raises:
            StoreUnavailable: Locked, full, damaged, closed or overrun; nothing of the operation is stored.
            Exception: Whatever the operation raises; what it had written is rolled back.
        """
        result: T = await self._submit(self._writer, operation, durable=durable)
        return result

    async def read(self, operation: Operation[T]) -> T:
        """Run the operation on one snapshot: everything that was committed before now, nothing half done."""
        result: T = await self._submit(self._reader, operation)
        return result

    def _submit(
        self, worker: Worker | None, operation: Operation[Any], *, durable: bool = False
    ) -> asyncio.Future[Any]:
        if worker is None:
            raise StoreUnavailable(f"{self.path.name} is not open")
        if worker.queued() >= self._max_queued:
            raise StoreUnavailable(f"{self.path.name}: {self._max_queued} operations wait already", retry_after=1.0)
        return worker.submit(operation, durable=durable)
