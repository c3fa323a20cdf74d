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
import contextlib
import math
import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any, Literal, Self, TypeVar

import structlog

from aerodrome.errors import AerodromeError, StoreUnavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
Synchronous = Literal["FULL", "NORMAL", "OFF"]

#: Result code -> what is wrong and how to mend it, and after how many seconds to try again if that may help.
#: The file's name goes first; its directory stays out, because callers of the API see these words.
_UNAVAILABLE: dict[int, tuple[str, float | None]] = {
    sqlite3.SQLITE_BUSY: ("is locked by another process", 1.0),
    sqlite3.SQLITE_LOCKED: ("is locked by another process", 1.0),
    sqlite3.SQLITE_PROTOCOL: ("is locked by another process", 1.0),
    sqlite3.SQLITE_FULL: ("cannot grow: the disk or its quota is full; free some space", None),
    sqlite3.SQLITE_IOERR: ("cannot be read or written: the disk reports an error or is full", 5.0),
    sqlite3.SQLITE_READONLY: ("is read-only; check its owner, its mode and how the disk is mounted", None),
    sqlite3.SQLITE_PERM: ("may not be used; check its owner and mode", None),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened; check that its directory exists, and that this user may write to both",
        None,
    ),
    sqlite3.SQLITE_CORRUPT: ("is damaged; stop all nodes and restore it from a backup", None),
    sqlite3.SQLITE_NOTADB: ("is not a SQLite database; move it away or configure another path", None),
}


def to_blob(text: str) -> bytes:
    """UTF-8 that also carries lone surrogates, which SQLite's own text type refuses.

    JSON can spell them (``"\\ud800"``), so the CLI and its users can send them. `from_blob` is the inverse.
    """
    return text.encode("utf-8", "surrogatepass")


def from_blob(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")


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
        self._writer: _Writer | None = None
        self._reader: _Reader | None = None
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Make the file if need be and start the threads. Does nothing when open. Raises `StoreUnavailable`."""
        async with self._lock:
            if self._writer is not None:
                return
            health = _Health(self.path)
            writer = _Writer(self.path, self._synchronous, self._busy_timeout, health)
            reader = _Reader(self.path, self._synchronous, self._busy_timeout, health)
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
        self, worker: _Worker | None, operation: Operation[Any], *, durable: bool = False
    ) -> asyncio.Future[Any]:
        if worker is None:
            raise StoreUnavailable(f"{self.path.name} is not open")
        if worker.queued() >= self._max_queued:
            raise StoreUnavailable(f"{self.path.name}: {self._max_queued} operations wait already", retry_after=1.0)
        return worker.submit(operation, durable=durable)


class _Op:
    """An operation on its way: what to run, who waits, since when, and what came of it."""

    __slots__ = ("call", "durable", "error", "future", "queued_at", "result")

    def __init__(self, call: Operation[Any], future: asyncio.Future[Any], *, durable: bool) -> None:
        self.call = call
        self.durable = durable
        self.future = future
        self.queued_at = monotonic()
        self.result: Any = None
        self.error: BaseException | None = None


class _Health:
    """Translates SQLite's errors, and logs each spell of trouble once instead of once an operation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._trouble: int | None = None

    def translate(self, error: BaseException) -> BaseException:
        """The error as callers shall see it. Mistakes in SQL and broken constraints stay what they are."""
        code = primary_code(error)
        if isinstance(error, StopIteration):  # which no future can carry
            return RuntimeError("a database operation raised StopIteration")
        if code not in _UNAVAILABLE:
            return error
        what, retry_after = _UNAVAILABLE[code]
        if code != self._trouble:
            self._trouble = code
            log.error("sqlite.unavailable", path=str(self._path), error=str(error))
        translated = StoreUnavailable(f"{self._path.name} {what}", retry_after=retry_after)
        translated.__cause__ = error
        return translated

    def well(self) -> None:
        if self._trouble is not None:
            self._trouble = None
            log.info("sqlite.recovered", path=str(self._path))


def primary_code(error: BaseException) -> int | None:
    """SQLite's primary result code (``sqlite3.SQLITE_BUSY``, ...); ``None`` for any other error."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


class _Worker:
    """A thread with a connection and a queue. All methods but `_run` and below belong to the loop's thread."""

    role = "worker"
    #: Operations taken from the queue at once: enough to share an fsync, few enough to answer soon.
    most = 16

    def __init__(self, path: Path, synchronous: Synchronous, busy_timeout: float, health: _Health) -> None:
        self._path = path
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._health = health
        self._queue: SimpleQueue[_Op | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[Any] = self._loop.create_future()
        self._ended: asyncio.Future[Any] = self._loop.create_future()

    def start(self) -> asyncio.Future[None]:
        # A daemon: a process that ends without `aclose` must not hang on it. What was acknowledged is on disk.
        threading.Thread(target=self._run, name=f"sqlite-{self.role}:{self._path.name}", daemon=True).start()
        return self._started

    def stop(self) -> asyncio.Future[None]:
        self._queue.put(None)
        return self._ended

    def queued(self) -> int:
        return self._queue.qsize()

    def submit(self, call: Operation[Any], *, durable: bool) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(_Op(call, future, durable=durable))
        return future

    def _run(self) -> None:
        try:
            connection = self._connect()
        except BaseException as error:
            self._post(_settle, self._started, None, self._health.translate(error))
            return
        self._post(_settle, self._started, None, None)
        stopping = False
        while not stopping:
            batch, stopping = self._take()
            try:
                self._execute(connection, batch)
            except BaseException as error:
                # Not even a rollback went through. Nobody may wait for ever, and the thread goes on: the next
                # group meets the same trouble, or finds it gone.
                for op in batch:
                    op.error = op.error or self._health.translate(error)
                with contextlib.suppress(sqlite3.Error):
                    connection.rollback()
            self._post(_settle_all, batch)
        with contextlib.suppress(sqlite3.Error):
            connection.close()
        self._post(_settle, self._ended, None, None)

    def _take(self) -> tuple[list[_Op], bool]:
        """What is queued, waiting for the first; and whether the worker shall end after it."""
        batch: list[_Op] = []
        try:
            op = self._queue.get()
            while op is not None:
                batch.append(op)
                if len(batch) == self.most:
                    return batch, False
                op = self._queue.get_nowait()
        except Empty:
            return batch, False
        return batch, True

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        # A loop that was closed without `aclose` has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._busy_timeout, isolation_level=None, cached_statements=256
        )
        try:
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            connection.execute("PRAGMA foreign_keys=ON")
            # Savepoints keep what they may have to restore in memory instead of in a temporary file.
            connection.execute("PRAGMA temp_store=MEMORY")
        except BaseException:
            connection.close()
            raise
        return connection

    def _execute(self, connection: sqlite3.Connection, batch: list[_Op]) -> None:
        raise NotImplementedError


class _Reader(_Worker):
    role = "reader"

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute("PRAGMA query_only=ON")
        return connection

    def _execute(self, connection: sqlite3.Connection, batch: list[_Op]) -> None:
        for op in batch:
            try:
                connection.execute("BEGIN")
                op.result = op.call(connection)
            except BaseException as error:
                op.error = self._health.translate(error)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")


class _Writer(_Worker):
    role = "writer"
    most = 256

    def _connect(self) -> sqlite3.Connection:
        _make_file(self._path)
        connection = super()._connect()
        try:
            _use_wal(connection, self._path, monotonic() + self._busy_timeout)
            # The file of the log shrinks again after a burst instead of keeping its largest size for ever.
            connection.execute(f"PRAGMA journal_size_limit={64 << 20}")
        except BaseException:
            connection.close()
            raise
        self._patience: int | None = None
        self._synchronised: Synchronous = self._synchronous
        return connection

    def _execute(self, connection: sqlite3.Connection, batch: list[_Op]) -> None:
        self._synchronise(connection, batch)
        if not (batch := self._begin(connection, batch)):
            return
        if len(batch) == 1:
            # The usual case, in which the transaction is the operation's own.
            self._run_alone(connection, batch[0])
            return
        for op in batch:
            self._run_in_savepoint(connection, op)
            if not connection.in_transaction:
                self._after_rollback(connection, batch, op)
                return
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._fail([op for op in batch if op.error is None], error)
        else:
            self._health.well()

    def _run_alone(self, connection: sqlite3.Connection, op: _Op) -> None:
        try:
            op.result = op.call(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            self._fail([op], error)
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        else:
            self._health.well()

    def _synchronise(self, connection: sqlite3.Connection, batch: list[_Op]) -> None:
        """Wait for the disk with the commit, or leave that to the next one that does: it syncs the whole log."""
        wanted = self._synchronous
        if wanted == "FULL" and not any(op.durable for op in batch):
            wanted = "NORMAL"
        if wanted != self._synchronised:
            connection.execute(f"PRAGMA synchronous={wanted}")
            self._synchronised = wanted

    def _begin(self, connection: sqlite3.Connection, batch: list[_Op]) -> list[_Op]:
        """Take the write lock. Returns the operations to run; those whose time ran out have failed."""
        while batch:
            self._be_patient(connection, batch[0].queued_at + self._busy_timeout - monotonic())
            try:
                connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.Error as error:
                if primary_code(error) != sqlite3.SQLITE_BUSY:
                    self._fail(batch, error)
                    return []
                limit = monotonic() - self._busy_timeout
                self._fail([op for op in batch if op.queued_at <= limit], error)
                batch = [op for op in batch if op.queued_at > limit]
        return batch

    def _be_patient(self, connection: sqlite3.Connection, seconds: float) -> None:
        # In steps of a tenth of a second, so that the usual case finds the right value set already.
        milliseconds = 100 * max(0, math.ceil(seconds * 10))
        if milliseconds != self._patience:
            connection.execute(f"PRAGMA busy_timeout={milliseconds}")
            self._patience = milliseconds

    def _run_in_savepoint(self, connection: sqlite3.Connection, op: _Op) -> None:
        try:
            connection.execute("SAVEPOINT op")
            op.result = op.call(connection)
            connection.execute("RELEASE op")
        except BaseException as error:
            self._fail([op], error)
            if connection.in_transaction:
                connection.execute("ROLLBACK TO op")
                connection.execute("RELEASE op")

    def _after_rollback(self, connection: sqlite3.Connection, batch: list[_Op], culprit: _Op) -> None:
        """SQLite itself ended the transaction (out of memory, some I/O errors) and took the group's work with it.

        The others are not at fault: each gets a transaction of its own.
        """
        for op in batch:
            if op is not culprit and op.error is None:
                self._execute(connection, [op])

    def _fail(self, ops: list[_Op], error: BaseException) -> None:
        if ops:
            translated = self._health.translate(error)
            for op in ops:
                # An error object of its own for each: a traceback grows with every `raise` of a shared one.
                op.error = translated if len(ops) == 1 else _copy(translated)


def _copy(error: BaseException) -> BaseException:
    if isinstance(error, AerodromeError):
        copy: BaseException = type(error)(error.detail, retry_after=error.retry_after, **error.extra)
    else:
        copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # whoever waited was cancelled
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _settle_all(batch: list[_Op]) -> None:
    for op in batch:
        _settle(op.future, op.result, op.error)


def _make_file(path: Path) -> None:
    """Make the file private from its first moment; SQLite gives its companions the same mode.

    With mknod, because it opens nothing: closing *any* descriptor of a file drops all POSIX locks that this
    process has on it, also those of another connection to the same database.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFREG | 0o600)
    except OSError as error:
        raise StoreUnavailable(f"{path.name} cannot be made: {error.strerror}") from error


def _use_wal(connection: sqlite3.Connection, path: Path, deadline: float) -> None:
    """Switch the file to write-ahead logging; a property of the file, so that later opens find it done.

    The switch needs the file for itself for a moment and does not wait for it as other statements do, so that
    two processes that open a new file at once would fail each other.
    """
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
            sleep(0.01)
            continue
        if mode != "wal":
            raise StoreUnavailable(f"{path.name} cannot use write-ahead logging here; put it on a local disk")
        return
