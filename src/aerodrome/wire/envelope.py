"""The JSON-RPC 2.0 envelope: who a message is for, without decoding what it says.

Only `method`, `id`, `params.sessionId` and, for events, the event's own head are ever decoded here; `params`,
`result` and `error` stay the bytes that came in (`msgspec.Raw`), to be decoded by whoever needs them or
forwarded untouched.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aerodrome.events import SessionEvent
from aerodrome.wire.framing import encode_frame

RequestId = int | str

#: JSON-RPC 2.0, section 5.1.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603


class EnvelopeError(Exception):
    """A body that is no JSON-RPC message."""


class ErrorObject(msgspec.Struct):
    code: int
    message: str
    data: Raw | UnsetType = UNSET


class Message(msgspec.Struct):
    """A request (`method` and `id`), a notification (`method`), or a response (`id` alone)."""

    id: RequestId | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: ErrorObject | UnsetType | None = UNSET

    @property
    def is_request(self) -> bool:
        return self.method is not UNSET and self.id is not UNSET and self.id is not None

    @property
    def is_notification(self) -> bool:
        return self.method is not UNSET and not self.is_request

    @property
    def is_response(self) -> bool:
        return self.method is UNSET


class _SessionParams(msgspec.Struct):
    sessionId: str | None = None  # noqa: N815 - the wire's name


class _EventParams(msgspec.Struct):
    sessionId: str  # noqa: N815 - the wire's name
    event: Raw


class _EventHead(msgspec.Struct):
    type: str
    id: str = ""
    ephemeral: bool = False


_decode_message = msgspec.json.Decoder(Message).decode
_decode_session = msgspec.json.Decoder(_SessionParams).decode
_decode_event_params = msgspec.json.Decoder(_EventParams).decode
_decode_event_head = msgspec.json.Decoder(_EventHead).decode
_encode_fast = msgspec.json.Encoder().encode


def decode(body: bytes) -> Message:
    """Read the envelope of a body.

    Raises:
        EnvelopeError: It is not JSON, not an object, or neither a call nor a response.
    """
    try:
        message = _decode_message(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"not a JSON-RPC message: {error}") from error
    if message.method is UNSET and (message.id is UNSET or message.id is None) and not message.error:
        raise EnvelopeError("neither a method nor an id")
    return message


def session_of(params: Raw | UnsetType) -> str | None:
    """`params.sessionId`, if params is an object that has one."""
    if params is UNSET:
        return None
    try:
        return _decode_session(params).sessionId
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def event_of(params: Raw) -> tuple[str, SessionEvent]:
    """The session id and the event of a `session.event` notification; the event keeps its bytes.

    Raises:
        EnvelopeError: The parameters are no session event.
    """
    try:
        outer = _decode_event_params(params)
        raw = bytes(outer.event)
        head = _decode_event_head(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"not a session event: {error}") from error
    return outer.sessionId, SessionEvent(id=head.id, type=head.type, raw=raw, ephemeral=head.ephemeral)


def decode_value(raw: Raw | UnsetType) -> Any:
    """The whole value behind a `Raw`; ``None`` when it was absent."""
    if raw is UNSET:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        # msgspec refuses the escape of a lone surrogate, which JavaScript strings may hold; the standard
        # library takes it.
        return json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise EnvelopeError(f"not JSON: {error}") from error


def _encode(value: Any) -> bytes:
    try:
        return _encode_fast(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def request_frame(request_id: RequestId, method: str, params: Any) -> bytes:
    return encode_frame(_encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}))


def notification_frame(method: str, params: Any) -> bytes:
    return encode_frame(_encode({"jsonrpc": "2.0", "method": method, "params": params}))


def result_frame(request_id: RequestId, result: Any) -> bytes:
    return encode_frame(_encode({"jsonrpc": "2.0", "id": request_id, "result": result}))


def error_frame(request_id: RequestId | None, code: int, message: str, data: Any = None) -> bytes:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return encode_frame(_encode({"jsonrpc": "2.0", "id": request_id, "error": error}))
