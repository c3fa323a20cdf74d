"""One session resident in one runtime, under one epoch: from create or resume to detach, or to its loss.

An activation is used once. Everything that ends it early (the runtime dies, a write is refused, the lease is
lost) settles `lost`, and from then on nothing is written through it and nothing is heard of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from aerodrome._util.patience import Patience
from aerodrome.coordination.ports import Lease
from aerodrome.errors import AerodromeError, Fenced, NotFound, Refused, RuntimeUnavailable, TooLarge, TurnInterrupted
from aerodrome.events import SessionEvent
from aerodrome.fairness.line import Ticket
from aerodrome.policy.session_params import SAFE_OPTIONS, Credentials
from aerodrome.runtime.link import LinkClosed, RemoteError, RequestRefused
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.attachments import Attachments
from aerodrome.sessions.requests import OpenRequest, OpenRequests
from aerodrome.statestore.ports import SessionFileStore
from aerodrome.statestore.provider import SessionFs
from aerodrome.telemetry.trace import TraceContext, within
from aerodrome.wire.envelope import METHOD_NOT_FOUND

log = structlog.get_logger(__name__)

#: Seconds that a client's hooks may keep an abort waiting.
HOOKS_TIMEOUT = 1.0
#: Seconds for which a runtime is told of a session that could not be loaded in it.
_REMEMBERED = 1.0
#: What the runtime asks of the connection that has attached last, which is the control link, and a client has to answer
#: (measured). What it asks of all connections, clients hear by themselves.
_ASKED_OF_ONE = frozenset({"systemMessage.transform"})


@dataclass(frozen=True, slots=True)
class Loss:
    reason: str
    #: What the turns that it ends are to end with; ``None`` when they may be run again, on another runtime.
    error: AerodromeError | None = None


class ActivationRefused(RuntimeUnavailable):
    """The runtime could not load the session: it went away, or it refused."""

    #: Servers of somebody else are not alike, and another one may take what this one has refused.
    elsewhere = False


class Activation:
    """Implements `runtime.control.SessionBinding`."""

    def __init__(
        self,
        lease: Lease,
        runtime: Runtime,
        place: Ticket,
        store: SessionFileStore,
        *,
        request_timeout: float,
        patience: Patience,
        may_serve: Callable[[], bool],
        on_event: Callable[[SessionEvent], None],
        on_request_expired: Callable[[OpenRequest], None],
    ) -> None:
        self.lease = lease
        self.key = lease.key
        self.runtime = runtime
        #: Among the sessions that may be loaded; given back with the runtime's.
        self.place = place
        #: Characters of the history that it was loaded with.
        self.history_size = 0
        #: Those of its tenant at the moment at which it was opened.
        self.credentials = Credentials()
        self.lost: asyncio.Future[Loss] = asyncio.get_running_loop().create_future()
        #: Prompts and aborts go to the runtime one after the other. What is with it at the same time it takes up in any
        #: order, and an abort that overtakes its prompt aborts nothing.
        self.line = asyncio.Lock()
        #: Whether anybody is told of a turn while it runs: then it is to last once it is told to have ended.
        self.followed: Callable[[], bool] = lambda: True
        #: The trace that the latest prompt is part of, and with it what the runtime stores.
        self._trace: TraceContext | None = None
        self._attachments = Attachments()
        self._may_serve = may_serve
        self._on_event = on_event
        self._requests = OpenRequests(request_timeout, on_request_expired)
        self._files = SessionFs(
            store,
            lease.key,
            lease.epoch,
            home=str(runtime.copilot_home),
            patience=patience,
            lasting=lambda: self.followed(),
            on_failed_write=self._write_failed,
        )

    # --- life ---

    async def open(self, params: dict[str, Any], attachments: Attachments, *, resume: bool) -> None:
        """Create or resume the session in the runtime. When that fails, nothing of it stays there.

        Args:
            params: What it is opened with when no client is attached to it.

        Raises:
            ActivationRefused: The runtime refused or went away.
        """
        self._attachments = attachments
        self.runtime.control.bind(self.key.id, self)
        self.runtime.loading[self.key] += 1
        try:
            await self._open(params, attachments, resume=resume)
        except BaseException:
            # A client's connection may break before ours does: what we were at shall be known then.
            asyncio.get_running_loop().call_later(_REMEMBERED, self._loaded)
            raise
        self._loaded()

    def _loaded(self) -> None:
        # Counted: what failed a moment ago may be loading again by now.
        loading = self.runtime.loading
        loading[self.key] -= 1
        if not loading[self.key]:
            del loading[self.key]

    async def _open(self, params: dict[str, Any], attachments: Attachments, *, resume: bool) -> None:
        try:
            first = await attachments.open_first(self.runtime, resume=resume, lost=self.lost.done)
            if first is not None:
                await self.attach_last()
            else:
                await self._request("session.resume" if resume else "session.create", params)
            if first is None or first.forces_options:
                await self._request("session.options.update", {"sessionId": self.key.id, **SAFE_OPTIONS})
            if await attachments.open_others(first, self.runtime, lost=self.lost.done):
                await self.attach_last()
            if self.lost.done():
                raise self.lost.result().error or ActivationRefused(self.lost.result().reason)
            self.runtime.note_load(self.key.id, taken=True)
        except RuntimeUnavailable as error:
            refused = ActivationRefused(error.detail)
            # There are refusals that are not the runtime's, such as of a client that has gone.
            if not self.lost.done() and isinstance(error, Refused) and isinstance(error.__cause__, RemoteError):
                self.runtime.note_load(self.key.id, taken=False)
                refused.elsewhere = self.runtime.foreign
            self.discard(error.detail)
            await self._undo(attachments)
            raise refused from error
        except BaseException as error:
            self.discard(f"its opening ended with {type(error).__name__}")
            await self._undo(attachments)
            raise

    async def _undo(self, attachments: Attachments) -> None:
        # As long as one connection is attached, the session stays in the runtime.
        await attachments.close()
        await self.unload()

    async def close(self) -> bool:
        """Unload it, everything stored. ``False``: it went wrong; the activation is lost instead."""
        if not await self.runtime.let_go(self.key.id) or self.lost.done():
            self.discard("it could not be unloaded")
            return False
        self.discard("unloaded")
        return True

    def discard(self, reason: str, error: AerodromeError | None = None) -> None:
        """Cut it off: no more writes, and no more events, neither here nor to the clients that are attached. What the
        runtime still holds of it is void: it goes on after a refused write, and says that its turn has ended."""
        self._files.close()
        if not self.lost.done():
            self._attachments.cut_off(self.runtime)
        self.runtime.control.unbind(self.key.id, self)
        self._requests.close()
        if not self.lost.done():
            self.lost.set_result(Loss(reason, error))

    async def unload(self) -> None:
        """Take a discarded session out of a runtime that lives on.

        A resume would attach to it while it is there, and bring back what was refused.
        """
        if self.key.id not in self.runtime.letting_go:  # else it has been asked, and others shall not wait for it
            await self.runtime.let_go(self.key.id)

    # --- what is asked of it ---

    async def attach_last(self) -> None:
        """Attach the control link behind everybody else, so that what is asked of the last is asked of us
        (`_ASKED_OF_ONE`), who pass it on to a client that answers.

        It touches nothing: the session's tools, hooks and model stay the clients'.
        """
        await self._request("session.resume", {"sessionId": self.key.id, "disableResume": True})

    async def takes_prompts(self) -> bool:
        """Whether the runtime answers; the activation is void if not.

        To be asked before a prompt is sent to one that is `foreign`."""
        if not await self.runtime.takes_prompts():
            self.discard(self.runtime.lost_reason)
        return not self.lost.done()

    async def send(self, message: Mapping[str, Any], *, trace: TraceContext | None = None, steer: bool = False) -> str:
        """Hand a prompt over, as parameters of `session.send`, with the `line` held; returns the runtime's id of the
        message.

        Args:
            trace: What the runtime's own spans are to be part of.

        Raises:
            Refused: The runtime does not take it.
            RuntimeUnavailable: It went away; nobody knows whether it took it.
        """
        params = {**message, "sessionId": self.key.id}
        if steer:
            params["mode"] = "immediate"
        if trace is not None:
            params |= trace.fields()
        self._trace = trace
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await self._request("session.send", params)
        # The model has no part in it: what grows is the runtime's own (`runtime.wear`).
        self.runtime.latency.add(loop.time() - began)
        return str(answer["messageId"])

    async def abort(self) -> None:
        """Raises as `send`. The runtime waits for clients' hooks before it does anything else: for a while."""
        async with self.line:
            asking = asyncio.ensure_future(self._request("session.abort", {"sessionId": self.key.id}))
            try:
                await asyncio.wait({asking}, timeout=HOOKS_TIMEOUT)
                if not asking.done():
                    # One may come after the other.
                    self._attachments.refuse_hooks("the turn is aborted")
                await asking
            finally:
                self._attachments.refuse_hooks(None)
                asking.cancel()

    async def set_mode(self, mode: str) -> None:
        await self._request("session.mode.set", {"sessionId": self.key.id, "mode": mode})

    async def fail_tool(self, request_id: str, reason: str) -> None:
        """End a call of a client's tool that nobody is going to answer: its turn would wait for ever."""
        params = {"sessionId": self.key.id, "requestId": request_id, "error": reason}
        await self._request("session.tools.handlePendingToolCall", params)

    async def answer(self, request_id: str, answer: dict[str, Any]) -> None:
        """Answer an open permission or user-input request. Raises `NotFound` when it is not open (any more)."""
        request = self._requests.take(request_id)
        if request is None:
            raise NotFound("no such request is open: it was answered, it timed out, or it never was")
        try:
            taken = await self._request(*request.call(self.key.id, answer))
        except Refused:
            self._requests.put(request_id, request.kind)  # the turn still waits for it
            raise
        if not taken.get("success"):
            raise NotFound("the request was answered by somebody else first")

    def _holds(self) -> bool:
        """Whether the lease holds for certain; the activation is void if not. A node that was paused may come here
        before anything has told it how long."""
        if not self._may_serve():
            self.discard("its lease may be somebody else's: this node could not heartbeat")
        return not self.lost.done()

    async def _request(self, method: str, params: dict[str, Any]) -> Any:
        if not self._holds():
            raise RuntimeUnavailable(self.lost.result().reason)
        try:
            return await self.runtime.control.request(method, params)
        except RemoteError as error:
            raise Refused(f"the runtime refused: {error}") from error
        except LinkClosed as error:
            raise RuntimeUnavailable(f"the runtime has gone: {error}") from error
        except TimeoutError as error:
            reason = f"the runtime did not answer {method} in time"
            if await self.runtime.answers(method):
                self._attachments.suspect(reason)
                self.discard(reason)
            raise RuntimeUnavailable(reason) from error

    # --- SessionBinding ---

    def on_event(self, event: SessionEvent) -> None:
        self._requests.see(event)
        self._on_event(event)

    def on_oversized(self, complaint: str) -> None:
        log.warning("session.oversized", session=str(self.key), reason=complaint)
        # Tried again it would be no smaller.
        self.discard(complaint, TooLarge(f"what the turn has made is too large: {complaint}"))

    async def on_file_operation(self, operation: str, params: dict[str, Any]) -> Any:
        self._holds()  # else every write is refused
        with within(self._trace):
            return await self._files.handle(operation, params)

    async def on_request(self, method: str, params: dict[str, Any]) -> Any:
        if method == "userInput.request":
            held = await self._requests.hold(str(params.get("question")))
            said = "" if held else "Too many questions are open; this one was not asked."
            return {"answer": said, "wasFreeform": True}
        if method in _ASKED_OF_ONE:
            return await self._attachments.ask(method, params)
        raise RequestRefused(METHOD_NOT_FOUND, method)

    def _write_failed(self, error: AerodromeError) -> None:
        log.warning("session.write_failed", session=str(self.key), epoch=self.lease.epoch, code=error.code)
        if isinstance(error, Fenced):
            error = TurnInterrupted("another node has taken the session over")
        self.discard(f"its files could not be written: {error.detail}", error)
