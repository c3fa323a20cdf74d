"""Durations and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome._util.durations import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("30m", 1800),
        ("2h", 7200),
        ("30d", 2_592_000),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 1.5 h ", 5400),
        ("2H", 7200),
        ("0s", 0),
        ("15", 15),
        (15, 15),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_seconds(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "5 parsecs", "-1s", "1h-5m", "nan", "inf", "-3", "1e400", "\u0661s", True, None]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**12))
def test_a_formatted_duration_parses_to_itself(milliseconds: int) -> None:
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


def test_a_duration_is_written_with_its_largest_units() -> None:
    assert format_duration(5400) == "1h30m"
    assert format_duration(90_061.001) == "1d1h1m1s1ms"
    assert format_duration(0) == "0s"


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("1.5 GB", 1_500_000_000), ("1kb", 1000), ("1KiB", 1024), ("7b", 7), ("7", 7), (7, 7)],
)
def test_a_size_is_bytes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "1 parsec", "-1KiB", "0.1b", "0.3", "inf", "nan", False, None])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_formatted_size_parses_to_itself(size: int) -> None:
    assert parse_size(format_size(size)) == size
