"""Which releases may run side by side."""

from __future__ import annotations

import pytest

from aerodrome.peers.versions import refusal, side_by_side


@pytest.mark.parametrize(
    ("own", "other", "may"),
    [
        ("0.2.0", "0.2.0", True),
        ("0.2.0", "0.2.9", True),
        ("0.2.0", "0.3.0rc1", True),
        ("0.3.0", "0.2.0", True),
        ("0.2.0", "0.4.0", False),
        ("0.4.0", "0.2.7", False),
        ("1.0.0", "0.9.3", True),
        ("1.0.0", "1.9.0", True),
        ("1.4.0", "2.0.0", True),
        ("1.0.0", "3.0.0", False),
        ("3.0.0", "0.9.0", False),
        ("0.2.0", "a build of my own", True),
    ],
)
def test_a_release_gets_along_with_its_neighbours(own: str, other: str, may: bool) -> None:
    assert side_by_side(own, other) is may
    assert side_by_side(other, own) is may


def test_a_refusal_says_what_to_run() -> None:
    assert refusal("0.4.0", {"a": "0.4.1", "b": "0.3.0"}) is None
    said = refusal("0.4.0", {"c": "0.2.0", "b": "0.1.0", "a": "0.3.0"})
    assert said is not None
    assert said.startswith("this is Aerodrome 0.4.0, and b runs 0.1.0, c runs 0.2.0: ")
    assert said.endswith("`aerodrome nodes drain b --wait` and `aerodrome nodes drain c --wait`")
