from __future__ import annotations

import pytest

from aerodrome.events import SessionEvent

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"data":[]}', b'{"data":{"a":%b}}' % DEEP, b"\xff"])
def test_data_that_cannot_be_read_are_none(raw: bytes) -> None:
    assert SessionEvent("e", "user.message", raw).data == {}


def test_data_are_those_of_the_envelope() -> None:
    assert SessionEvent("e", "user.message", b'{"type":"user.message","data":{"content":"hi"}}').data == {
        "content": "hi"
    }
