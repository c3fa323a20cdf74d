"""The errors Aerodrome raises on purpose: one base class, a stable `code` each.

An error carries what a caller needs to act on (`code`, `detail`, `retryable`, `retry_after`) and no HTTP or
JSON-RPC number: each front door maps the code at its own edge. Where a race can be lost in ordinary life
the functions of this package return ``None`` or ``False``; an exception means that something is wrong.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AerodromeError(Exception):
    """Base of every error a caller may see.

    Args:
        detail: One sentence for a person: what is wrong, and what to do about it.
        retry_after: Seconds after which the same call may succeed; ``None`` when unknown.
        extra: JSON values for programs, such as ``turn`` or ``limit``.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, retry_after: float | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        self.extra = extra


class Unauthenticated(AerodromeError):
    """No credential, or one that nobody issued."""

    code = "unauthenticated"


class Forbidden(AerodromeError):
    """The caller is known, may see the thing, and may not do this to it."""

    code = "forbidden"


class NotFound(AerodromeError):
    """There is no such thing, or the caller may not know of it (the two look the same on purpose)."""

    code = "not_found"


class Invalid(AerodromeError):
    """The request itself is wrong; sending it again changes nothing."""

    code = "invalid"


class TooLarge(AerodromeError):
    """A body, frame, file or history is over its limit."""

    code = "too_large"


class Conflict(AerodromeError):
    """The request contradicts what is stored, such as one idempotency key for two prompts."""

    code = "conflict"


class Quarantined(AerodromeError):
    """The session has made runtimes end more than once, and is loaded no more until an operator releases it."""

    code = "quarantined"


class SessionBusy(AerodromeError):
    """A turn is running (or the session is active on another node) and the caller asked not to wait."""

    code = "session_busy"
    retryable = True


class SessionElsewhere(SessionBusy):
    """Another node runs the session. Whoever can asks that one; a caller sees `session_busy`."""


class Capacity(AerodromeError):
    """A ceiling is reached and the bounded wait for room has passed."""

    code = "capacity"
    retryable = True


class RateLimited(Capacity):
    """The ceiling, or the rate, is that of this user or tenant alone: others are served (ADR 0050)."""

    code = "rate_limited"


class TurnInterrupted(AerodromeError):
    """The runtime died in mid-turn after something may have happened that must not happen twice."""

    code = "turn_interrupted"
    retryable = True


class TurnFailed(AerodromeError):
    """The turn ended in an error of the model or of the runtime."""

    code = "turn_failed"


class RuntimeUnavailable(AerodromeError):
    """No Copilot CLI process can be had: it is missing, fails to start, or answers no probe."""

    code = "runtime_unavailable"
    retryable = True


class Refused(RuntimeUnavailable):
    """The runtime lives, and answered with an error."""


class StoreUnavailable(AerodromeError):
    """A store cannot be reached or written: locked, full, or away."""

    code = "store_unavailable"
    retryable = True


class Draining(AerodromeError):
    """This node is shutting down and takes no new work."""

    code = "draining"
    retryable = True


class Fenced(AerodromeError):
    """A write carried an epoch older than the stored one: somebody else runs this session now.

    Never answered to a user: the activation that meets it is closed for good, because the CLI keeps refused
    events and would write them with the next append that succeeds (docs/facts.md, "Session files").
    """

    code = "fenced"


class ConfigError(AerodromeError):
    """A setting is unknown or wrong; `detail` names file, line and the likely intention."""

    code = "invalid_configuration"


def all_codes() -> dict[str, type[AerodromeError]]:
    """Every code with the class that carries it, for the error table of the documentation."""
    kinds: list[type[AerodromeError]] = [*AerodromeError.__subclasses__(), RateLimited]
    return {cls.code: cls for cls in kinds}
