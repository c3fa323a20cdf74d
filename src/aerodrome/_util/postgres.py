"""A PostgreSQL database for asyncio: a few connections, deadlines, and repetition of what may be repeated.

**One statement** (`execute`) is its own transaction and costs one round trip. **Several** (`write`, `read`) share a
transaction; `read` sees one snapshot.

**Repetition.** A restart of the server, a fail-over, a lost connection or a serialisation failure is met by trying
again, on a new connection, until `deadline` seconds have passed since the call: then it is `StoreUnavailable`. An
attempt whose connection was lost while its commit was under way is *in doubt*: it may have been done. So whatever is
passed here must bear being done twice, or find out: `repeated` of the `Result` or `Transaction` says that an earlier
attempt is in doubt, and a row that is there already may then be one's own.

**Late.** A connection that is given up without an answer may still be read at the server, behind the repetition. Its
process there is ended first (`_util.postgres_lost`).

**Hanging.** The server ends a statement after `statement_timeout` and a wait for a lock after `lock_timeout`; a server
that does not answer at all has its connection cut a little later, on our side.

**Cancellation.** Whoever is cancelled has its statement cancelled at the server. It may have been done all the same.

Connections stay with one session of the server: a pooler in between has to pool sessions, not transactions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self, TypeVar

import psycopg
import structlog
from psycopg import sql
from psycopg.pq import TransactionStatus

from aerodrome._util.postgres_connections import Connection, Pool, conninfo_of, cut_after
from aerodrome._util.postgres_lost import LostConnections
from aerodrome._util.postgres_trouble import Trouble, of_connecting, of_statement
from aerodrome.errors import AerodromeError, ConfigError, StoreUnavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")
Parameters = Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True, slots=True)
class Result:
    rows: list[tuple[Any, ...]]
    #: Rows that were changed, or found.
    count: int
    #: An earlier attempt at the same is in doubt: it may have been done.
    repeated: bool

    @property
    def row(self) -> tuple[Any, ...] | None:
        return self.rows[0] if self.rows else None


class Transaction:
    """What an operation of `Postgres.write` or `read` works with. Somebody else begins it and ends it."""

    def __init__(self, connection: Connection, patience: float, repeated: bool) -> None:
        self._connection = connection
        self._patience = patience
        #: An earlier attempt at the same is in doubt: it may have been done.
        self.repeated = repeated

    async def execute(self, query: str, parameters: Parameters | None = None) -> Result:
        return await _execute(self._connection, query, parameters, self._patience, self.repeated)


Operation = Callable[[Transaction], Awaitable[T]]


class Postgres:
    """One database, shared by the adapters that are given this object. Whoever makes it opens and closes it.

    Args:
        url: ``postgresql://...``; whatever libpq understands in it (`sslmode`, several hosts, ...) counts.
        current: What gives the address for a new connection, where user and password may change.
        schema: Of the tables; first in the search path of every connection.
        max_connections: Most connections at the same time; whoever finds none free waits, up to its deadline.
        deadline: Seconds a call goes on trying while the server is away.
        statement_timeout: Seconds after which the server ends a statement.
        lock_timeout: Seconds a statement waits for a lock.
        hang: Seconds after which a connection is cut on which a statement was not answered at all; two more than
            `statement_timeout` unless given.

    Raises:
        ConfigError: `url` cannot be understood.
    """

    def __init__(
        self,
        url: str,
        *,
        current: Callable[[], str] | None = None,
        schema: str = "aerodrome",
        max_connections: int = 10,
        deadline: float = 15.0,
        statement_timeout: float = 10.0,
        lock_timeout: float = 5.0,
        hang: float | None = None,
    ) -> None:
        self.schema = schema
        self.deadline = deadline
        self._url, self._conninfo = url, conninfo_of(url)
        self._current = current
        self._patience = statement_timeout + 2.0 if hang is None else hang
        self._setup = sql.SQL(
            "SET search_path TO {schema}; SET statement_timeout = {statement}; SET lock_timeout = {lock};"
            " SET idle_in_transaction_session_timeout = {idle}; SET client_encoding = 'UTF8'"
        ).format(
            schema=sql.Identifier(schema),
            statement=sql.Literal(round(statement_timeout * 1000)),
            lock=sql.Literal(round(lock_timeout * 1000)),
            idle=sql.Literal(round(statement_timeout * 2000)),
        )
        self._pool = Pool(self.connect, max_connections)
        self._lost = LostConnections(self._patience)
        self._health = _Health()

    async def open(self) -> None:
        """Make a first connection; waits only for a server that says it is starting. Raises `StoreUnavailable`."""
        give_up = monotonic() + self.deadline
        self._pool.closed = False
        while True:
            try:
                async with self._pool.lend(give_up):
                    return
            except psycopg.Error as error:
                trouble = of_connecting(error)
                if not trouble.what.startswith("is starting up") or monotonic() > give_up:
                    self._pool.closed = True
                    raise self._health.translate(error, trouble) from error
            await asyncio.sleep(0.2)

    async def aclose(self) -> None:
        """Close the connections; those lent out when they come back. Safe to call twice; it may be opened again."""
        await self._pool.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def connect(self) -> Connection:
        """A connection outside the pool, in autocommit, such as for LISTEN; the caller closes it.

        Raises:
            psycopg.Error: It cannot be made.
        """
        connection = await psycopg.AsyncConnection.connect(self._present_conninfo(), autocommit=True)
        try:
            with cut_after(connection, self._patience):
                await connection.execute(self._setup)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _present_conninfo(self) -> str:
        if self._current is not None and (url := self._current()) != self._url:
            self._url = url
            try:
                self._conninfo = conninfo_of(url)
            except ConfigError as error:
                log.warning("postgresql.address_kept", reason=error.detail)
        return self._conninfo

    def watched(self, connection: Connection) -> AbstractContextManager[None]:
        """Cut a connection that `connect` made when the block takes longer than any statement may."""
        return cut_after(connection, self._patience)

    async def execute(
        self,
        query: str,
        parameters: Parameters | None = None,
        *,
        binary: bool = False,
        deadline: float | None = None,
    ) -> Result:
        """Run one statement as a transaction of its own: one round trip.

        Args:
            binary: Have the rows sent in binary, which halves large values of type bytea.

        Raises:
            StoreUnavailable: Away for too long, locked, full, read-only, ...
        """

        async def attempt(connection: Connection, doubt: _Doubt) -> Result:
            doubt.begins()
            return await _execute(connection, query, parameters, self._patience, doubt.repeated, binary=binary)

        return await self._attempts(attempt, deadline)

    async def write(self, operation: Operation[T], *, deadline: float | None = None) -> T:
        """Run the operation in a transaction; returns when it is committed.

        It may run more than once, so it touches nothing but the transaction. Whatever it raises takes back what
        it wrote. Raises `StoreUnavailable` as `execute` does.
        """
        return await self._transaction("BEGIN", operation, deadline)

    async def read(self, operation: Operation[T], *, deadline: float | None = None) -> T:
        """Run the operation on one snapshot of the database."""
        return await self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", operation, deadline)

    async def _transaction(self, begin: str, operation: Operation[T], deadline: float | None) -> T:
        async def attempt(connection: Connection, doubt: _Doubt) -> T:
            await _execute(connection, begin, None, self._patience, False)
            try:
                result = await operation(Transaction(connection, self._patience, doubt.repeated))
                doubt.begins()
                with cut_after(connection, self._patience):
                    ended = await connection.execute("COMMIT")
            except BaseException:
                await _roll_back(connection)
                raise
            if ended.statusmessage != "COMMIT":
                raise RuntimeError("the operation went on after a failed statement; the transaction was rolled back")
            return result

        return await self._attempts(attempt, deadline)

    async def _attempts(self, attempt: Callable[[Connection, _Doubt], Awaitable[T]], deadline: float | None) -> T:
        give_up = monotonic() + (self.deadline if deadline is None else deadline)
        doubt = _Doubt()
        tries = 0
        while True:
            try:
                async with self._pool.lend(give_up) as connection:
                    fresh = False
                    pid = connection.info.backend_pid  # which a broken one does not know any more
                    try:
                        with cut_after(connection, self._patience):
                            await self._lost.end(connection)
                        result = await attempt(connection, doubt)
                    except psycopg.Error as error:
                        trouble = of_statement(error)
                        if doubt.ends(trouble.lost) and error.sqlstate is None:
                            self._lost.add(pid)
                        if trouble.lost:
                            await connection.close()
                        failure: psycopg.Error = error
                    except BaseException:
                        # Cancelled, and the server did not confirm it.
                        if doubt.ends(connection.closed):
                            self._lost.add(pid)
                        raise
                    else:
                        self._health.well()
                        return result
            except psycopg.Error as error:
                fresh, trouble, failure = True, of_connecting(error), error
            if trouble.lost:
                # The others will hardly have survived what this one has not.
                await self._pool.forget_idle()
            # Connecting again helps a misconfigured server no more than it did at first, but its clients now know
            # that it was right before: what refuses a log-in may be half-way through a restart or a fail-over.
            if not (trouble.passing or (fresh and self._health.was_well)) or monotonic() >= give_up:
                raise self._health.translate(failure, trouble) from failure
            if tries or fresh:
                pause = min(1.0, 0.05 * 2 ** min(tries, 5)) * random.uniform(0.5, 1.0)  # noqa: S311
                await asyncio.sleep(min(pause, max(0.0, give_up - monotonic())))
            tries += 1


class _Doubt:
    """Whether what is attempted may have been done by an attempt of which no answer came."""

    def __init__(self) -> None:
        self.repeated = False
        self._committing = False

    def begins(self) -> None:
        """From here on the server may commit."""
        self._committing = True

    def ends(self, lost: bool) -> bool:
        """The attempt failed: whether it may have been done. With an answer from the server it was certainly not."""
        doubtful = self._committing and lost
        self.repeated = self.repeated or doubtful
        self._committing = False
        return doubtful


class _Health:
    """Words for callers, and one line of the log for each spell of trouble instead of one a call."""

    def __init__(self) -> None:
        self.was_well = False
        self._trouble: str | None = None

    def translate(self, error: psycopg.Error, trouble: Trouble) -> AerodromeError:
        if trouble.what != self._trouble:
            self._trouble = trouble.what
            log.error("postgresql.unavailable", trouble=trouble.what, sqlstate=error.sqlstate, error=str(error))
        return StoreUnavailable(f"the PostgreSQL server {trouble.what}", retry_after=trouble.retry_after)

    def well(self) -> None:
        self.was_well = True
        if self._trouble is not None:
            self._trouble = None
            log.info("postgresql.recovered")


async def _execute(
    connection: Connection,
    query: str,
    parameters: Parameters | None,
    patience: float,
    repeated: bool,
    *,
    binary: bool = False,
) -> Result:
    with cut_after(connection, patience):
        # The text is ours, from a file or a constant; values are parameters.
        cursor = await connection.execute(query.encode(), parameters, binary=binary)
        rows = await cursor.fetchall() if cursor.description is not None else []
        return Result(rows, cursor.rowcount, repeated)


async def _roll_back(connection: Connection) -> None:
    """End the transaction, or else the connection: whoever borrows it next must not find it half-way."""
    if connection.info.transaction_status is TransactionStatus.IDLE:
        return
    try:
        with cut_after(connection, 2.0):
            await connection.execute("ROLLBACK")
    except BaseException as error:
        await connection.close()
        if not isinstance(error, psycopg.Error):
            raise
