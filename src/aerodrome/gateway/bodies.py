"""Bodies that are written anew on their way through: requests that can be read in two ways, answers under another id.

Pure. All others pass as they came.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aerodrome.wire import envelope
from aerodrome.wire.envelope import RequestId

#: Keys of a request that decide what becomes of it, and how they might be spelled otherwise: nobody escapes ASCII.
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_KEYS = (b'"id"', b'"method"', b'"params"', b'"sessionId"')


def unambiguous(body: bytes, request_id: RequestId, method: str, params: Raw | UnsetType) -> bytes:
    """A request that the runtime cannot read in another way than we did.

    JSON may name a key twice, or spell it with escapes, and readers differ in which they believe: what was allowed for
    one session must not be carried out in another. Hardly any message has to be written anew for that.
    """
    escaped = _ESCAPED_ASCII.search(body) is not None
    if not escaped and all(body.count(key) <= 1 for key in _KEYS):
        return body
    if params is UNSET:
        return envelope.request_body(request_id, method, {})
    raw = bytes(params)
    if escaped or raw.count(b'"sessionId"') > 1:
        return envelope.request_body(request_id, method, msgspec.json.decode(raw))
    return b'{"jsonrpc":"2.0","id":%b,"method":%b,"params":%b}' % (
        msgspec.json.encode(request_id),
        msgspec.json.encode(method),
        raw,
    )


def answer_body(request_id: RequestId, message: envelope.Message) -> bytes:
    """The client's answer under the id that the runtime knows; its own bytes otherwise."""
    encoded = msgspec.json.encode(request_id)
    if message.is_error:
        assert message.error is not UNSET
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (encoded, bytes(message.error))
    result = bytes(message.result) if message.result is not UNSET else b"null"
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (encoded, result)
