"""The JSON-RPC 2.0 envelope: who a message is for, without decoding what it says.

Only `method`, `id`, `params.sessionId` and, for events, the event's own head are ever decoded here; `params`,
`result` and `error` stay the bytes that came in (`msgspec.Raw`), to be decoded by whoever needs them or
forwarded untouched. The one exception are escapes of lone surrogates, which become U+FFFD: nobody behind us could
hold them, and the CLI leaves a message with one in it unanswered (measured; more of that kind in `wire.readable`).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aerodrome._util.surrogates import replace_lone_escapes, replace_lone_surrogates
from aerodrome.events import SessionEvent
from aerodrome.wire.framing import encode_frame
from aerodrome.wire.readable import flaw_of

RequestId = int | str

#: JSON-RPC 2.0, section 5.1.
PARSE_ERROR = -32700
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603


class EnvelopeError(Exception):
    """A body that is no JSON-RPC message, or cannot become one."""


class Message(msgspec.Struct):
    """A request (`method` and `id`), a notification (`method`), or a response (`id` alone)."""

    id: RequestId | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET

    @property
    def is_request(self) -> bool:
        return self.method is not UNSET and self.id is not UNSET and self.id is not None

    @property
    def is_notification(self) -> bool:
        return self.method is not UNSET and not self.is_request

    @property
    def is_response(self) -> bool:
        return self.method is UNSET

    @property
    def is_error(self) -> bool:
        return self.error is not UNSET and bytes(self.error) != b"null"


class _SessionParams(msgspec.Struct):
    sessionId: str | None = None  # noqa: N815 - the wire's name


class _EventParams(msgspec.Struct):
    sessionId: str  # noqa: N815 - the wire's name
    event: Raw


class _EventHead(msgspec.Struct):
    type: str
    id: str = ""
    ephemeral: bool = False


#: As the CLI writes it; the id is one that needs no escapes. What follows must be one value and two closing braces.
_EVENT_BEGINS = re.compile(
    rb'\{"jsonrpc":"2\.0","method":"session\.event","params":\{"sessionId":"([A-Za-z0-9_-]{1,200})","event":(?=\{)'
).match
#: Bytes of an event of the trace from which on it is known by its two ends: what it is, and how it is called.
_LONG = 2_000
_TRACE_BEGINS = re.compile(rb'\{"type":"(model\.[a-z_]{1,40})","data":\{').match
_TRACE_ENDS = re.compile(
    rb'\},"ephemeral":true,"id":"([0-9a-f-]{36})","timestamp":"[0-9TZ:.-]{24}","parentId":"[0-9a-f-]{36}"\}\}\}'
).fullmatch
#: An id and a time have their usual lengths.
_TRACE_TAIL = len('},"ephemeral":true,"id":"","timestamp":"","parentId":""}}}') + 36 + 24 + 36
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
        if not body.isascii():
            body.decode()  # msgspec does not look into what it leaves raw
        try:
            message = _decode_message(body)
        except msgspec.DecodeError:
            message = _decode_message(replace_lone_escapes(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"not a JSON-RPC message: {error}") from error
    if message.method is UNSET and (message.id is UNSET or message.id is None) and not message.is_error:
        raise EnvelopeError("neither a method nor an id")
    return message


def error_of(message: Message) -> tuple[int, str]:
    """Code and text of an error answer. One of an unusual shape is an error answer all the same."""
    try:
        value = decode_value(message.error)
    except EnvelopeError:
        value = None
    if not isinstance(value, dict):
        return INTERNAL_ERROR, f"an error of an unknown shape: {bytes(message.error or b'')[:200]!r}"
    code, text = value.get("code"), value.get("message")
    return code if isinstance(code, int) else INTERNAL_ERROR, str(text or "an error without a message")


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


def session_event(body: bytes) -> tuple[str, SessionEvent] | None:
    """What `decode` and `event_of` make of the body of a `session.event` notification, in one look at it instead of
    three: a short way for nearly all messages.

    Of a long event of the runtime's trace (`SessionEvent.is_trace`) only both ends are looked at: it repeats the whole
    history, and hardly anybody asks for it. Whoever passes it on finds out whether it is JSON (`is_json`).

    Returns:
        ``None`` when it is anything else, or written in another way than the CLI's: go the long way, which knows best.
    """
    head = _EVENT_BEGINS(body)
    if head is None or not body.endswith(b"}}}"):
        return None
    raw = body[head.end() : -2]
    if len(raw) > _LONG and (trace := _trace_event(body, head.end(), raw)) is not None:
        return head[1].decode("ascii"), trace
    try:
        if not raw.isascii():
            raw.decode()
        event = _decode_event_head(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return head[1].decode("ascii"), SessionEvent(event.id, event.type, raw, event.ephemeral)


def _trace_event(body: bytes, begin: int, raw: bytes) -> SessionEvent | None:
    """The event that begins there, if it is one of the trace. What matches at its end are its own last fields, whatever
    its data says: no text has such quotes in it, and no object behind `data` such an end."""
    if (kind := _TRACE_BEGINS(body, begin)) is None or (end := _TRACE_ENDS(body, len(body) - _TRACE_TAIL)) is None:
        return None
    event = SessionEvent(end[1].decode("ascii"), kind[1].decode("ascii"), raw, ephemeral=True)
    return event if event.is_trace else None


def is_json(raw: bytes) -> bool:
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def decode_value(raw: Raw | UnsetType) -> Any:
    """The whole value behind a `Raw`; ``None`` when it was absent.

    Raises:
        EnvelopeError: It is not JSON, or nested too deep to be read.
    """
    if raw is UNSET:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"not JSON: {error}") from error


def _encode(value: Any) -> bytes:
    try:
        return _encode_fast(value)
    except UnicodeEncodeError:
        return _encode_fast(_without_surrogates(value))


def size_of(value: Any) -> int:
    """Bytes of a value as JSON: what it costs on its way to a runtime, whatever it looks like."""
    return len(_encode(value))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return replace_lone_surrogates(value)
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_surrogates(item) for item in value]
    return value


def request_body(request_id: RequestId, method: str, params: Any) -> bytes:
    """Raises `EnvelopeError` for parameters that the CLI would not answer (see `wire.readable`)."""
    if (flaw := flaw_of(params)) is not None:
        raise EnvelopeError(f"the parameters of {method} cannot be passed on: {flaw}")
    return _encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def request_frame(request_id: RequestId, method: str, params: Any) -> bytes:
    """Raises `EnvelopeError` as `request_body` does."""
    return encode_frame(request_body(request_id, method, params))


def notification_frame(method: str, params: Any) -> bytes:
    return encode_frame(_encode({"jsonrpc": "2.0", "method": method, "params": params}))


def result_frame(request_id: RequestId, result: Any) -> bytes:
    return encode_frame(_encode({"jsonrpc": "2.0", "id": request_id, "result": result}))


def error_frame(request_id: RequestId, code: int, message: str, data: Any = None) -> bytes:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return encode_frame(_encode({"jsonrpc": "2.0", "id": request_id, "error": error}))
