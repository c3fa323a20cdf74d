"""The sessions of one node: what the front doors call (`sessions.api.Sessions`).

A session costs memory here only while it is *live*: resident in a runtime, or with turns waiting. The directory is
read on every access, and ownership is its `owner` column, never something read out of an id (trap 4).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog

from aerodrome.coordination.ports import Page
from aerodrome.errors import (
    Conflict,
    Draining,
    Invalid,
    NotFound,
    SessionBusy,
    StoreUnavailable,
    TooLarge,
    TurnInterrupted,
)
from aerodrome.events import SessionEvent
from aerodrome.model import (
    LastTurn,
    OnBusy,
    Principal,
    RuntimeKey,
    SessionKey,
    SessionKind,
    SessionRow,
    SessionState,
    TurnRow,
    TurnStatus,
    valid_session_id,
)
from aerodrome.runtime.supervisor import ManagedRuntime
from aerodrome.sessions.api import Ask, MessagePage, OpenSession, SendMessage
from aerodrome.sessions.context import SessionContext, runtime_key
from aerodrome.sessions.erase import erase
from aerodrome.sessions.history import history_page
from aerodrome.sessions.hub import Channel, EventHub, stored_part
from aerodrome.sessions.live import LiveSession
from aerodrome.sessions.machine import State
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.wake import read_history, take_lease
from aerodrome.statestore.history import events_after

log = structlog.get_logger(__name__)

MAX_TITLE = 200
MAX_SYSTEM_MESSAGE = 100_000


class SessionService:
    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._live: dict[SessionKey, LiveSession] = {}
        self._hubs: dict[SessionKey, EventHub] = {}
        self._draining = False
        context.pool.make_room = self.make_room
        context.pool.on_lost = self._runtime_lost

    @property
    def live(self) -> list[LiveSession]:
        return list(self._live.values())

    def find_live(self, key: SessionKey) -> LiveSession | None:
        return self._live.get(key)

    @property
    def draining(self) -> bool:
        return self._draining

    # --- sessions ---

    async def open_session(self, who: Principal, request: OpenSession) -> tuple[SessionRow, bool]:
        self._accepting()
        self._check(who, request)
        options = self._context.options
        now = self._context.clock.time()
        stored_options: dict[str, Any] = {"streaming": request.streaming}
        if request.system_message is not None:
            stored_options["system_message"] = request.system_message
        if request.tools is not None:
            stored_options["tools"] = list(request.tools)
        row = SessionRow(
            key=SessionKey(who.tenant, request.id or str(uuid.uuid4())),
            owner=who.user,
            kind=request.kind,
            isolation=options.isolation_of(who.tenant),
            model=request.model,
            title=request.title,
            options=stored_options,
            created_at=now,
            last_used_at=now,
        )
        present = await self._context.directory.insert(row)
        if present is None:
            return row, True
        if not _may_read(who, present):
            raise NotFound("no session under this id can be opened by you; choose another id, or leave it out")
        return await self._as_it_stands(present), False

    async def get(self, who: Principal, session_id: str) -> SessionRow:
        return await self._as_it_stands(await self._readable(who, session_id))

    async def list(self, who: Principal, *, cursor: str | None = None, limit: int = 50) -> Page:
        page = await self._context.directory.list(who.tenant, owner=who.user, cursor=cursor, limit=limit)
        rows = [await self._as_it_stands(row) for row in page.rows]
        return Page([row for row in rows if row.kind is not SessionKind.EPHEMERAL], page.next)

    async def retitle(self, who: Principal, session_id: str, title: str) -> SessionRow:
        row = await self._readable(who, session_id)
        _check_title(title)
        await self._context.directory.update(row.key, title=title)
        return await self.get(who, session_id)

    async def delete(self, who: Principal, session_id: str) -> None:
        await self.delete_row(await self._readable(who, session_id))

    async def delete_row(self, row: SessionRow) -> None:
        """Everything of the session goes, from the runtime and from every store (see `erase`)."""
        live = self._live.get(row.key)
        if live is None:
            # Nobody else may run it while it is being deleted.
            await take_lease(self._context, row)
            live = self._live[row.key] = self._new_live(row)
        await live.close(NotFound("the session has been deleted"))
        try:
            await self._erase(row)
        finally:
            self._live.pop(row.key, None)
            self._hubs.pop(row.key, None)

    async def _erase(self, row: SessionRow) -> None:
        context = self._context
        await erase(
            row.key, directory=context.directory, leases=context.leases, ledger=context.ledger, files=context.files
        )
        log.info("session.deleted", session=str(row.key))

    # --- turns ---

    async def send(self, who: Principal, session_id: str, message: SendMessage) -> TurnRun:
        self._accepting()
        row = await self._readable(who, session_id)
        if len(message.prompt.encode("utf-8", "surrogatepass")) > self._context.options.max_prompt:
            raise TooLarge(f"the prompt is over the limit of {self._context.options.max_prompt} bytes")
        turn = TurnRow(
            key=row.key,
            id=f"turn_{uuid.uuid4().hex}",
            author=who.user,
            status=TurnStatus.QUEUED,
            prompt=message.prompt,
            attachments=message.attachments,
            idempotency_key=message.idempotency_key,
            digest=_digest(message),
            created_at=self._context.clock.time(),
        )
        run = TurnRun(turn, reader_bytes=self._context.options.reader_bytes, on_abandon=self._abandoned)
        return await self._submit(row, run, message.on_busy or self._context.options.on_busy)

    async def _submit(self, row: SessionRow, run: TurnRun, on_busy: OnBusy) -> TurnRun:
        if run.row.idempotency_key is not None and (earlier := await self._earlier(row, run)) is not None:
            return earlier
        live = self._ensure_live(row)
        steering = on_busy is OnBusy.STEER and live.state is State.RUNNING
        if not steering:
            live.admit(run, on_busy)
        try:
            present = await self._context.ledger.accept(run.row)
        except BaseException:
            live.withdraw(run)
            raise
        if present is not None:
            live.withdraw(run)
            return self._join(run, present)
        if steering and not await live.steer(run):
            live.admit(run, OnBusy.ENQUEUE)
        run.recorded.set_result(True)
        return run

    async def _earlier(self, row: SessionRow, run: TurnRun) -> TurnRun | None:
        """The turn that was accepted under the same idempotency key, if there is one.

        Asked before admission, so that a repeated prompt is not refused as busy because of itself.
        """
        assert run.row.idempotency_key is not None
        present = await self._context.ledger.by_idempotency_key(row.key, run.row.idempotency_key)
        return None if present is None else self._join(run, present)

    def _join(self, run: TurnRun, present: TurnRow) -> TurnRun:
        if present.digest != run.row.digest:
            raise Conflict("this idempotency key was used for another prompt in this session")
        live = self._live.get(present.key)
        if live is not None and (running := live.find(present.id)) is not None:
            return running
        if not present.status.is_final:
            raise SessionBusy("the prompt with this idempotency key is still being worked on", retry_after=1.0)
        run.resolve(present)
        return run

    async def ask(self, who: Principal, request: Ask) -> TurnRun:
        opened = OpenSession(
            model=request.model,
            system_message=request.system_message,
            kind=SessionKind.EPHEMERAL,
            streaming=request.streaming,
        )
        row, _ = await self.open_session(who, opened)
        try:
            return await self.send(who, row.key.id, SendMessage(request.prompt, request.attachments))
        except BaseException:
            await self.delete_row(row)
            raise

    async def abort(self, who: Principal, session_id: str) -> bool:
        row = await self._readable(who, session_id)
        live = self._live.get(row.key)
        return live is not None and await live.abort()

    async def answer(self, who: Principal, session_id: str, request_id: str, answer: dict[str, Any]) -> None:
        row = await self._readable(who, session_id)
        live = self._live.get(row.key)
        if live is None or live.activation is None:
            raise NotFound("no such request is open")
        await live.activation.answer(request_id, answer)

    def _abandoned(self, run: TurnRun) -> None:
        if self._context.options.cancel_on_disconnect and (live := self._live.get(run.row.key)) is not None:
            live.request_abort(run)

    # --- history and events ---

    async def history(
        self, who: Principal, session_id: str, *, cursor: str | None = None, limit: int = 200
    ) -> MessagePage:
        row = await self._readable(who, session_id)
        text = await read_history(self._context, row)
        turns = await self._context.ledger.turns(row.key)
        return history_page(text, turns, cursor=cursor, limit=limit)

    async def events(self, who: Principal, session_id: str, *, after: str | None = None) -> Channel:
        row = await self._readable(who, session_id)
        hub = self._hubs.setdefault(row.key, self._new_hub())
        channel = hub.subscribe()
        if after is None:
            return channel
        try:
            channel.preload(await self._missed(row, hub, after))
        except BaseException:
            channel.close()
            raise
        return channel

    async def _missed(self, row: SessionRow, hub: EventHub, after: str) -> Sequence[SessionEvent]:
        """What happened behind a cursor until now; the channel has been open since before we look.

        Kept events come with everything; when the place is older than what is kept, the stored ones go before.
        """
        kept = hub.kept_after(after)
        if kept is not None:
            return kept
        before = hub.kept()
        stored = events_after(await read_history(self._context, row), stored_part(after))
        if stored is None:
            return [self._context.host_event("aerodrome.gap", {"after": after})]
        known = {event.id for event in before}
        # Published while we read the store: the channel has them, they must not come twice.
        late = {event.id for event in hub.kept()} - known
        older = [event for event in stored if event.id not in known and event.id not in late]
        return older + before

    # --- residency ---

    async def make_room(self, key: RuntimeKey | None) -> bool:
        """See `runtime.pool.MakeRoom`: least recently used first, never one in a turn (trap 10)."""
        if key is not None:
            idle = [live for live in self.live if live.evictable and runtime_key(live.row) == key]
            for live in sorted(idle, key=lambda live: live.last_used):
                if await self.hibernate(live):
                    return True
            return False
        by_runtime: dict[str, list[LiveSession]] = {}
        for live in self.live:
            if live.activation is not None:
                by_runtime.setdefault(live.activation.runtime.id, []).append(live)
        quiet = [group for group in by_runtime.values() if all(live.evictable for live in group)]
        if not quiet:
            return False
        chosen = min(quiet, key=lambda group: max(live.last_used for live in group))
        return all([await self.hibernate(live) for live in chosen])

    async def hibernate(self, live: LiveSession) -> bool:
        """Put a session to sleep and forget it. ``False``: it is not idle (any more)."""
        if not await live.hibernate():
            return False
        if not live.busy and live.state is State.ASLEEP and self._live.get(live.row.key) is live:
            del self._live[live.row.key]
            self._forget_hub(live.row.key)
        return True

    def forget_asleep(self) -> None:
        """Let go of sessions that lost their runtime, and of event hubs that nobody reads."""
        for live in self.live:
            if live.state is State.ASLEEP and not live.busy:
                del self._live[live.row.key]
        for key in list(self._hubs):
            if key not in self._live:
                self._forget_hub(key)

    def _runtime_lost(self, runtime: ManagedRuntime) -> None:
        for live in self.live:
            if live.activation is not None and live.activation.runtime is runtime:
                self._context.tasks.start(live.runtime_lost(), "runtime lost")

    # --- start and end of the node ---

    async def recover(self) -> int:
        """After a crash: report the turns that were under way as interrupted. Returns how many.

        Ephemeral sessions that were left behind are deleted. Sessions that another living node runs are its own.
        """
        recovered = 0
        for turn in await self._context.ledger.unfinished():
            if await self._context.leases.holder(turn.key) is not None:
                continue
            error = TurnInterrupted("the node that ran the turn has gone")
            now = self._context.clock.time()
            detail = {"code": error.code, "detail": error.detail}
            if await self._context.ledger.finish(turn.key, turn.id, TurnStatus.INTERRUPTED, now, error=detail):
                recovered += 1
            last = LastTurn(turn.id, TurnStatus.INTERRUPTED)
            await self._context.directory.update(turn.key, state=SessionState.HIBERNATED, last_turn=last)
            row = await self._context.directory.get(turn.key)
            if row is not None and row.kind is SessionKind.EPHEMERAL:
                await self._erase(row)
        if recovered:
            log.warning("sessions.recovered", interrupted_turns=recovered)
        return recovered

    async def give_up_all(self) -> None:
        """Our leases are void: another node may run our sessions. Nothing more is written for them."""
        error = TurnInterrupted("this node was held for dead and its sessions may have moved")
        for live in self.live:
            if live.activation is not None:
                live.activation.discard(error.detail, error)

    async def drain(self, timeout: float) -> None:
        """Take nothing new, let running turns end for up to `timeout` seconds, put everything to sleep."""
        self._draining = True
        waiting = {asyncio.ensure_future(_until_quiet(live)) for live in self.live if live.busy}
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout)
            for task in late:
                task.cancel()
        for live in self.live:
            if live.evictable:
                await self.hibernate(live)
            else:
                await live.close(Draining("this node stopped before the turn had ended"))
            self._live.pop(live.row.key, None)
        for hub in self._hubs.values():
            hub.finish()

    # --- inside ---

    def _accepting(self) -> None:
        if self._draining:
            raise Draining("this node is shutting down; try again", retry_after=1.0)
        if not self._context.may_serve():
            raise StoreUnavailable("this node cannot reach its coordination store", retry_after=1.0)

    def _check(self, who: Principal, request: OpenSession) -> None:
        if request.id is not None and not valid_session_id(request.id):
            raise Invalid("a session id has 1 to 200 characters out of A-Z, a-z, 0-9, '_' and '-'")
        if request.title is not None:
            _check_title(request.title)
        if request.system_message is not None and len(request.system_message) > MAX_SYSTEM_MESSAGE:
            raise TooLarge(f"the system message is over the limit of {MAX_SYSTEM_MESSAGE} characters")
        isolation = self._context.options.isolation_of(who.tenant)
        refused = self._context.options.tools.refused(isolation, request.tools or [])
        if refused:
            allowed = ", ".join(sorted(self._context.options.tools.allowed(isolation))) or "none"
            raise Invalid(f"these tools are not allowed here: {', '.join(refused)}; allowed are: {allowed}")

    async def _readable(self, who: Principal, session_id: str) -> SessionRow:
        """The row, if the principal may know of it. Whether it exists is told to nobody else."""
        row = None
        if valid_session_id(session_id):
            row = await self._context.directory.get(SessionKey(who.tenant, session_id))
        if row is None or not _may_read(who, row):
            raise NotFound("there is no such session")
        return row

    async def _as_it_stands(self, row: SessionRow) -> SessionRow:
        """The row with the state of this moment: a crashed node leaves `running` behind."""
        live = self._live.get(row.key)
        if live is not None and live.activation is not None:
            return replace(row, state=live.listed_state, last_turn=live.row.last_turn or row.last_turn)
        if row.state is not SessionState.HIBERNATED and await self._context.leases.holder(row.key) is None:
            return replace(row, state=SessionState.HIBERNATED)
        return row

    def _ensure_live(self, row: SessionRow) -> LiveSession:
        live = self._live.get(row.key)
        if live is None:
            live = self._live[row.key] = self._new_live(row)
        return live

    def _new_live(self, row: SessionRow) -> LiveSession:
        hub = self._hubs.setdefault(row.key, self._new_hub())
        return LiveSession(self._context, row, hub, self._erase_ephemeral)

    async def _erase_ephemeral(self, row: SessionRow) -> None:
        live = self._live.pop(row.key, None)
        hub = self._hubs.pop(row.key, None)
        if live is not None:
            live.end_ephemeral()
        await self._erase(row)
        if hub is not None:
            hub.finish()

    def _new_hub(self) -> EventHub:
        return EventHub(reader_bytes=self._context.options.reader_bytes)

    def _forget_hub(self, key: SessionKey) -> None:
        hub = self._hubs.get(key)
        if hub is not None and not hub.has_readers:
            del self._hubs[key]


def _may_read(who: Principal, row: SessionRow) -> bool:
    return row.key.tenant == who.tenant and row.owner == who.user


def _check_title(title: str) -> None:
    if not title.strip() or len(title) > MAX_TITLE:
        raise Invalid(f"a title has 1 to {MAX_TITLE} characters")


def _digest(message: SendMessage) -> str:
    canonical = json.dumps([message.prompt, message.attachments], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


async def _until_quiet(live: LiveSession) -> None:
    while (run := live.current) is not None:
        await asyncio.wait({asyncio.ensure_future(run.wait())})
        await asyncio.sleep(0)
