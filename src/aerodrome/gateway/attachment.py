"""One client's part in one session (`sessions.attachments.Attachment`): how it is opened, left and kept up to date.

What the client opened the session with is remembered as long as it is connected, and said again to every runtime that
the session comes to; host-side credentials go in each time and are not part of it. Nothing of it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from msgspec import Raw, UnsetType

from aerodrome.errors import AerodromeError, Refused, RuntimeUnavailable
from aerodrome.events import SessionEvent
from aerodrome.gateway.commands import Command
from aerodrome.gateway.replay import Changes
from aerodrome.gateway.router import Router
from aerodrome.gateway.upstream import Upstream
from aerodrome.policy.open_params import OpenContext, forced_options, runtime_open_params
from aerodrome.policy.profiles import Profile
from aerodrome.runtime.link import LinkClosed, RemoteError
from aerodrome.runtime.ports import Runtime
from aerodrome.runtime.serving import LET_GO
from aerodrome.sessions.live import LiveSession

log = structlog.get_logger(__name__)

#: What is meant for the moment in which the client asked, and not for later ones.
ONCE = frozenset({"continuePendingWork", "openCanvases", "name"})
#: What a session knows from its history, with all the changes since it was opened.
REMEMBERED = frozenset({"model", "reasoningEffort", "reasoningSummary", "contextTier", "agent"})


class AttachmentOwner(Protocol):
    """What an attachment needs of its client's connection."""

    router: Router

    async def link_to(self, runtime: Runtime) -> Upstream:
        """Raises `RuntimeUnavailable`."""
        ...

    def run(self, commands: Sequence[Command]) -> None: ...

    async def ask(self, session_id: str, method: str, params: Mapping[str, Any]) -> Any:
        """Have the client answer. Raises `RequestRefused`."""
        ...

    def unended(self, session_id: str) -> list[str]:
        """Message ids of the client's prompts that a runtime of this node has taken and whose end is not known."""
        ...

    def keeps_waiting(self, session_id: str) -> bool:
        """Whether the session's runtime waits for the client."""
        ...

    def drop(self, reason: str) -> None:
        """Cut the client off."""
        ...

    def attachment_finished(self, attachment: NativeAttachment, error: AerodromeError) -> None: ...

    @property
    def gone(self) -> bool: ...


class NativeAttachment:
    """Args:
    kept: What policy keeps of the client's parameters.
    context: What a session in this runtime gets beside them.
    changes: What it has changed since; given when it was attached before, at another node.
    passive: Its user may only read.
    """

    def __init__(
        self,
        owner: AttachmentOwner,
        live: LiveSession,
        kept: Mapping[str, Any],
        context: Callable[[Runtime], OpenContext],
        profile: Profile,
        *,
        asked: Mapping[str, Any],
        changes: Changes | None = None,
        passive: bool = False,
    ) -> None:
        self.live = live
        #: What the client asked for, as it came.
        self.asked = asked
        #: The runtime's answer to the latest opening, as it came.
        self.result: Raw | UnsetType | None = None
        #: Why the runtime refused the latest opening.
        self.refused: RemoteError | None = None
        self._owner = owner
        self._context = context
        self._profile = profile
        self._kept = dict(kept)
        #: What the client had before it asked anew, as long as that is not accepted.
        self._earlier: tuple[dict[str, Any], Mapping[str, Any], Changes, bool] | None = None
        self._finished: AerodromeError | None = None
        #: What the client has changed since it opened the session.
        self.changes = changes or Changes()
        self._opened = changes is not None
        self._link: Upstream | None = None
        #: The link on which it is let go of, or was.
        self._left: Upstream | None = None
        self._passive = passive

    @property
    def session_id(self) -> str:
        return self.live.row.key.id

    @property
    def tools(self) -> frozenset[str]:
        if self._passive:
            return frozenset()
        tools = self.changes.tools if self.changes.tools is not None else self._kept.get("tools")
        named = tools if isinstance(tools, list) else []
        return frozenset(str(tool.get("name")) for tool in named if isinstance(tool, dict))

    @property
    def passive(self) -> bool:
        return self._passive

    @property
    def is_replay(self) -> bool:
        return self._opened

    @property
    def forces_options(self) -> bool:
        return forced_options(self._profile) is not None

    def ask_anew(self, kept: Mapping[str, Any], asked: Mapping[str, Any], *, passive: bool = False) -> None:
        """The client opens the session again, with other parameters. Refused, it has the earlier ones again."""
        self._earlier = (self._kept, self.asked, self.changes, self._passive)
        self._kept = dict(kept)
        self.asked = asked
        self._opened = False
        self._passive = passive
        self.changes = Changes()

    def demote(self) -> None:
        """Its user may only read from now on: it is joined so the next time."""
        self._passive = True
        self.changes = Changes()

    def take_back(self) -> None:
        """What the client has asked for anew could not be had: what it had before holds again."""
        if self._earlier is not None:
            (self._kept, self.asked, self.changes, self._passive), self._earlier = self._earlier, None
            self._opened = True

    # --- Attachment ---

    async def open(self, runtime: Runtime, *, resume: bool) -> None:
        if self._owner.gone:
            self._opened = True  # nobody waits for it
            raise Refused("the client has gone")
        method = "session.resume" if resume else "session.create"
        link = await self._owner.link_to(runtime)
        async with link.line(self.session_id):
            await self._open(link, method, self._params(runtime, resume=resume))

    async def _open(self, link: Upstream, method: str, params: Mapping[str, Any]) -> None:
        if self._finished is not None:
            raise Refused(f"the session has gone: {self._finished.detail}")
        router = self._owner.router
        joined = self._link is link and router.sessions.is_ready(self.session_id)
        router.sessions.bind(self.session_id, link.id)
        self._link = link
        try:
            self.result = await link.request(method, params)
        except RemoteError as error:
            self.refused = error
            if joined and self._link is link:
                router.sessions.ready(self.session_id)  # the runtime has changed nothing
            else:
                router.sessions.unbind(self.session_id)
            self.take_back()
            raise Refused(f"the runtime refused: {error}") from error
        except LinkClosed as error:
            raise RuntimeUnavailable(f"the runtime has gone: {error}") from error
        except TimeoutError as error:
            await self._unanswered(link, method)
            raise RuntimeUnavailable(f"the runtime did not answer {method} in time") from error
        self.refused = None
        self._earlier = None
        if self._opened:
            await self._change_again(link)
        self._opened = True

    def ready(self) -> None:
        if self._link is not None:  # it was not lost meanwhile
            self._owner.router.sessions.ready(self.session_id)

    async def _change_again(self, link: Upstream) -> None:
        for method, params in self.changes.requests:
            try:
                await link.request(method, {**params, "sessionId": self.session_id})
            except RemoteError as error:
                log.warning("gateway.change_not_repeated", method=method, reason=str(error))
            except (LinkClosed, TimeoutError) as error:
                raise RuntimeUnavailable(f"the runtime has gone: {error}") from error

    def _params(self, runtime: Runtime, *, resume: bool) -> dict[str, Any]:
        if self._passive:
            # Attaches, touches nothing, and nobody is told (docs/facts.md, "Sessions and connections").
            return {"sessionId": self.session_id, "disableResume": True}
        kept = dict(self._kept)
        if self._opened:
            for name in ONCE | (REMEMBERED if resume else frozenset()):
                kept.pop(name, None)
            self.changes.onto(kept)
            if resume and self.live.row.model is not None:
                kept["model"] = self.live.row.model  # as it was changed since; without one it would get the default
            if resume:
                kept["disableResume"] = True  # the client is not told that it has come back: it never was away
        return {**runtime_open_params(kept, self._context(runtime)), "sessionId": self.session_id}

    async def close(self) -> None:
        link, self._link = self._link, None
        self._owner.router.sessions.unbind(self.session_id)
        if link is None and self._left is not None:
            async with self._left.line(self.session_id):
                return  # somebody else has let go of it: for both of us that is over now
        if link is None or link.connection.closed:
            return
        self._left = link
        try:
            async with link.line(self.session_id):
                await link.request("session.detach", {"sessionId": self.session_id}, timeout=LET_GO)
        except (LinkClosed, RemoteError):
            pass  # there is nothing to let go of
        except TimeoutError:
            await self._unanswered(link, "session.detach")

    async def _unanswered(self, link: Upstream, method: str) -> None:
        """The runtime did not answer on this link. It is well all the same: then it waits for a client, or the link
        does, and what is left of the session there goes with the link."""
        if link.runtime is not None and await link.runtime.answers(method):
            reason = f"the runtime did not answer {method} in time, and waits for this client"
            self.suspect(reason)
            self.live.attachments.suspect(reason)
            link.connection.abort(f"no answer to {method}")

    def cut_off(self, runtime: Runtime) -> None:
        self._owner.router.sessions.cut_off(self.session_id, runtime.id)

    def lost(self) -> None:
        self._link = None
        self._owner.router.sessions.unbind(self.session_id)
        self._run(self._owner.router.sessions.catch_up(self.session_id, self.live.hub.kept()))

    def tell(self, event: SessionEvent, *, from_host: bool = False) -> None:
        self._run(self._owner.router.sessions.tell(self.session_id, [event], from_host=from_host))

    def doubt(self, message_ids: Sequence[str]) -> None:
        mine = set(self._owner.unended(self.session_id))
        self._owner.router.sessions.doubt(
            self.session_id, [message_id for message_id in message_ids if message_id in mine]
        )

    def assured(self, message_ids: Sequence[str]) -> None:
        self._owner.router.sessions.assured(self.session_id, message_ids)

    def sent_again(self, first_id: str, latest_id: str | None) -> None:
        self._run(self._owner.router.sessions.alias(self.session_id, first_id, latest_id))

    async def ask(self, method: str, params: Mapping[str, Any]) -> Any:
        return await self._owner.ask(self.session_id, method, params)

    def refuse_hooks(self, reason: str | None) -> None:
        self._run(self._owner.router.refuse_hooks(self.session_id, reason))

    def suspect(self, reason: str) -> None:
        if self._owner.keeps_waiting(self.session_id):
            self._owner.drop(reason)

    def finish(self, error: AerodromeError) -> None:
        self._finished = error
        self._owner.attachment_finished(self, error)

    def _run(self, commands: Sequence[Command]) -> None:
        if commands:
            self._owner.run(commands)
