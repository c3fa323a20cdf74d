"""One session resident in one runtime, under one epoch: from create or resume to detach, or to its loss.

An activation is used once. Everything that ends it early (the runtime dies, a write is refused, the lease is
lost) settles `lost`, and from then on nothing is written through it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from aerodrome.coordination.ports import Lease
from aerodrome.errors import AerodromeError, NotFound, RuntimeUnavailable
from aerodrome.events import SessionEvent
from aerodrome.policy.session_params import SAFE_OPTIONS
from aerodrome.runtime.link import LinkClosed, RemoteError, RequestRefused
from aerodrome.runtime.supervisor import ManagedRuntime
from aerodrome.statestore.ports import SessionFileStore
from aerodrome.statestore.provider import SessionFs
from aerodrome.wire.envelope import METHOD_NOT_FOUND

log = structlog.get_logger(__name__)

_COMPLETED = {"permission.completed": "permission", "user_input.completed": "user_input"}
_REQUESTED = {"permission.requested": "permission", "user_input.requested": "user_input"}


@dataclass(frozen=True, slots=True)
class Loss:
    reason: str
    #: The store's error, when it was a write that failed; ``None`` when it was the runtime.
    error: AerodromeError | None = None


class ActivationRefused(RuntimeUnavailable):
    """The runtime could not load the session: it went away, or it refused."""


class Activation:
    """Implements `runtime.control.SessionBinding`."""

    def __init__(
        self,
        lease: Lease,
        runtime: ManagedRuntime,
        store: SessionFileStore,
        *,
        on_event: Callable[[SessionEvent], None],
        on_request_open: Callable[[str, str], None],
    ) -> None:
        self.lease = lease
        self.key = lease.key
        self.runtime = runtime
        self.lost: asyncio.Future[Loss] = asyncio.get_running_loop().create_future()
        self._on_event = on_event
        self._on_request_open = on_request_open
        self._open_requests: dict[str, str] = {}
        self._held_inputs: deque[asyncio.Future[None]] = deque()
        self._files = SessionFs(
            store, lease.key, lease.epoch, home=str(runtime.copilot_home), on_failed_write=self._write_failed
        )

    # --- life ---

    async def open(self, params: dict[str, Any], *, resume: bool) -> None:
        """Create or resume the session in the runtime.

        Raises:
            ActivationRefused: The runtime refused or went away.
        """
        self.runtime.control.bind(self.key.id, self)
        try:
            await self._request("session.resume" if resume else "session.create", params)
            await self._request("session.options.update", {"sessionId": self.key.id, **SAFE_OPTIONS})
        except RuntimeUnavailable as error:
            self.discard(error.detail)
            raise ActivationRefused(error.detail) from error
        except BaseException:
            self.discard("its opening was cancelled")
            raise

    async def close(self) -> bool:
        """Unload it, everything stored. ``False``: it went wrong; the activation is lost instead."""
        try:
            answer = await self.runtime.control.request("session.detach", {"sessionId": self.key.id})
        except (LinkClosed, RemoteError, TimeoutError) as error:
            self.discard(f"it could not be unloaded: {error}")
            return False
        if not answer.get("success") or self.lost.done():
            self.discard("it could not be unloaded")
            return False
        self.discard("unloaded")
        return True

    def discard(self, reason: str, error: AerodromeError | None = None) -> None:
        """Cut it off: no more reads, writes or events. What the runtime still holds of it is void."""
        self._files.close()
        self.runtime.control.unbind(self.key.id, self)
        self._open_requests.clear()
        for held in self._held_inputs:
            held.cancel()
        if not self.lost.done():
            self.lost.set_result(Loss(reason, error))

    async def unload_void(self) -> None:
        """Free the memory a discarded session still takes in a living runtime; best effort."""
        with contextlib.suppress(LinkClosed, RemoteError, TimeoutError):
            await self.runtime.control.request("session.detach", {"sessionId": self.key.id})

    # --- what is asked of it ---

    async def send(self, prompt: str, attachments: list[dict[str, Any]], *, steer: bool = False) -> str:
        """Hand a prompt over; returns the runtime's id of the message."""
        params: dict[str, Any] = {"sessionId": self.key.id, "prompt": prompt}
        if attachments:
            params["attachments"] = attachments
        if steer:
            params["mode"] = "immediate"
        answer = await self._request("session.send", params)
        return str(answer["messageId"])

    async def abort(self) -> None:
        await self._request("session.abort", {"sessionId": self.key.id})

    async def answer(self, request_id: str, answer: dict[str, Any]) -> None:
        """Answer an open permission or user-input request. Raises `NotFound` when it is not open (any more)."""
        kind = self._open_requests.pop(request_id, None)
        if kind is None:
            raise NotFound("no such request is open: it was answered, it timed out, or it never was")
        params: dict[str, Any] = {"sessionId": self.key.id, "requestId": request_id}
        if kind == "permission":
            method, params["result"] = "session.permissions.handlePendingPermissionRequest", _decision(answer)
        else:
            method, params["response"] = "session.ui.handlePendingUserInput", _reply(answer)
        taken = await self._request(method, params)
        if not taken.get("success"):
            raise NotFound("the request was answered by somebody else first")

    def kind_of_request(self, request_id: str) -> str | None:
        return self._open_requests.get(request_id)

    async def _request(self, method: str, params: dict[str, Any]) -> Any:
        try:
            return await self.runtime.control.request(method, params)
        except (LinkClosed, RemoteError) as error:
            raise RuntimeUnavailable(f"the runtime refused: {error}") from error
        except TimeoutError as error:
            # It answered pings a moment ago but not this: it will not get better by itself.
            self.runtime.kill(f"no answer to {method}")
            raise RuntimeUnavailable(f"the runtime did not answer {method} in time") from error

    # --- SessionBinding ---

    def on_event(self, event: SessionEvent) -> None:
        if (kind := _REQUESTED.get(event.type)) is not None:
            data = event.data
            if not data.get("resolvedByHook"):
                self._open_requests[str(data.get("requestId"))] = kind
                self._on_request_open(str(data.get("requestId")), kind)
        elif event.type in _COMPLETED:
            self._open_requests.pop(str(event.data.get("requestId")), None)
            if event.type == "user_input.completed" and self._held_inputs:
                self._held_inputs.popleft().cancel()
        self._on_event(event)

    async def on_file_operation(self, operation: str, params: dict[str, Any]) -> Any:
        return await self._files.handle(operation, params)

    async def on_request(self, method: str, params: dict[str, Any]) -> Any:
        if method != "userInput.request":
            raise RequestRefused(METHOD_NOT_FOUND, method)
        # The question is answered by its event's request id (`answer`), which this request does not name; the
        # request itself is held until then.
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held_inputs.append(held)
        await asyncio.wait({held})
        return {"answer": "", "wasFreeform": True}

    def _write_failed(self, error: AerodromeError) -> None:
        log.warning("session.write_failed", session=str(self.key), epoch=self.lease.epoch, code=error.code)
        self.discard(f"its files could not be written: {error.detail}", error)


def _decision(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("decision") == "approve":
        return {"kind": "approve-once"}
    return {"kind": "reject", "feedback": str(answer.get("feedback") or "denied by the user")}


def _reply(answer: dict[str, Any]) -> dict[str, Any]:
    return {"answer": str(answer.get("answer", "")), "wasFreeform": bool(answer.get("free_form", True))}
