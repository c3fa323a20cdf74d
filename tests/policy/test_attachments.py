from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.policy.attachments import refusal

BLOB = {"type": "blob", "data": "aGVsbG8=", "mimeType": "text/plain"}


def test_content_that_comes_with_the_request_is_allowed() -> None:
    assert refusal([]) is None
    assert refusal([BLOB, {**BLOB, "displayName": "notes.txt"}]) is None


@pytest.mark.parametrize(
    "attachment",
    [
        {"type": "file", "path": "/etc/passwd"},
        {"type": "directory", "path": "/"},
        {"type": "selection", "filePath": "/etc/passwd", "text": "x"},
        {"type": "github_reference", "number": 1},
        {"path": "/etc/passwd"},
        {**BLOB, "path": "/etc/passwd"},
        {"type": "blob", "mimeType": "text/plain"},
        {"type": "blob", "data": 5, "mimeType": "text/plain"},
        {**BLOB, "displayName": [[[]]]},
    ],
)
def test_what_names_something_to_fetch_is_refused(attachment: dict[str, Any]) -> None:
    said = refusal([BLOB, attachment])
    assert said is not None
    assert "attachments[1]" in said


@pytest.mark.parametrize("attachment", [{"type": "x" * 10_000}, {"type": ["x"] * 10_000}, {**BLOB, "x" * 10_000: 1}])
def test_a_refusal_is_no_longer_than_what_there_is_to_say(attachment: dict[str, Any]) -> None:
    said = refusal([attachment])
    assert said is not None
    assert len(said) < 300


@given(st.lists(st.dictionaries(st.text(), st.text(), max_size=4)))
def test_nothing_but_blobs_ever_passes(attachments: list[dict[str, str]]) -> None:
    if refusal(attachments) is None:
        assert all(attachment["type"] == "blob" for attachment in attachments)
