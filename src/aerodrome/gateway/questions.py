"""What one client is asked: by the runtimes of its sessions, and by us. Pure.

Each question gets a number of ours for its id, since two runtimes may use the same ones. Its answer goes to whoever has
asked, in the form of an answer to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec import Raw

from aerodrome.gateway import problems
from aerodrome.gateway.bodies import answer_body
from aerodrome.gateway.commands import Command, Told, ToRuntime
from aerodrome.wire import envelope
from aerodrome.wire.envelope import RequestId
from aerodrome.wire.framing import encode_frame

HOOKS = "hooks.invoke"
#: Before these are answered a runtime does nothing else for their session.
_HELD_UP_BY = frozenset({HOOKS, "systemMessage.transform"})


class _Asked(msgspec.Struct):
    session_id: str | None
    method: str
    #: The runtime that asks, and its id; ``None``: we do.
    link: str | None = None
    id: RequestId | None = None


class Questions:
    def __init__(self) -> None:
        self._asked: dict[int, _Asked] = {}
        self._numbers = 0

    def ask(
        self,
        session_id: str | None,
        method: str,
        params: bytes,
        *,
        link: str | None = None,
        request_id: RequestId | None = None,
    ) -> tuple[int, bytes]:
        """Args:
            link, request_id: The runtime's that asks; without them, `Told` has the answer.

        Returns:
            The number, and the body for the client.
        """
        self._numbers += 1
        self._asked[self._numbers] = _Asked(session_id, method, link, request_id)
        text = msgspec.json.encode(method)
        return self._numbers, b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b}' % (self._numbers, text, params)

    def answer(self, message: envelope.Message, flaw: str | None) -> Sequence[Command]:
        """The client has answered something. What it was not asked goes nowhere.

        Args:
            flaw: Why a runtime would not read the answer, and wait for ever.
        """
        if not isinstance(message.id, int) or message.id not in self._asked:
            return ()
        asked = self._asked.pop(message.id)
        text = f"the client's answer cannot be passed on: {flaw}"
        if asked.link is None or asked.id is None:
            return [Told(message.id, refusing(message.id, text) if flaw is not None else message)]
        if flaw is not None:
            return [ToRuntime(asked.link, envelope.error_frame(asked.id, problems.INTERNAL_ERROR, text))]
        return [ToRuntime(asked.link, encode_frame(answer_body(asked.id, message)))]

    def forget(self, number: int) -> None:
        """Nobody waits for it any more."""
        self._asked.pop(number, None)

    def holds_up(self, session_id: str) -> bool:
        """Whether something is not answered before which a runtime does nothing else for the session."""
        return any(asked.session_id == session_id and asked.method in _HELD_UP_BY for asked in self._asked.values())

    def refuse_hooks(self, session_id: str, reason: str) -> Sequence[Command]:
        """Answer in the client's place what runtimes have asked of its hooks; its own answers come too late then."""
        taken = self._take(
            lambda asked: asked.session_id == session_id and asked.method == HOOKS and asked.link is not None
        )
        return [_refused(number, asked, problems.INTERNAL_ERROR, reason) for number, asked in taken]

    def withdraw(self, session_id: str) -> Sequence[Command]:
        """Answer everything of the session in the client's place: nobody shall wait for it."""
        text = "the client may not answer that any more"
        taken = self._take(lambda asked: asked.session_id == session_id)
        return [_refused(number, asked, problems.METHOD_NOT_FOUND, text) for number, asked in taken]

    def lost(self, link: str) -> None:
        """Whoever has asked by this link is gone."""
        self._take(lambda asked: asked.link == link)

    def close(self) -> None:
        """The client has gone."""
        self._asked.clear()

    def _take(self, which: Callable[[_Asked], bool]) -> list[tuple[int, _Asked]]:
        taken = [(number, asked) for number, asked in self._asked.items() if which(asked)]
        for number, _ in taken:
            del self._asked[number]
        return taken


def refusing(number: RequestId, text: str, code: int = problems.INTERNAL_ERROR) -> envelope.Message:
    """As if whoever was asked had refused."""
    return envelope.Message(id=number, error=Raw(msgspec.json.encode({"code": code, "message": text})))


def _refused(number: int, asked: _Asked, code: int, text: str) -> Command:
    if asked.link is None or asked.id is None:
        return Told(number, refusing(number, text, code))
    return ToRuntime(asked.link, envelope.error_frame(asked.id, code, text))
