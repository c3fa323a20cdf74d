"""The two threads of a SQLite database: each has a connection and a queue, and tells the loop what came of what it ran.

The rules that operations and their callers live by are in `_util.sqlite`.
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
from typing import Any, Literal, TypeVar

from aerodrome._util.sqlite_trouble import Health, primary_code
from aerodrome.errors import AerodromeError, StoreUnavailable

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
Synchronous = Literal["FULL", "NORMAL", "OFF"]


class Op:
    """An operation on its way: what to run, who waits, since when, and what came of it."""

    __slots__ = ("call", "durable", "error", "future", "queued_at", "result")

    def __init__(self, call: Operation[Any], future: asyncio.Future[Any], *, durable: bool) -> None:
        self.call = call
        self.durable = durable
        self.future = future
        self.queued_at = monotonic()
        self.result: Any = None
        self.error: BaseException | None = None


class Worker:
    """A thread with a connection and a queue. All methods but `_run` and below belong to the loop's thread."""

    role = "worker"
    #: Operations taken from the queue at once: enough to share an fsync, few enough to answer soon.
    most = 16

    def __init__(self, path: Path, synchronous: Synchronous, busy_timeout: float, health: Health) -> None:
        self._path = path
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._health = health
        self._queue: SimpleQueue[Op | None] = SimpleQueue()
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
        self._queue.put(Op(call, future, durable=durable))
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

    def _take(self) -> tuple[list[Op], bool]:
        """What is queued, waiting for the first; and whether the worker shall end after it."""
        batch: list[Op] = []
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

    def _execute(self, connection: sqlite3.Connection, batch: list[Op]) -> None:
        raise NotImplementedError


class Reader(Worker):
    role = "reader"

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute("PRAGMA query_only=ON")
        return connection

    def _execute(self, connection: sqlite3.Connection, batch: list[Op]) -> None:
        for op in batch:
            try:
                connection.execute("BEGIN")
                op.result = op.call(connection)
            except BaseException as error:
                op.error = self._health.translate(error)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")


class Writer(Worker):
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

    def _execute(self, connection: sqlite3.Connection, batch: list[Op]) -> None:
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

    def _run_alone(self, connection: sqlite3.Connection, op: Op) -> None:
        try:
            op.result = op.call(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            self._fail([op], error)
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        else:
            self._health.well()

    def _synchronise(self, connection: sqlite3.Connection, batch: list[Op]) -> None:
        """Wait for the disk with the commit, or leave that to the next one that does: it syncs the whole log."""
        wanted = self._synchronous
        if wanted == "FULL" and not any(op.durable for op in batch):
            wanted = "NORMAL"
        if wanted != self._synchronised:
            connection.execute(f"PRAGMA synchronous={wanted}")
            self._synchronised = wanted

    def _begin(self, connection: sqlite3.Connection, batch: list[Op]) -> list[Op]:
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

    def _run_in_savepoint(self, connection: sqlite3.Connection, op: Op) -> None:
        try:
            connection.execute("SAVEPOINT op")
            op.result = op.call(connection)
            connection.execute("RELEASE op")
        except BaseException as error:
            self._fail([op], error)
            if connection.in_transaction:
                connection.execute("ROLLBACK TO op")
                connection.execute("RELEASE op")

    def _after_rollback(self, connection: sqlite3.Connection, batch: list[Op], culprit: Op) -> None:
        """SQLite itself ended the transaction (out of memory, some I/O errors) and took the group's work with it.

        The others are not at fault: each gets a transaction of its own.
        """
        for op in batch:
            if op is not culprit and op.error is None:
                self._execute(connection, [op])

    def _fail(self, ops: list[Op], error: BaseException) -> None:
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


def _settle_all(batch: list[Op]) -> None:
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
