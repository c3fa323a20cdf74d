"""What the router asks of the shell, and what the shell tells it of: a client's requests, and the commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aerodrome.policy.methods import MethodRule
from aerodrome.wire import envelope
from aerodrome.wire.envelope import RequestId


class Request(msgspec.Struct):
    """A client's request that is not answered yet."""

    id: RequestId
    method: str
    rule: MethodRule
    body: bytes
    params: Raw | UnsetType = UNSET
    session_id: str | None = None
    #: Bytes, as it came.
    size: int = 0
    #: Seconds, about, that it has been with a runtime.
    age: float = 0.0
    #: The link it was sent on.
    link: str | None = None
    #: Its user may not see the answer any more.
    expelled: bool = False
    #: Called when it has been answered, or never will be.
    on_done: Callable[[], None] | None = None
    #: The latest events that the client has, which another node relays: it is told what has come behind them.
    known: list[str] | None = None
    #: What a runtime has answered to one that changes something in its session.
    result: Raw | UnsetType = UNSET
    #: How often another node has given it back, because it does not run the session.
    returned: int = 0
    #: Called when it has its effect before those that have come behind it, answered or not.
    on_taken_up: Callable[[], None] | None = None


def params_of(request: Request) -> dict[str, Any]:
    """The parameters as they were sent on. Raises `EnvelopeError` when they cannot be read."""
    params = envelope.decode_value(envelope.decode(request.body).params)
    return params if isinstance(params, dict) else {}


def result_of(request: Request) -> dict[str, Any]:
    """What a runtime has answered. Raises `EnvelopeError` when it cannot be read."""
    result = envelope.decode_value(request.result)
    return result if isinstance(result, dict) else {}


def release(request: Request) -> None:
    """What is held for it is needed no more, or no more there."""
    if request.on_done is not None:
        on_done, request.on_done = request.on_done, None
        on_done()


class ToClient(msgspec.Struct, frozen=True):
    frame: bytes
    #: Error code, when it refuses what the client has asked for.
    refused: str = ""


class ToRuntime(msgspec.Struct, frozen=True):
    link: str
    frame: bytes


class Serve(msgspec.Struct, frozen=True):
    """The shell answers the request itself, and says so with `answered`."""

    request: Request


class Place(msgspec.Struct, frozen=True):
    """The shell finds the runtime that the request is for, loading its session if need be, and calls `send`."""

    request: Request


class ToOwn(msgspec.Struct, frozen=True):
    """The answer to a request that we have made on a link."""

    link: str
    message: envelope.Message


class Told(msgspec.Struct, frozen=True):
    """The client's answer to what we have asked it ourselves (`ask`)."""

    number: int
    message: envelope.Message


class Changed(msgspec.Struct, frozen=True):
    """A runtime has carried out a request that must hold in the next one, too."""

    request: Request


class Relayed(msgspec.Struct, frozen=True):
    """Another node has opened, left or deleted a session for the client, or refused to."""

    request: Request
    done: bool


class Moved(msgspec.Struct, frozen=True):
    """The node behind the link, which ran the session, says that it does not any more."""

    session_id: str
    link: str


class Gone(msgspec.Struct, frozen=True):
    """Another node, which ran the session for the client, says that it is no more, or no more the client's."""

    session_id: str
    link: str


Command = ToClient | ToRuntime | Serve | Place | ToOwn | Told | Changed | Relayed | Moved | Gone
