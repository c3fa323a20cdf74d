"""Which notifications of runtimes reach a client: events of the sessions that it takes part in, and what becomes of
sessions that are its user's. What is about the host, or about everybody, is nobody's. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from aerodrome.gateway.bindings import NODE_LINK, Bindings, EventHead
from aerodrome.gateway.commands import Command, Gone, Moved, ToClient
from aerodrome.peers.shapes import MOVED
from aerodrome.wire.framing import encode_frame

#: How the CLI begins a notification. Only a hint that saves decoding a frame twice.
_PREFIX = b'{"jsonrpc":"2.0","method":"'
_DELETED = "session.deleted"
#: The kind of `host.event` that concerns one session.
_TASK_TRANSITION = "task_transition"


class _Scope(msgspec.Struct):
    sessionId: str | None = None  # noqa: N815 - the wire's name


class _Params(msgspec.Struct):
    sessionId: str | None = None  # noqa: N815
    event: EventHead | None = None
    scope: _Scope | None = None
    kind: str | None = None
    type: str | None = None


class Notification(msgspec.Struct):
    method: str
    params: _Params


_decode = msgspec.json.Decoder(Notification).decode


def may_be_notification(body: bytes) -> bool:
    """Whether it is worth while to read the body as one before anything else."""
    return body.startswith(_PREFIX)


def read_notification(body: bytes) -> Notification | None:
    """``None``: it is a request, or has a shape that we do not know."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Notifications:
    """Those for one client.

    Args:
        is_own: Whether a session that the client is not attached to is its user's own.
    """

    def __init__(self, sessions: Bindings, is_own: Callable[[str], bool]) -> None:
        self._sessions = sessions
        self._is_own = is_own

    def take(self, link: str, notification: Notification, body: bytes) -> Sequence[Command]:
        params = notification.params
        if notification.method == "session.event":
            if params.event is None or params.sessionId is None:
                return ()
            return self._sessions.event(link, params.sessionId, params.event, body)
        if notification.method == MOVED:
            return [Moved(params.sessionId, link)] if params.sessionId and link.startswith(NODE_LINK) else ()
        if notification.method == "session.lifecycle":
            return self._lifecycle(link, params, body)
        if notification.method == "host.event" and params.kind == _TASK_TRANSITION and params.scope is not None:
            known = self._sessions.get(params.scope.sessionId) is not None
            return [ToClient(encode_frame(body))] if known else ()
        return ()

    def _lifecycle(self, link: str, params: _Params, body: bytes) -> Sequence[Command]:
        session_id = params.sessionId
        if link.startswith(NODE_LINK):
            # That node knows whose it is, also when the client takes part in it no more.
            told = ToClient(encode_frame(body))
            return [told, Gone(session_id, link)] if params.type == _DELETED and session_id else [told]
        known = session_id is not None and (session_id in self._sessions or self._is_own(session_id))
        return [ToClient(encode_frame(body))] if known else ()
