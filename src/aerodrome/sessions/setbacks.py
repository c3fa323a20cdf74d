"""What goes wrong with one session while many are looked after: it is told, and the others get their turn."""

from __future__ import annotations

import structlog

from aerodrome.errors import AerodromeError
from aerodrome.model import SessionKey

log = structlog.get_logger(__name__)


def tell(event: str, key: SessionKey, error: Exception) -> None:
    """Log it: an error that is none of ours with its traceback, since nobody has expected it."""
    if isinstance(error, AerodromeError):
        log.warning(event, session=str(key), reason=error.detail)
    else:
        log.error(event, session=str(key), reason=type(error).__name__, exc_info=error)
