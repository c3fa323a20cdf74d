"""What the file stores have in common: how a path is read, and what is refused in which words."""

from __future__ import annotations

import errno
import os

from aerodrome._util.surrogates import from_blob, to_blob
from aerodrome.errors import Fenced, TooLarge
from aerodrome.model import SessionKey

#: A compaction makes no chunk larger than this: it bounds what one append may have to rewrite.
COMPACTED_BYTES = 1 << 20


def parse(path: str) -> bytes:
    """Check that the path is absolute and normal: two spellings of one name would be two files."""
    if path == "/":
        return b""
    parts = path.split("/")
    if parts[0] or any(part in ("", ".", "..") for part in parts[1:]) or "\0" in path or not parts[1:]:
        raise os_error(errno.EINVAL, path)
    return to_blob(path)


def os_error(code: int, path: str | bytes) -> OSError:
    """The `OSError` subclass that Python raises for this errno."""
    return OSError(code, os.strerror(code), from_blob(path) or "/" if isinstance(path, bytes) else path)


def fenced(key: SessionKey, epoch: int, stored: int | None) -> Fenced:
    """Args:
    stored: The epoch that is announced, if any.
    """
    if not stored:
        return Fenced(f"session {key} has no announced epoch: it was deleted, or raise_epoch was not called")
    return Fenced(f"session {key} is at epoch {stored}; a write of epoch {epoch} is refused")


def too_large_file(size: int, limit: int) -> TooLarge:
    return TooLarge(f"the file would have {size} bytes; at most {limit} are allowed", limit=limit)


def too_large_session(size: int, limit: int) -> TooLarge:
    return TooLarge(f"the session's files would have {size} bytes; at most {limit} are allowed", limit=limit)
