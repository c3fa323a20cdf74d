"""Our errors as JSON-RPC errors: this front door's edge (`errors.py` knows no numbers).

`data` has the stable `code`, `retryable`, and `retry_after` (seconds) when it is known. Where the Copilot CLI has a
number and a text of its own for the same thing, clients get those, because they may look for them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from aerodrome.errors import AerodromeError, Invalid, NotFound, Unauthenticated
from aerodrome.gateway.commands import Request
from aerodrome.wire import envelope
from aerodrome.wire.envelope import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    RequestId,
    error_frame,
)
from aerodrome.wire.framing import encode_frame

#: The CLI's own numbers (docs/facts.md, "Wire").
NOT_CONNECTED = -32001
AUTHENTICATION_FAILED = -32002
#: Everything else of ours; the reserved range for servers begins here.
GATEWAY_ERROR = -32000
#: JSON-RPC 2.0, section 5.1.
INVALID_REQUEST = -32600

#: Number of each code where it is not `GATEWAY_ERROR`.
NUMBERS = {
    "unauthenticated": AUTHENTICATION_FAILED,
    "forbidden": METHOD_NOT_FOUND,
    "not_found": INTERNAL_ERROR,
    "invalid": INVALID_PARAMS,
    "internal": INTERNAL_ERROR,
}


class _ErrorData(msgspec.Struct):
    code: str | None = None


class _Error(msgspec.Struct):
    data: _ErrorData


class RuntimeRefused(Invalid):
    """The runtime's own error, told as the runtime has told it."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def problem_frame(request_id: RequestId, method: str, error: AerodromeError, *, session_id: str | None = None) -> bytes:
    """The error answer to a request."""
    message = error.detail
    data: dict[str, Any] = {"code": error.code, "retryable": error.retryable, **_plain(error.extra)}
    if isinstance(error, Unauthenticated):
        message, data["detail"] = "AUTHENTICATION_FAILED", error.detail
    elif isinstance(error, NotFound):
        what = "Failed to load session events: Session not found" if method == "session.resume" else "Session not found"
        message, data["detail"] = f"Request {method} failed with message: {what}: {session_id}", error.detail
    if error.retry_after is not None:
        data["retry_after"] = error.retry_after
    number = error.number if isinstance(error, RuntimeRefused) else NUMBERS.get(error.code, GATEWAY_ERROR)
    return error_frame(request_id, number, message, data)


def not_connected_frame(request_id: RequestId) -> bytes:
    """The answer to whoever has not said who it is."""
    data = {"code": Unauthenticated.code, "detail": "send `connect` with your key as `token` first", "retryable": False}
    return error_frame(request_id, NOT_CONNECTED, "AUTHENTICATION_REQUIRED", data)


def refusal_frame(request_id: RequestId, method: str, reason: str, code: str) -> bytes:
    """The answer to what policy does not allow."""
    number = INVALID_PARAMS if code == "invalid" else METHOD_NOT_FOUND
    return error_frame(
        request_id, number, f"{method} is not allowed here: {reason}", {"code": code, "retryable": False}
    )


def problem_of(request: Request, error: AerodromeError) -> bytes:
    """The frame that answers a request with one of our errors."""
    session_id = request.session_id or envelope.session_of(request.params)
    return problem_frame(request.id, request.method, error, session_id=session_id)


def anonymous_error_frame(number: int, text: str) -> bytes:
    """The answer to a message whose id is not known, or cannot be repeated."""
    error: dict[str, Any] = {"code": number, "message": text}
    return encode_frame(msgspec.json.encode({"jsonrpc": "2.0", "id": None, "error": error}))


def problem_code(message: envelope.Message) -> str | None:
    """`error.data.code` of an answer, which our own errors have."""
    try:
        return msgspec.json.decode(message.error or b"", type=_Error).data.code
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _plain(extra: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if isinstance(value, (str, int, float, bool))}


__all__ = [
    "AUTHENTICATION_FAILED",
    "GATEWAY_ERROR",
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "NOT_CONNECTED",
    "PARSE_ERROR",
    "anonymous_error_frame",
    "problem_code",
    "problem_frame",
    "problem_of",
    "refusal_frame",
]
