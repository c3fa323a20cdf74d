"""What the CLI reads of a message, and what it never answers (measured, docs/facts.md, "Wire").

Behind us is a JSON reader with rules of its own: at most 127 levels, integers of 64 bits, numbers that a double can
hold, no half characters. A message that breaks one is not refused there, it is left without an answer, and whoever
waits for the answer may take the runtime for dead. So each is looked at before it is passed on, in bytes (`flaw_in`)
or decoded (`flaw_of`). The look at bytes costs a few passes in C over them whatever they say, because strangers choose
what they say: nothing is decoded, nothing is called once for each bracket.
"""

from __future__ import annotations

import math
import re
from typing import Any

from msgspec import UNSET, Raw, UnsetType

#: How deep arrays and objects of a request's parameters may be nested. The CLI reads 127 levels in all.
MAX_DEPTH = 100
#: Values in one message. Texts may be as long as the frame; but so many numbers or objects are no message to an agent,
#: and twenty million lists, which fit into a frame, would take gigabytes to decode. Policy looks at each one.
MAX_VALUES = 50_000

_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
#: Bytes up to which digits are looked for in texts, too; a long text may consist of them.
_SHORT = 64 * 1024
#: Only a number with one of these may be out of range.
_PERHAPS_TOO_LARGE = re.compile(rb"[0-9](?:[eE]|[0-9]{18})")
_NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")

_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_TOO_MANY = f"more than {MAX_VALUES} values"
_TOO_LARGE = "a number that is out of range: integers have up to 64 bits, others are finite"


def flaw_in(value: Raw | UnsetType) -> str | None:
    """Why the CLI would not answer these parameters, or this result; ``None``: it would.

    Args:
        value: Valid JSON; lone surrogates are for `_util.surrogates`.
    """
    if value is UNSET:
        return None
    raw = bytes(value)
    few = raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH and raw.count(b",") <= MAX_VALUES
    if few and len(raw) <= _SHORT and _PERHAPS_TOO_LARGE.search(raw) is None:
        return None  # nearly all
    if (outside := _outside(raw)) is None:
        return _TOO_MANY
    if _is_deep(outside):
        return _TOO_DEEP
    if _PERHAPS_TOO_LARGE.search(outside) and any(map(_is_large, _NUMBER.finditer(outside))):
        return _TOO_LARGE
    return None


def excess_in(raw: bytes) -> str | None:
    """Why nobody should decode this, whether it is JSON or not: it has more values than there is time for."""
    if _marks(raw) <= MAX_VALUES:
        return None  # nearly all
    return _TOO_MANY if _outside(raw) is None else None


def _outside(raw: bytes) -> bytes | None:
    """What is not within texts; ``None``: there are too many values."""
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A value may have a name, and both be texts.
    if raw.count(b'"') > 4 * MAX_VALUES:
        return None
    outside = b" ".join(raw.split(b'"')[::2])
    return outside if _marks(outside) <= MAX_VALUES else None


def _marks(text: bytes) -> int:
    """Each value but the first stands behind one."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _is_deep(outside: bytes) -> bool:
    brackets = outside.translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")  # the innermost
    return bool(brackets)


def _is_large(number: re.Match[bytes]) -> bool:
    text = number[0]
    if number[1] or number[2]:
        return math.isinf(float(text))
    return len(text) > 20 or not _SMALLEST <= int(text) <= _LARGEST


def flaw_of(value: Any) -> str | None:
    """As `flaw_in`, of a value that is about to be encoded. How many there are in it is of no interest: it is here."""
    return _flaw_of(value, MAX_DEPTH)


def _flaw_of(value: Any, depth: int) -> str | None:
    if isinstance(value, str) or value is None:
        return None
    if isinstance(value, int):
        return None if _SMALLEST <= value <= _LARGEST else _TOO_LARGE
    if isinstance(value, float):
        return None if math.isfinite(value) else _TOO_LARGE
    if isinstance(value, dict):
        items: Any = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        return None
    if depth <= 0:
        return _TOO_DEEP
    for item in items:
        if (flaw := _flaw_of(item, depth - 1)) is not None:
            return flaw
    return None
