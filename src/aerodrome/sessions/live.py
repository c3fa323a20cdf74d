"""A session that this node is concerned with: resident in a runtime, or with prompts that wait for one.

Its parts are the residency (is it loaded, and where), the turns (what is asked of it), the row in the directory, and
the hub, which outlives it: readers stay while the session is hibernated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import structlog

from aerodrome.errors import AerodromeError, Draining, RuntimeUnavailable
from aerodrome.events import SessionEvent
from aerodrome.model import MAX_TITLE, SessionRow, SessionState
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.activation import Activation
from aerodrome.sessions.attachments import Attachment, Attachments
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.ends import TurnEnds
from aerodrome.sessions.hub import EventHub
from aerodrome.sessions.machine import State
from aerodrome.sessions.mend import Condition
from aerodrome.sessions.parsing import parse
from aerodrome.sessions.replay import last_id, unpublished
from aerodrome.sessions.requests import OpenRequest, denial
from aerodrome.sessions.residency import Residency
from aerodrome.sessions.row_updates import RowUpdates
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.toolcalls import OF_TOOL_CALLS, OpenToolCalls
from aerodrome.sessions.turns import Turns
from aerodrome.sessions.usage import model_call_of

log = structlog.get_logger(__name__)

#: The events that say something of the session itself. Of the hundreds in a streamed turn these are a handful.
_NOTED = OF_TOOL_CALLS | {
    "assistant.turn_start",
    "session.idle",
    "user.message",
    "session.title_changed",
    "session.mode_changed",
    "session.model_change",
    "assistant.usage",
}
#: The mode in which every session begins.
INTERACTIVE = "interactive"


class LiveSession:
    """Args:
    erase: Deletes everything of the session, for an ephemeral one whose turn has ended.
    """

    def __init__(
        self,
        context: SessionContext,
        row: SessionRow,
        hub: EventHub,
        ends: TurnEnds,
        erase: Callable[[SessionRow], Awaitable[None]],
    ) -> None:
        self.hub = hub
        self.updates = RowUpdates(context, row)
        self._context = context
        self._tool_calls = OpenToolCalls()
        #: The runtime is at work, on whoever's behalf: a client can start it without a prompt of ours.
        self._working = False
        #: What a client or the agent has made of the runtime's mode; a resumed session begins with the first.
        self._mode = INTERACTIVE
        #: The title, as long as nobody has chosen one.
        self._derived_title: str | None = None
        #: Calls of clients that need the session where it is.
        self._holds = 0
        self._residency = Residency(
            context,
            self.updates,
            on_history=self._on_history,
            on_condition=self._on_condition,
            on_event=self._on_event,
            on_request_expired=self._on_request_expired,
            on_awake=self._on_awake,
        )
        self.turns = Turns(
            context,
            self.updates,
            self._residency,
            ends,
            publish=self._publish,
            on_history=self._on_history,
            movable=lambda: self.movable,
            erase=erase,
        )

    # --- what it is ---

    @property
    def row(self) -> SessionRow:
        return self.updates.row

    @property
    def activation(self) -> Activation | None:
        return self._residency.activation

    @property
    def loaded(self) -> Activation | None:
        """The activation, if it can be used without waiting for anything."""
        return self._residency.loaded

    @property
    def state(self) -> State:
        return self._residency.state

    @property
    def listed_state(self) -> SessionState:
        return self._residency.listed_state

    @property
    def busy(self) -> bool:
        return self.turns.busy

    @property
    def last_used(self) -> float:
        return self.turns.last_used

    @property
    def attachments(self) -> Attachments:
        return self._residency.attachments

    @property
    def engaged(self) -> bool:
        """In a turn, or needed for something else at this moment."""
        return self.busy or self._holds > 0 or self.working

    @property
    def working(self) -> bool:
        """The runtime is at work in it, whoever has asked for that."""
        return self._working and self.activation is not None

    def runs_in(self, runtime: Runtime) -> bool:
        return self.activation is not None and self.activation.runtime is runtime

    @property
    def at_work(self) -> bool:
        """Its runtime is doing something for it."""
        return self.state is State.RUNNING or (self._working and self.activation is not None)

    @property
    def history_size(self) -> int:
        """Characters of the history that it was loaded with."""
        return self.activation.history_size if self.activation is not None else 0

    @property
    def movable(self) -> bool:
        """Between two turns, nothing keeps it in its runtime."""
        return not self._holds and not self._working

    @property
    def evictable(self) -> bool:
        """Resident, and not engaged."""
        return self.state is State.IDLE and not self.engaged

    @property
    def outdated(self) -> bool:
        """See `Residency.outdated`."""
        return self._residency.outdated

    @property
    def forgettable(self) -> bool:
        """Nothing of it is here that is not stored, and nothing is being done with it."""
        if self.attachments or self._holds:
            return False
        return self._residency.at_rest and not self.turns.at_work and not self.updates.pending

    def find(self, turn_id: str) -> TurnRun | None:
        return next((run for run in self.turns.all if run.id == turn_id), None)

    def find_by_key(self, idempotency_key: str) -> TurnRun | None:
        return next((run for run in self.turns.all if run.row.idempotency_key == idempotency_key), None)

    # --- its life ---

    async def hibernate(self) -> bool:
        """Put an idle session to sleep. ``False``: it is not idle (any more)."""
        if not await self._residency.hibernate(lambda: not self.engaged):
            return False
        await self.updates.flush()
        return True

    async def wake_ahead(self) -> None:
        """Load it for a prompt that is likely to come. When that fails, the prompt will say why."""
        self.hold()
        try:
            await self.awake()
        except AerodromeError as error:
            log.info("session.not_moved", session=str(self.row.key), reason=error.detail)
        finally:
            self.release(used=False)

    async def runtime_lost(self, reason: str, error: AerodromeError | None = None) -> None:
        """Its runtime has gone, or it may not write any more. A running turn deals with that by itself."""
        if self.activation is not None:
            self.activation.discard(reason, error)
        if not self.busy:
            await self._residency.drop(reason)

    def leave(self, error: AerodromeError) -> None:
        """Let nobody in any more: it is quiet, and about to leave this node."""
        self._residency.leave(error)

    async def close(self, error: AerodromeError) -> None:
        """Give the session up for good: what runs or waits in it ends with the error."""
        self.turns.shut(error)
        self._residency.shut(error)
        await self.turns.join()
        await self._residency.aclose()
        self.hub.finish(error if isinstance(error, Draining) else None)

    # --- clients with a connection of their own ---

    async def attach(self, attachment: Attachment) -> None:
        """Have a client take part; loads the session. Raises what `Residency.attach` does."""
        self.hold()
        try:
            await self._residency.attach(attachment)
        finally:
            self.release()

    async def detach(self, attachment: Attachment) -> None:
        """The client takes part no more: what the runtime asks of it and it has not answered is answered for it."""
        await self._residency.detach(attachment)
        await attachment.close()
        await self._owner_left(attachment.tools)

    async def rejoin(self, attachment: Attachment, tools: frozenset[str]) -> None:
        """The client may only read any more.

        Args:
            tools: Those that it has run until now.
        """
        await self._residency.rejoin(attachment)
        await self._owner_left(tools)

    async def _owner_left(self, tools: frozenset[str]) -> None:
        if (activation := self.activation) is not None:
            await self._fail_calls(activation, self._tool_calls.leave(tools))

    async def _fail_calls(self, activation: Activation, requests: Sequence[str]) -> None:
        for request in requests:
            with suppress(RuntimeUnavailable):
                await activation.fail_tool(request, "the client that runs this tool has gone")

    def _fail_unowned(self) -> None:
        offered = {tool for attachment in self.attachments for tool in attachment.tools}
        requests = self._tool_calls.unowned(offered)
        if requests and (activation := self.activation) is not None:
            self._context.later(self._fail_calls(activation, requests), "fail calls of tools")

    async def awake(self) -> Activation:
        """The session's activation; loads it if need be."""
        return await self._residency.awake()

    def hold(self) -> None:
        """Keep the session where it is until `release`."""
        self._holds += 1

    def release(self, *, used: bool = True) -> None:
        """Args:
        used: Whether it counts as a use of the session, which puts off its hibernation.
        """
        self._holds -= 1
        if used:
            self.turns.last_used = self._context.clock.monotonic()
        if not self.engaged:
            # Somebody may wait for the place it could make.
            self._context.pool.notify()

    # --- events and requests ---

    async def _on_history(self, text: str) -> None:
        # Called at each loading, before the first event.
        self._working = False
        self._tool_calls.clear()
        if len(text) > (soft := self._context.options.large_history):
            self._warn_of_size(len(text), soft)
        # Before anything is awaited: somebody may be reading what we take for told.
        self.hub.position = self.hub.position or last_id(text)
        look = partial(unpublished, position=self.hub.position, kept=self.hub.kept(), anchors=self.hub.anchors)
        for event in await parse(look, text):
            self._publish(event)

    def _on_condition(self, condition: Condition) -> None:
        if condition.damages:
            self._publish(self._context.host_event("aerodrome.session_repaired", condition.as_json()))
        if condition.alive:
            data = {"pids": condition.alive}
            self._publish(self._context.host_event("aerodrome.session_in_use", data))

    def _warn_of_size(self, size: int, soft: int) -> None:
        hard = self._context.options.max_history
        log.warning("session.large", session=str(self.row.key), characters=size, limit=hard)
        hint = "compact the session's history, turn on `infiniteSessions`, or go on in a new session"
        data = {"characters": size, "warnedFrom": soft, "limit": hard, "hint": hint}
        self._publish(self._context.host_event("aerodrome.session_large", data))

    async def _on_awake(self, activation: Activation) -> None:
        activation.followed = self._is_followed
        if self._mode != INTERACTIVE:
            with suppress(RuntimeUnavailable):
                await activation.set_mode(self._mode)

    def _is_followed(self) -> bool:
        """Whether anybody learns of what the runtime does before the end of a turn is recorded, which lasts."""
        return self.hub.has_readers or bool(self._residency.attachments) or self.turns.followed

    def _on_event(self, event: SessionEvent) -> None:
        if event.type in _NOTED:
            self._note(event)
        self.turns.feed(event)
        self._tell(event)

    def _note(self, event: SessionEvent) -> None:
        if event.type == "assistant.turn_start":
            self._working = True
        elif event.type == "session.idle":
            self._working = False
            self._tool_calls.idle()
        elif event.type == "user.message":
            self._note_title(event, "content")
        elif event.type == "session.title_changed":
            self._note_title(event, "title")
        elif event.type == "session.mode_changed":
            self._mode = str(event.data.get("newMode"))
        elif event.type == "session.model_change":
            self._note_model(event)
        elif event.type == "assistant.usage":
            if self._context.telemetry.meter.on:
                self._context.telemetry.meter.model_called(model_call_of(self.row.key.tenant, event))
        else:
            self._tool_calls.see(event)
            self._fail_unowned()

    def _note_title(self, event: SessionEvent, field: str) -> None:
        """Sessions of native clients have titles as the runtime gives them: the first prompt, then something better."""
        if self.row.title != self._derived_title or "native" not in self.row.options:
            return
        title = event.data.get(field)
        if isinstance(title, str) and title.strip() and (field == "title" or self._derived_title is None):
            self._derived_title = title.strip().splitlines()[0][:MAX_TITLE]
            self.updates.note(title=self._derived_title)

    def _note_model(self, event: SessionEvent) -> None:
        model = event.data.get("newModel")
        if isinstance(model, str) and model and model != self.row.model:
            # The next resume must not take the session back to the model that it was opened with.
            self.updates.note(model=model)

    def _publish(self, event: SessionEvent) -> None:
        """Tell an event that does not come from the runtime now."""
        self._tell(event, from_host=True)

    def _tell(self, event: SessionEvent, *, from_host: bool = False) -> None:
        behind = self.hub.latest
        event = self.hub.publish(event)
        self.turns.tell(event, behind)
        if self.attachments:
            self.attachments.tell(event, from_host=from_host)

    def _on_request_expired(self, request: OpenRequest) -> None:
        said = f"Nobody answered within {self._context.options.request_timeout:g} seconds."
        log.info("request.expired", session=str(self.row.key), request=request.id, kind=request.kind)
        data = {"requestId": request.id, "kind": request.kind}
        self._publish(self._context.host_event("aerodrome.request_expired", data))
        if self.activation is not None:
            self._context.later(self.activation.answer(request.id, denial(request.kind, said)), "deny request")
