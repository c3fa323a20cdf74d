"""Durations and sizes as people write them: "1h30m", "500ms", "64MiB".

Both directions are here, so that what a program prints can be pasted into its configuration.
"""

from __future__ import annotations

import math
import re

_EXPECTED_DURATION = 'expected a duration such as "500ms", "30s", "1h30m" or "30d"'
_EXPECTED_SIZE = 'expected a size such as "512KiB", "64MiB" or "1.5GB"'

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern}\s*)+", re.ASCII)

_BYTES = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.ASCII | re.IGNORECASE)


def parse_duration(value: str | float) -> float:
    """Seconds. Text is one or more numbers, each with a unit (ms, s, m, h, d); a bare number is seconds.

    Raises:
        ValueError: It is not a duration, is negative, or is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(_EXPECTED_DURATION)
    if isinstance(value, str):
        text = value.strip().lower()
        if _DURATION.fullmatch(text):
            value = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
        else:
            value = _bare_number(text, _EXPECTED_DURATION)
    if not math.isfinite(value) or value < 0:
        raise ValueError(_EXPECTED_DURATION)
    return float(value)


def format_duration(seconds: float) -> str:
    """The shortest exact text for whole milliseconds: 5400 is "1h30m"; finer fractions are rounded."""
    left = round(seconds * 1000)
    if left == 0:
        return "0s"
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_size(value: str | float) -> int:
    """Bytes. Units are decimal (kB, MB, GB, TB) and binary (KiB, MiB, GiB, TiB); a bare number is bytes.

    Raises:
        ValueError: It is not a size, is negative, or is not a whole number of bytes.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(_EXPECTED_SIZE)
    number, unit = value, 1
    if isinstance(value, str):
        if match := _SIZE.fullmatch(value.strip()):
            number, unit = float(match[1]), _BYTES.get(match[2].lower(), 0)
        else:
            number = _bare_number(value, _EXPECTED_SIZE)
    size = float(number) * unit
    if not unit or not math.isfinite(size) or size < 0 or size != int(size):
        raise ValueError(_EXPECTED_SIZE)
    return int(size)


def format_size(size: int) -> str:
    """The largest binary unit that divides it: 67108864 is "64MiB", 1500 is "1500B"."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def _bare_number(text: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(expected) from None
