"""What has happened in a session: its history, the events of this moment, and what is between the two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from aerodrome.events import SessionEvent
from aerodrome.model import Principal, SessionRow, TurnRow
from aerodrome.sessions.api import MessagePage
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.history import history_page
from aerodrome.sessions.hub import Channel, EventHub
from aerodrome.sessions.members import allowed, tag
from aerodrome.sessions.parsing import parse
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.replay import BEGINNING, behind, behind_latest, last_id, missed, seen_elsewhere
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.wake import read_history
from aerodrome.statestore.history import rest_of_turn, stored_events


class Reading:
    """The methods raise `NotFound` when there is no such session that the principal may read."""

    def __init__(self, context: SessionContext, sessions: LiveSessions) -> None:
        self._context = context
        self._sessions = sessions

    async def history(
        self, who: Principal, session_id: str, *, cursor: str | None = None, limit: int = 200
    ) -> MessagePage:
        row = await allowed(self._context, self._sessions, who, session_id)
        text = await read_history(self._context, row.key)
        # Which message is whose the ledger may learn only when the turn ends.
        live = self._sessions.find(row.key)
        here = {run.id: run for run in live.turns.all} if live is not None else {}
        turns = [here[turn.id].row if turn.id in here else turn for turn in await self._context.ledger.turns(row.key)]
        return await parse(partial(history_page, turns=turns, cursor=cursor, limit=limit), text)

    async def events(self, who: Principal, session_id: str, *, after: str | None = None) -> Channel:
        row = await allowed(self._context, self._sessions, who, session_id)
        hub = self._sessions.hub(row.key)
        # From here on nothing is missed; what is published while we look waits in the channel.
        channel, kept = hub.subscribe(tag(who, row)), hub.kept()
        try:
            # Deleted meanwhile, or shared no more, it would have told a reader that was not there yet.
            await allowed(self._context, self._sessions, who, session_id)
            if after is not None:
                channel.preload(await self._missed(row, hub, channel, kept, after))
        except BaseException:
            channel.close()
            raise
        return channel

    async def turn_events(
        self, who: Principal, session_id: str, turn_id: str, *, after: str | None = None
    ) -> tuple[TurnRun, Channel] | None:
        """A turn that is under way here, and what happens in it until its end: all, or what comes behind a cursor.
        ``None``: it has ended, or is not here."""
        row = await allowed(self._context, self._sessions, who, session_id)
        live = self._sessions.find(row.key)
        run = live.find(turn_id) if live is not None else None
        if live is None or run is None or run.ended:
            return None
        channel, kept = run.events(who.user), live.hub.kept()
        try:
            await allowed(self._context, self._sessions, who, session_id)
            if run.begun_behind is not None:
                place = after or run.begun_behind or BEGINNING
                channel.preload(await self._missed(row, live.hub, channel, kept, place))
        except BaseException:
            channel.close()
            raise
        return run, channel

    async def rest_of_turn(
        self, who: Principal, session_id: str, turn: TurnRow, *, after: str | None = None
    ) -> Sequence[SessionEvent]:
        """What the history has of a turn that has ended: all of it, or what comes behind a cursor."""
        text = await read_history(self._context, (await allowed(self._context, self._sessions, who, session_id)).key)
        place = after.partition("~")[0] if after else None
        found = await parse(partial(rest_of_turn, message_id=turn.message_id, after=place), text)
        return [self._context.host_event("aerodrome.gap", {"after": after})] if found is None else found

    async def position(self, who: Principal, session_id: str) -> str:
        """The cursor at which the session's events stand now."""
        row = await allowed(self._context, self._sessions, who, session_id)
        live = self._sessions.find(row.key)
        if live is not None and live.loaded is not None and live.hub.position:
            return live.hub.position
        return await parse(last_id, await read_history(self._context, row.key)) or BEGINNING

    async def events_behind(self, who: Principal, session_id: str, known: Sequence[str]) -> Sequence[SessionEvent]:
        """What was told, here or elsewhere, behind the latest of these events (`known`: their ids, the latest first).
        None when none of them is found."""
        row = await allowed(self._context, self._sessions, who, session_id)
        # Before the history is read: what comes after this the caller hears by itself.
        hub = self._sessions.find_hub(row.key)
        kept, position, anchors = (hub.kept(), hub.position, hub.anchors) if hub is not None else ([], "", ())
        text = await read_history(self._context, row.key)
        look = partial(behind_latest, known=known, kept=kept, position=position, anchors=anchors)
        return await parse(look, text)

    async def stored_events(self, who: Principal, session_id: str) -> Sequence[SessionEvent]:
        """The events of the session's history."""
        row = await allowed(self._context, self._sessions, who, session_id)
        return await parse(stored_events, await read_history(self._context, row.key))

    async def _missed(
        self, row: SessionRow, hub: EventHub, channel: Channel, kept: Sequence[SessionEvent], after: str
    ) -> Sequence[SessionEvent]:
        """What happened behind a cursor until the subscription."""
        if (found := behind(kept, after)) is not None:
            return found
        anchors = hub.anchors
        text = await read_history(self._context, row.key)
        if hub.position and not channel.position:
            # Loaded here as we read, perhaps with more: nobody is told what its history had by then.
            text = await read_history(self._context, row.key)
        hub.position = hub.position or last_id(text)  # now: what comes behind it is told when it is loaded
        seen = await parse(
            partial(seen_elsewhere, after=after, kept=kept, position=channel.position, anchors=anchors), text
        )
        if seen:
            # What is behind them, too, is told when the session is loaded here, which may have happened just now.
            channel.leave_out(seen)
            return ()
        look = partial(
            missed,
            after=after,
            kept=kept,
            late=channel.backlog,
            position=hub.position,
            max_bytes=self._context.options.reader_bytes,
            anchors=anchors,
        )
        found = await parse(look, text)
        if found is None:
            return [self._context.host_event("aerodrome.gap", {"after": after})]
        return found
