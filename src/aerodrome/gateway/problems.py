"""Our errors as JSON-RPC errors: this front door's edge (`errors.py` knows no numbers).

`data` has the stable `code`, `retryable`, and `retry_after` (seconds) when it is known. Where the Copilot CLI has a
number and a text of its own for the same thing, clients get those, because they may look for them.
"""

from __future__ import annotations

from typing import Any

from aerodrome.errors import AerodromeError, Invalid, NotFound, Unauthenticated
from aerodrome.wire.envelope import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    RequestId,
    error_frame,
)

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
    "problem_frame",
    "refusal_frame",
]
