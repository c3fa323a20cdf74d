from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.statestore.history import stored_events
from aerodrome.statestore.transcript import DamageKind, examine


def event(number: int, text: str = "x") -> str:
    return json.dumps({"type": "user.message", "id": f"e{number}", "data": {"content": text}}, ensure_ascii=False)


THREE = "".join(f"{event(number)}\n" for number in range(3))


def kinds(text: str) -> list[DamageKind]:
    return [damage.kind for damage in examine(text).damages]


def test_a_whole_history_is_left_as_it_is() -> None:
    for text in ("", THREE, f"{event(0, 'half a character: ')}\n", '{"type": "a", "data": {"content": "\\ud83d"}}\n'):
        assert examine(text).damages == ()
        assert examine(text).mended == text


def test_a_half_character_in_a_prompt_is_no_damage() -> None:
    text = '{"type":"user.message","data":{"content":"\ud83d"}}\n'
    assert (examine(text).damages, examine(text).mended) == ((), text)


@given(cut=st.integers(1, len(event(2))))
def test_wherever_the_last_line_is_torn_it_is_dropped_and_nothing_else(cut: int) -> None:
    text = f"{event(0)}\n{event(1)}\n{event(2)[:cut]}"
    found = examine(text)
    if cut == len(event(2)):
        assert kinds(text) == [DamageKind.UNTERMINATED]
        assert found.mended == THREE
    else:
        assert kinds(text) == [DamageKind.TORN]
        assert found.mended == f"{event(0)}\n{event(1)}\n"
        assert found.damages[0].line == 3


def test_nul_bytes_at_the_end_are_dropped() -> None:
    assert kinds(f"{THREE}\0\0\0\0") == [DamageKind.NUL]
    assert examine(f"{THREE}\0\0\0\0").mended == THREE


def test_an_event_behind_nul_bytes_is_kept() -> None:
    text = f"{event(0)}\n\0\0\0{event(1)}\n{event(2)}\n"
    assert kinds(text) == [DamageKind.NUL]
    assert examine(text).mended == THREE


def test_a_corrupt_line_in_the_middle_is_dropped() -> None:
    text = f"{event(0)}\n{event(1)[:20]}\n{event(1)[3:]}\n{event(2)}\n"
    assert kinds(text) == [DamageKind.CORRUPT, DamageKind.CORRUPT]
    assert examine(text).mended == f"{event(0)}\n{event(2)}\n"


@pytest.mark.parametrize("line", ["17", "[]", "null", '{"id": "x"}', '{"type": 3}', "{" * 5000, "\udc80" + event(1)])
def test_what_is_json_and_no_event_is_damage(line: str) -> None:
    assert kinds(f"{event(0)}\n{line}\n{event(2)}\n") == [DamageKind.CORRUPT]


def test_bytes_that_are_no_text_inside_an_event_are_damage() -> None:
    torn = event(1, "\u00e9").encode()
    text = (event(0).encode() + b"\n" + torn.replace(b"\xc3\xa9", b"\xc3") + b"\n").decode(errors="surrogateescape")
    assert kinds(text) == [DamageKind.CORRUPT]


LINES = st.lists(
    st.one_of(
        st.integers(0, 99).map(event),
        st.text(alphabet='{}"\\:,\0\ud83d\udc80typea ', max_size=20),
        st.integers(0, 30).map(lambda cut: event(7)[:cut]),
    ),
    max_size=12,
)


@given(lines=LINES, end=st.sampled_from(["", "\n"]))
def test_what_is_mended_is_whole_and_says_what_it_said_before(lines: list[str], end: str) -> None:
    text = "\n".join(lines) + end
    found = examine(text)
    again = examine(found.mended)
    assert again.damages == ()
    assert again.mended == found.mended
    assert again.events == found.events
    whole = [line for line in lines if line.strip() and line in found.mended.split("\n")]
    assert len(stored_events(found.mended)) == found.events >= len(whole)
    if not found.damages:
        assert found.mended.splitlines() == [line for line in text.split("\n") if line.strip()]
