"""An accepted prompt on its way: the handle the front doors hold (`sessions.api.Turn`)."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from aerodrome._util.tasks import Flag, first_of
from aerodrome.errors import AerodromeError, TurnFailed
from aerodrome.events import SessionEvent
from aerodrome.model import TurnRow
from aerodrome.sessions.hub import Channel
from aerodrome.sessions.tracker import TurnTracker
from aerodrome.telemetry.trace import Span

log = structlog.get_logger(__name__)


class TurnRun:
    """A turn from its admission to its end.

    The row changes as the turn goes on; the result is set once. A run may be awaited by several callers (a repeated
    idempotency key joins the first).
    """

    def __init__(
        self,
        row: TurnRow,
        *,
        reader_bytes: int,
        on_abandon: Callable[[TurnRun], None] | None = None,
        message: Mapping[str, Any] | None = None,
        joins: bool = False,
        told_at_end: bool = False,
    ) -> None:
        self.row = row
        #: What is handed to the runtime: parameters of `session.send`.
        self.message: Mapping[str, Any] = message or _message_of(row)
        #: It does not wait for the end of a running turn: the runtime's own queue takes it.
        self.joins = joins
        self._told_at_end = told_at_end
        #: The id under which the runtime took the prompt first; a client knows its message by it.
        self.first_message_id: str | None = None
        #: The session's cursor before the first of its events; ``None``: nothing was told of it yet.
        self.begun_behind: str | None = None
        #: True once the ledger has it, False when it could not be recorded and must not be sent.
        self.recorded: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        #: Set when the turn is to end: with ``None`` it is aborted, with an error it ends with that.
        self.stop_asked: asyncio.Future[AerodromeError | None] = asyncio.get_running_loop().create_future()
        #: Nothing stands between its acceptance and its start: the ledger is told of both at once.
        self.at_once = False
        #: Its part in a trace, from its acceptance to its end.
        self.span = Span()
        #: When it was accepted, got its place among the turns that run, and began to be answered: the loop's times.
        self.accepted_at = asyncio.get_running_loop().time()
        self.placed_at: float | None = None
        self.answered_at: float | None = None
        #: How often the prompt was handed to a runtime.
        self.attempts = 0
        #: The runtime was asked to abort the latest attempt.
        self.abort_sent = False
        #: Of the latest attempt; every attempt has its own.
        self.tracker = TurnTracker()
        #: What the ledger is being told of the turn; its end is recorded behind it.
        self.notes: list[asyncio.Task[Any]] = []
        #: Will tell the ledger under which id the runtime has the prompt, should the end not come first.
        self.naming: asyncio.TimerHandle | None = None
        self._reader_bytes = reader_bytes
        self._on_abandon = on_abandon
        self._callers = 1
        self._channels: set[Channel] = set()
        #: Of those who wait and may be told to go: settled with the reason.
        self._expelled: dict[str, asyncio.Future[Exception]] = {}
        self._taken = Flag()
        self._result: asyncio.Future[TurnRow] = asyncio.get_running_loop().create_future()
        # An error nobody waits for any more (the client has gone) is no news.
        self._result.add_done_callback(lambda result: result.cancelled() or result.exception())

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def ended(self) -> bool:
        return self._result.done()

    # --- for the callers ---

    async def wait(self, reader: str | None = None) -> TurnRow:
        if reader is None:
            # `shield`: the turn belongs to nobody's connection.
            return await asyncio.shield(self._result)
        expelled = self._expelled.get(reader)
        if expelled is None:
            expelled = self._expelled[reader] = asyncio.get_running_loop().create_future()
        waiting: set[asyncio.Future[Any]] = {self._result, expelled}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if expelled.done():
            raise copy.copy(expelled.result())
        return self._result.result()

    async def over(self, timeout: float | None = None) -> bool:
        """Wait for the end, whatever it is. ``False``: it has not come within `timeout` seconds."""
        await asyncio.wait({self._result}, timeout=timeout)
        return self._result.done()

    async def taken(self) -> str | None:
        """Wait until a runtime has taken the prompt; returns the id it gave the message then. ``None``: the turn has
        ended before."""
        await first_of(self._taken.raised, self._result)
        return self.first_message_id

    def forget_naming(self) -> None:
        if self.naming is not None:
            self.naming.cancel()
            self.naming = None

    @property
    def followed(self) -> bool:
        """Whether anybody may be told of it before it has ended (`SendMessage.told_at_end`)."""
        return bool(self._channels) or not self._told_at_end

    def events(self, reader: str | None = None) -> Channel:
        channel = Channel(self._reader_bytes, self._channels.discard, reader=reader)
        if self.ended:
            channel.finish()
        else:
            self._channels.add(channel)
        return channel

    def join(self) -> TurnRun:
        """The same turn for one more caller."""
        self._callers += 1
        return self

    def abandon(self) -> None:
        self._callers -= 1
        # One who repeated the prompt under the same key, perhaps the same client anew, still waits for it.
        if self._callers <= 0 and self._on_abandon is not None and not self.ended:
            self._on_abandon(self)

    # --- for the session ---

    def stop(self, error: AerodromeError | None = None) -> None:
        """Ask for the end. The first to ask is heard."""
        if not self.stop_asked.done():
            self.stop_asked.set_result(error)

    def sent_as(self, message_id: str) -> None:
        """A runtime has taken the prompt."""
        self.row = replace(self.row, message_id=message_id)
        self.first_message_id = self.first_message_id or message_id
        self._taken.set()

    def publish(self, event: SessionEvent, behind: str = "") -> None:
        if self.begun_behind is None:
            self.begun_behind = behind
        for channel in self._channels:
            channel.put(event)

    def expel(self, reader: str, error: Exception) -> None:
        """This user may not see any more what becomes of the turn, which goes on."""
        if (expelled := self._expelled.pop(reader, None)) is not None:
            expelled.set_result(error)
        for channel in list(self._channels):
            if channel.reader == reader:
                self._channels.discard(channel)
                channel.cut(error)

    def resolve(self, row: TurnRow) -> None:
        assert row.status.is_final, row.status
        self.row = row
        self.span.end()
        if not self._result.done():
            self._result.set_result(row)
        self._finish_channels()

    def fail(self, error: AerodromeError) -> None:
        """The turn's end could not be recorded: who waits for it gets the error."""
        self.span.end(error.code)
        if not self._result.done():
            self._result.set_exception(error)
        self._finish_channels()

    def _finish_channels(self) -> None:
        for channel in list(self._channels):
            channel.finish()


def _message_of(row: TurnRow) -> dict[str, Any]:
    message: dict[str, Any] = {"prompt": row.prompt}
    if row.attachments:
        message["attachments"] = row.attachments
    return message


def error_of(error: AerodromeError) -> dict[str, Any]:
    """What the ledger keeps of an error."""
    kept: dict[str, Any] = {"code": error.code, "detail": error.detail}
    if error.retry_after is not None:
        kept["retry_after"] = error.retry_after
    return kept


def failure_of(run: TurnRun, error: Exception) -> AerodromeError:
    """What a turn is told to have ended with, also when the error is a bug of ours."""
    if isinstance(error, AerodromeError):
        return error
    log.error("turn.crashed", session=str(run.row.key), turn=run.id, exc_info=error)
    return TurnFailed(f"internal error: {type(error).__name__}")
