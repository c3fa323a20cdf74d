"""Connections that were given up with a statement under way: their processes at the server are ended.

What was sent may be read there much later, by a process that stood still, or out of a buffer of the network; and be
done behind the repetition and all that has followed it. A process that is ended does nothing more. So this comes before
the next statement, whosever that is.

It is no more than nearly certain: a pooler has other processes, and what is asked after a fail-over is another server.
What must not be done late under any circumstances finds that out by itself, like the writes of session files.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, NamedTuple

import psycopg
import structlog

log = structlog.get_logger(__name__)

#: Most seconds to wait for the processes to end. One that stands still ends as the first thing when it goes on.
_WAIT = 0.5
#: A number may be given to another process as soon as the first has ended: that is ours, too, and younger.
_END = """
    SELECT pg_terminate_backend(a.pid, %(wait)s)
    FROM unnest(%(pids)s::integer[], %(ages)s::double precision[]) AS lost (pid, age)
    JOIN pg_stat_activity AS a USING (pid)
    WHERE a.usename = current_user AND a.datname = current_database() AND a.pid <> pg_backend_pid()
      AND a.backend_start < clock_timestamp() - lost.age * interval '1 second'
"""


class _Lost(NamedTuple):
    pid: int
    at: float


class LostConnections:
    """Of one database.

    Args:
        patience: Seconds after which a connection is given up on which a statement is not answered.
    """

    def __init__(self, patience: float) -> None:
        self._wait = round(min(_WAIT, patience / 2) * 1000)
        self._lost: list[_Lost] = []
        #: Nobody goes on before they have ended.
        self._ending = asyncio.Lock()

    def add(self, pid: int) -> None:
        """This process of the server has not answered, and the connection to it is closed."""
        self._lost.append(_Lost(pid, monotonic()))

    async def end(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Have the processes ended through this connection, which is in autocommit.

        Raises:
            psycopg.Error: The server could not be asked; it is tried again the next time.
        """
        while self._lost:
            async with self._ending:
                lost = list(self._lost)
                if not lost:
                    return
                now = monotonic()
                # One after the other.
                wait = max(1, self._wait // len(lost))
                values = {"wait": wait, "pids": [one.pid for one in lost], "ages": [now - one.at for one in lost]}
                try:
                    ended = await (await connection.execute(_END, values)).fetchall()
                except psycopg.errors.InsufficientPrivilege as error:
                    ended = []
                    log.warning("postgresql.not_ended", error=str(error))
                del self._lost[: len(lost)]
                if ended:
                    log.warning("postgresql.connections_ended", connections=len(ended))
