"""Bodies of a client: what is read out of them, and what is written anew before they are passed on.

Pure. `read` does all that takes the longer the larger a body is, so that the shell can have it done in a thread. Nearly
all bodies pass as they came; written anew are requests that can be read in two ways, answers under another id, and half
characters.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aerodrome._util.surrogates import replace_lone_escapes
from aerodrome.wire import envelope
from aerodrome.wire.envelope import RequestId
from aerodrome.wire.readable import flaw_in

#: Keys of a request that decide what becomes of it, and how they might be spelled otherwise: nobody escapes ASCII.
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_KEYS = (b'"id"', b'"method"', b'"params"', b'"sessionId"', b'"jsonrpc"')
#: Without it the CLI does not answer.
_VERSION = re.compile(rb'"jsonrpc"\s*:\s*"2\.0"')
#: Half characters in one message. Replacing millions would take seconds.
_MOST_HALVES = 100_000
#: Of an id; the CLI does not answer a larger one.
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


class Incoming(msgspec.Struct, frozen=True):
    """What a client has sent, read."""

    message: envelope.Message
    #: A request as it may be passed on.
    body: bytes
    #: Why its parameters, result or error cannot be passed on.
    flaw: str | None = None

    @property
    def has_good_id(self) -> bool:
        request_id = self.message.id
        return not isinstance(request_id, int) or _SMALLEST <= request_id <= _LARGEST


def read(body: bytes) -> Incoming:
    """Raises `EnvelopeError` for what is no JSON-RPC message."""
    try:
        body = replace_lone_escapes(body, most=_MOST_HALVES)
    except ValueError as error:
        raise envelope.EnvelopeError(str(error)) from None
    message = envelope.decode(body)
    if message.method is UNSET:
        return Incoming(message, b"", flaw_in(message.result) or flaw_in(message.error))
    flaw = flaw_in(message.params)
    if flaw is None and message.is_request:
        assert isinstance(message.id, int | str)
        body = unambiguous(body, message.id, message.method, message.params)
    return Incoming(message, body, flaw)


def unambiguous(body: bytes, request_id: RequestId, method: str, params: Raw | UnsetType) -> bytes:
    """A request that the runtime cannot read in another way than we did.

    JSON may name a key twice, or spell it with escapes, and readers differ in which they believe: what was allowed for
    one session must not be carried out in another. Hardly any message has to be written anew for that.

    Raises:
        EnvelopeError: It cannot be read twice.
    """
    escaped = _ESCAPED_ASCII.search(body) is not None
    if not escaped and all(body.count(key) <= 1 for key in _KEYS) and _VERSION.search(body):
        return body
    if params is UNSET:
        return envelope.request_body(request_id, method, {})
    raw = bytes(params)
    if escaped or raw.count(b'"sessionId"') > 1:
        return envelope.request_body(request_id, method, envelope.decode_value(params))
    return b'{"jsonrpc":"2.0","id":%b,"method":%b,"params":%b}' % (
        msgspec.json.encode(request_id),
        msgspec.json.encode(method),
        raw,
    )


def answer_body(request_id: RequestId, message: envelope.Message) -> bytes:
    """The client's answer under the id that the runtime knows; its own bytes otherwise."""
    encoded = msgspec.json.encode(request_id)
    if message.is_error:
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (encoded, _error(message))
    result = bytes(message.result) if message.result is not UNSET else b"null"
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (encoded, result)


def _error(message: envelope.Message) -> bytes:
    """The client's own error; in the shape that errors have, because the runtime passes over others."""
    assert message.error is not UNSET
    try:
        value = envelope.decode_value(message.error)
    except envelope.EnvelopeError:
        value = None
    if isinstance(value, dict) and isinstance(value.get("code"), int) and isinstance(value.get("message"), str):
        return bytes(message.error)
    code, text = envelope.error_of(message)
    return msgspec.json.encode({"code": code, "message": text})
