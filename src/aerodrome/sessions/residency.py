"""Whether one session is loaded in a runtime, and in which.

Waking, hibernating and letting go exclude each other by one lock. Each activation holds one place in a runtime and one
lease, taken by `wake` and given back here, once, whatever ends it. When one is lost in a turn, the turn comes first:
nobody else loads the session before it is known what the turn has left in the history (`settle`).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from aerodrome._util.tasks import Flag, first_of
from aerodrome.errors import AerodromeError, Refused, RuntimeUnavailable
from aerodrome.events import SessionEvent
from aerodrome.model import SessionState
from aerodrome.runtime.machine import RuntimeState
from aerodrome.sessions.activation import Activation, ActivationRefused
from aerodrome.sessions.attachments import Attachment, Attachments
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.hints import AWAKE
from aerodrome.sessions.machine import SessionMachine, State, Stimulus
from aerodrome.sessions.mend import Condition
from aerodrome.sessions.requests import OpenRequest
from aerodrome.sessions.row_updates import RowUpdates
from aerodrome.sessions.wake import wake

log = structlog.get_logger(__name__)

_LISTED_AS = {State.IDLE: SessionState.RESIDENT, State.RUNNING: SessionState.RUNNING}


class Residency:
    """Args:
    on_history: Called with the stored history at each wake-up, before the first event.
    on_condition: Called with how the stored files were found, where servers write them themselves.
    on_awake: Called with each new activation, to bring back what a runtime forgets.
    """

    def __init__(
        self,
        context: SessionContext,
        updates: RowUpdates,
        *,
        on_history: Callable[[str], Awaitable[None]],
        on_condition: Callable[[Condition], None],
        on_event: Callable[[SessionEvent], None],
        on_request_expired: Callable[[OpenRequest], None],
        on_awake: Callable[[Activation], Awaitable[None]],
    ) -> None:
        #: Present while the session is resident, and until its loss has been dealt with.
        self.activation: Activation | None = None
        self.attachments = Attachments()
        self._context = context
        self._updates = updates
        self._on_history = on_history
        self._on_condition = on_condition
        self._on_event = on_event
        self._on_request_expired = on_request_expired
        self._on_awake = on_awake
        self._machine = SessionMachine()
        self._transition = asyncio.Lock()
        #: Raised whenever a turn may have been settled.
        self._settled = Flag()
        self._closed_with: AerodromeError | None = None
        #: What was loaded last was lost, and nothing has been since.
        self._was_lost = False
        #: Attachments that were told that the session has gone, and have to let go of it.
        self._finished: list[Attachment] = []

    @property
    def state(self) -> State:
        return self._machine.state

    @property
    def listed_state(self) -> SessionState:
        return _LISTED_AS.get(self.state, SessionState.HIBERNATED)

    @property
    def at_rest(self) -> bool:
        """Hibernated, and everything given back: an unloading that is under way would meet the next loading."""
        return self.state is State.HIBERNATED and self.activation is None and not self._transition.locked()

    @property
    def loaded(self) -> Activation | None:
        """What `awake` would return without waiting for anything."""
        activation = self.activation
        if activation is None or activation.lost.done() or self._closed_with is not None or self._transition.locked():
            return None
        return activation

    @property
    def outdated(self) -> bool:
        """It was loaded with other credentials than its tenant has now."""
        activation = self.activation
        return activation is not None and activation.credentials != self._context.credentials(activation.key.tenant)

    @property
    def to_move(self) -> bool:
        """Between two turns it has to be loaded anew: with many prompts in its queue it would stay for all of them."""
        activation = self.activation
        return activation is not None and (activation.runtime.state is RuntimeState.RETIRING or self.outdated)

    async def awake(self) -> Activation:
        """The session's activation; wakes it if need be. Raises what `wake` raises."""
        async with self._turn_settled():
            return await self._awake()

    @asynccontextmanager
    async def _turn_settled(self) -> AsyncIterator[None]:
        """The lock, as soon as no turn has been lost that is not settled."""
        while True:
            async with self._transition:
                if not self._turn_lost:
                    yield
                    return
                self._settled.clear()
            await first_of(self._settled.raised)

    @property
    def _turn_lost(self) -> bool:
        """What was loaded was lost in a turn that does not know yet."""
        return self.state is State.RUNNING and self.activation is not None and self.activation.lost.done()

    async def _awake(self) -> Activation:
        self._refuse_when_closed()
        if self.activation is not None and not self.activation.lost.done():
            self.attachments.ready()  # whoever has loaded it may have gone before it came to that
            return self.activation
        await self._drop()
        self._machine.apply(Stimulus.WAKE)
        telemetry, began = self._context.telemetry, self._context.clock.monotonic()
        try:
            with telemetry.tracer.span("session.wake", attributes={"aerodrome.session.after_loss": self._was_lost}):
                self.activation = await wake(
                    self._context,
                    self._updates.row,
                    self.attachments,
                    on_history=self._on_history,
                    on_condition=self._on_condition,
                    on_event=self._on_event,
                    on_request_expired=self._on_request_expired,
                )
        except BaseException:
            self.attachments.lost()
            self._machine.apply(Stimulus.LOST)
            raise
        self._machine.apply(Stimulus.AWAKE)
        telemetry.meter.session_woken(self._context.clock.monotonic() - began, after_loss=self._was_lost)
        self._was_lost = False
        await self._on_awake(self.activation)
        self._refuse_when_closed()  # in which case `aclose` gives it back
        self.attachments.ready()
        self.note_state()
        self._context.announce(AWAKE, self._updates.row.key)
        return self.activation

    async def attach(self, attachment: Attachment) -> None:
        """Have a client take part, and the session loaded by it unless it is.

        Raises:
            Refused, ActivationRefused: The runtime does not take what the client asks for.
            AerodromeError: What `wake` raises.
        """
        while True:
            async with self._turn_settled():
                self._refuse_when_closed()
                known = attachment in self.attachments
                activation = self.activation
                if activation is not None and not activation.lost.done() and await self._join(attachment, activation):
                    return
                if not self._turn_lost:
                    await self._attach_and_wake(attachment, known)
                    return

    async def _join(self, attachment: Attachment, activation: Activation) -> bool:
        """``False``: the activation was lost meanwhile; what follows is an ordinary wake-up. Raises as `attach`."""
        known = attachment in self.attachments
        # Before it joins: whoever closes the session meanwhile must find it.
        self.attachments.add(attachment)
        try:
            await attachment.open(activation.runtime, resume=True)
            self._refuse_when_closed()
        except RuntimeUnavailable:
            self._leave(attachment, known)
            if not activation.lost.done() and activation.runtime.state.serves:
                raise
            return False
        except BaseException:
            self._leave(attachment, known)
            if self._closed_with is not None:
                await attachment.close()
            raise
        with suppress(RuntimeUnavailable):  # whose loss is dealt with elsewhere
            await activation.attach_last()
        attachment.ready()
        return True

    def _leave(self, attachment: Attachment, known: bool) -> None:
        """It could not be opened. One that had been opened before is as it was (see `Attachment.open`)."""
        if not known:
            self.attachments.remove(attachment)

    async def _attach_and_wake(self, attachment: Attachment, known: bool) -> None:
        # First: nobody can join with its tools a session that was resumed for others but did not exist before.
        self.attachments.add(attachment, first=True)
        replay = attachment.is_replay
        try:
            try:
                await self._awake()
            except ActivationRefused as error:
                # One that asked anew has what it had before again, and that is not what it waits for.
                as_asked = attachment.is_replay == replay
                if isinstance(error.__cause__, Refused) and not (error.elsewhere and as_asked):
                    raise
                await self._awake()  # the runtime went while it loaded the session, or another one may take it
        except BaseException:
            self._leave(attachment, known)
            raise

    async def detach(self, attachment: Attachment) -> None:
        """The client takes part no more. Nothing happens to the session."""
        async with self._transition:
            self.attachments.remove(attachment)

    async def rejoin(self, attachment: Attachment) -> None:
        """What the client may bring along has changed: have it leave and join anew, if the session is loaded.

        Otherwise, and when the runtime is lost meanwhile, the next loading does so.
        """
        async with self._transition:
            activation = self.activation
            if attachment in self.attachments and activation is not None and not activation.lost.done():
                with suppress(RuntimeUnavailable):
                    await self.attachments.reopen(attachment, activation.runtime, lost=activation.lost.done)
                    await activation.attach_last()
                attachment.ready()

    def turn_began(self) -> None:
        self._machine.apply(Stimulus.SEND)
        self.note_state()

    def turn_ended(self) -> None:
        """The row is told of it together with the turn's end."""
        self._machine.apply(Stimulus.SETTLED)
        self._settled.set()

    def note_state(self) -> None:
        """Let the directory know where the session stands."""
        if self.listed_state is not self._updates.row.state:
            self._updates.note(state=self.listed_state)

    async def hibernate(self, allowed: Callable[[], bool]) -> bool:
        """Unload the session if it is idle and `allowed` still says so. ``False``: not done."""
        # Whoever holds the lock may be waiting for a place, which others make room for by calling this.
        if self._transition.locked() or not self._may_hibernate(allowed):
            return False
        # In a task of its own: cut short by the end of whoever asked for it, the session would stay half unloaded.
        return await asyncio.shield(self._context.tasks.start(self._hibernate(allowed), f"hibernate {self._key}"))

    async def drop(self, reason: str) -> None:
        """Let go of an activation that was lost, if it has not been done."""
        async with self._transition:
            if self.activation is not None and self.activation.lost.done():
                log.info("session.lost_runtime", session=self._key, reason=reason)
                await self._drop()

    def leave(self, error: AerodromeError) -> None:
        """It is about to be hibernated for good: nobody comes in any more, and nothing is loaded."""
        self._closed_with = self._closed_with or error

    async def settle(self, reason: str, find_out: Callable[[], Awaitable[str]]) -> str:
        """Let go of an activation that was lost in a turn, and find out what the turn has left, before anybody loads
        the session again: that would change the history, and to look at it takes a lease, which would be taken from
        whoever has loaded the session. Nothing is found out when the session has been closed."""
        async with self._transition:
            if self.activation is not None and self.activation.lost.done():
                log.info("session.lost_runtime", session=self._key, reason=reason)
                await self._drop()
            return await find_out() if self._closed_with is None else ""

    def shut(self, error: AerodromeError) -> None:
        """For good: nothing is loaded any more, and what is loaded is cut off."""
        self._machine.apply(Stimulus.CLOSE)
        self._settled.set()
        self._closed_with = self._closed_with or error
        if self.activation is not None:
            self.activation.discard(error.detail, error)
        self._finished += list(self.attachments)
        self.attachments.finish(error)

    async def aclose(self) -> None:
        """Give everything back after `shut`."""
        async with self._transition:
            # As long as one connection is attached, the session stays in the runtime.
            if self.activation is not None and not self.activation.runtime.lost.is_set():
                await asyncio.gather(*(attachment.close() for attachment in self._finished))
            self._finished.clear()
            await self._drop()

    # --- inside ---

    @property
    def _key(self) -> str:
        return str(self._updates.row.key)

    def _may_hibernate(self, allowed: Callable[[], bool]) -> bool:
        return self.activation is not None and self.state is State.IDLE and allowed()

    async def _hibernate(self, allowed: Callable[[], bool]) -> bool:
        async with self._transition:
            activation = self.activation
            if activation is None or not self._may_hibernate(allowed):
                return False
            if activation.lost.done():
                await self._drop()
                return True
            self._machine.apply(Stimulus.HIBERNATE)
            unloaded = False
            try:
                await self.attachments.close()
                unloaded = await activation.close()
                if not unloaded:
                    await activation.unload()
            finally:
                self._release(activation)
                self._machine.apply(Stimulus.UNLOADED if unloaded else Stimulus.LOST)
                self.note_state()
            log.info("session.hibernated", session=self._key, clean=unloaded)
            self._context.telemetry.meter.session_hibernated()
            return True

    async def _drop(self) -> None:
        """The activation, if any, is void. The caller holds the lock."""
        activation = self.activation
        if activation is None:
            return
        activation.discard("given up")
        self._machine.apply(Stimulus.LOST)
        self._settled.set()
        if self._closed_with is None:
            self._was_lost = True
            self._context.telemetry.meter.session_lost()
        try:
            if not activation.runtime.lost.is_set():
                await self.attachments.close()
            self.attachments.lost()
            await activation.unload()
        finally:
            self._release(activation)
            self.note_state()

    def _release(self, activation: Activation) -> None:
        """Give place and lease back. A release that comes late, behind a new lease of our own, changes nothing."""
        activation.discard("released")
        self.activation = None
        self.attachments.lost()
        self._context.pool.release(activation.runtime)
        self._context.residents.release(activation.place)
        self._context.release_lease(activation.lease)

    def _refuse_when_closed(self) -> None:
        if self._closed_with is not None:
            raise copy.copy(self._closed_with)
