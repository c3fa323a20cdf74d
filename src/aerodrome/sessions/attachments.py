"""The client connections that are attached to a session: their port, and the set of them that one session has.

A native client takes part in a session through a connection of its own to the session's runtime, because the runtime
asks *connections* for tools, permissions, hooks and input. The connection belongs to the front door; what the session
must do with it is this: open the session through it, so that the client's tools and hooks are there from the first
moment; have it let go of the session before that is unloaded; and tell it what the runtime could not.

The first attachment creates or resumes the session with everything its client asked for, the control link then attaches
without touching any of it, and the other attachments join (docs/facts.md, "Sessions and connections").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import structlog

from aerodrome.errors import AerodromeError, Refused, RuntimeUnavailable
from aerodrome.events import SessionEvent
from aerodrome.runtime.link import RequestRefused
from aerodrome.runtime.ports import Runtime
from aerodrome.wire.envelope import INTERNAL_ERROR, METHOD_NOT_FOUND

log = structlog.get_logger(__name__)

#: Seconds that clients may take to answer what a runtime asks through us: it does nothing else for the session before.
ASK_TIMEOUT = 10.0
#: What may be asked of one session's clients at the same time.
_MAX_ASKED = 16


class Attachment(Protocol):
    """One client's part in one session."""

    @property
    def tools(self) -> frozenset[str]:
        """Names of the tools that the client runs itself."""
        ...

    @property
    def passive(self) -> bool:
        """The client only reads: it joins a session that is loaded, brings nothing to it and is asked nothing."""
        ...

    @property
    def is_replay(self) -> bool:
        """The client has been attached before and waits for nothing: whoever opens the session does so for it."""
        ...

    @property
    def forces_options(self) -> bool:
        """Whether the safe options of the host are forced on a session that it opens."""
        ...

    async def open(self, runtime: Runtime, *, resume: bool) -> None:
        """Create or resume the session in the runtime, on the client's own connection. One that is open there already
        and is refused stays as it was.

        Raises:
            Refused: The runtime answered with an error.
            RuntimeUnavailable: It went away, or did not answer.
        """
        ...

    def ready(self) -> None:
        """The session is as it shall be: what the client asks from now on goes to its runtime at once. Until then it
        would be undone by what we ask for the session to be as it was."""
        ...

    async def close(self) -> None:
        """Let go of the session in its runtime, which lives on. What goes wrong is of no interest."""
        ...

    def cut_off(self, runtime: Runtime) -> None:
        """What this runtime says of the session from now on is void."""
        ...

    def lost(self) -> None:
        """Runtime or activation are void: what the client asks from now on waits for the next `open`."""
        ...

    def tell(self, event: SessionEvent, *, from_host: bool = False) -> None:
        """An event of the session. The client may have it from the runtime already, unless it is `from_host`."""
        ...

    def doubt(self, message_ids: Sequence[str]) -> None:
        """These prompts were with a runtime that is lost, and are to be sent again: what the client has seen of them is
        not stored."""
        ...

    def assured(self, message_ids: Sequence[str]) -> None:
        """It is known what has become of these prompts, and about to be told."""
        ...

    def sent_again(self, first_id: str, latest_id: str | None) -> None:
        """A prompt whose message the client knows as `first_id` is being sent again (`latest_id` is ``None``), or was
        and now has another id."""
        ...

    async def ask(self, method: str, params: Mapping[str, Any]) -> Any:
        """Have the client answer a request of the runtime. Raises `RequestRefused`."""
        ...

    def refuse_hooks(self, reason: str | None) -> None:
        """The runtime shall not wait for the client's hooks: what it has asked of them, and will ask, is answered with
        an error. ``None``: they are asked again."""
        ...

    def suspect(self, reason: str) -> None:
        """The runtime does not answer something about the session, and is well otherwise. A client that it waits for
        is cut off."""
        ...

    def finish(self, error: AerodromeError) -> None:
        """The session is gone for good, or cannot be opened for this client any more."""
        ...


class Attachments:
    """Those of one session, the one that has been there longest first."""

    def __init__(self) -> None:
        self._all: list[Attachment] = []
        #: Those that a server of somebody else has refused: that may be the server's fault, and the next one says.
        self._doubted: WeakSet[Attachment] = WeakSet()
        #: What clients are being asked at this moment.
        self._asking = 0

    def __bool__(self) -> bool:
        return bool(self._all)

    def __iter__(self) -> Iterator[Attachment]:
        return iter(list(self._all))

    def __contains__(self, attachment: object) -> bool:
        return attachment in self._all

    def add(self, attachment: Attachment, *, first: bool = False) -> None:
        self.remove(attachment)
        self._all.insert(0 if first else len(self._all), attachment)

    def remove(self, attachment: Attachment) -> None:
        if attachment in self._all:
            self._all.remove(attachment)

    async def open_first(self, runtime: Runtime, *, resume: bool, lost: Callable[[], bool]) -> Attachment | None:
        """Have the session created or resumed by the first that can. ``None``: there is none (any more).

        Args:
            lost: Whether the activation was lost meanwhile; a refusal then says nothing of what was asked.

        Raises:
            Refused: The runtime refuses what a client that waits for it asks for.
            RuntimeUnavailable: It went away.
        """
        for attachment in self:
            if not attachment.passive and await self._open(attachment, runtime, lost, resume=resume):
                return attachment
        return None

    async def open_others(self, first: Attachment | None, runtime: Runtime, *, lost: Callable[[], bool]) -> bool:
        """The session is loaded: let the others join; whether there are any. Raises as `open_first`."""
        others = [attachment for attachment in self if attachment is not first]
        for attachment in others:
            await self._open(attachment, runtime, lost, resume=True)
        return bool(others)

    async def reopen(self, attachment: Attachment, runtime: Runtime, *, lost: Callable[[], bool]) -> None:
        """Have one of them leave and join anew. Raises as `open_first`."""
        await attachment.close()
        await self._open(attachment, runtime, lost, resume=True)

    async def _open(self, attachment: Attachment, runtime: Runtime, lost: Callable[[], bool], *, resume: bool) -> bool:
        replay = attachment.is_replay
        try:
            await attachment.open(runtime, resume=resume)
        except Refused as error:
            if lost():
                raise RuntimeUnavailable("the activation was lost while the session was loaded") from error
            if not replay:
                raise
            if runtime.foreign and attachment not in self._doubted:
                self._doubted.add(attachment)
                raise
            # What it was attached with is not accepted any more. Others shall not be without their session for it.
            log.warning("attachment.refused", reason=error.detail)
            self.remove(attachment)
            attachment.finish(error)
            return False
        self._doubted.discard(attachment)
        return True

    async def ask(self, method: str, params: Mapping[str, Any]) -> Any:
        """The first answer that is none of refusal; those are asked first that have come last, as the runtime does."""
        if self._asking >= _MAX_ASKED:
            raise RequestRefused(INTERNAL_ERROR, f"{method}: {_MAX_ASKED} of these are not answered yet")
        self._asking += 1
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                return await self._ask(method, params)
        except TimeoutError:
            raise RequestRefused(INTERNAL_ERROR, f"{method}: no answer within {ASK_TIMEOUT:g} s") from None
        finally:
            self._asking -= 1

    async def _ask(self, method: str, params: Mapping[str, Any]) -> Any:
        refused = RequestRefused(METHOD_NOT_FOUND, method)
        for attachment in reversed([each for each in self if not each.passive]):
            try:
                return await attachment.ask(method, params)
            except RequestRefused as error:
                refused = error
        raise refused

    def ready(self) -> None:
        for attachment in self:
            attachment.ready()

    async def close(self) -> None:
        # At the same time: none shall wait for another's client.
        await asyncio.gather(*(attachment.close() for attachment in self))

    def refuse_hooks(self, reason: str | None) -> None:
        for attachment in self:
            attachment.refuse_hooks(reason)

    def suspect(self, reason: str) -> None:
        for attachment in self:
            attachment.suspect(reason)

    def cut_off(self, runtime: Runtime) -> None:
        for attachment in self:
            attachment.cut_off(runtime)

    def lost(self) -> None:
        for attachment in self:
            attachment.lost()

    def tell(self, event: SessionEvent, *, from_host: bool = False) -> None:
        for attachment in self:
            attachment.tell(event, from_host=from_host)

    def doubt(self, message_ids: Sequence[str]) -> None:
        for attachment in self:
            attachment.doubt(message_ids)

    def assured(self, message_ids: Sequence[str]) -> None:
        for attachment in self:
            attachment.assured(message_ids)

    def sent_again(self, first_id: str, latest_id: str | None) -> None:
        for attachment in self:
            attachment.sent_again(first_id, latest_id)

    def finish(self, error: AerodromeError) -> None:
        for attachment in self:
            attachment.finish(error)
        self._all.clear()
