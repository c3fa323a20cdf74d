"""Lone surrogates: half a character, which JavaScript strings and JSON escapes may hold and UTF-8 cannot say.

The CLI never answers a message with one in it, and msgspec refuses the whole message, so that they are replaced
where text comes in and where it goes out. What is stored as a blob keeps them.
"""

from __future__ import annotations

import re

_HIGH, _LOW = rb"[89abAB][0-9a-fA-F]{2}", rb"[c-fC-F][0-9a-fA-F]{2}"
#: A first half without a second behind it, or a second without a first before it.
_LONE = re.compile(rb"\\u[dD](?:%b(?!\\u[dD]%b)|(?<!\\u[dD]%b\\u[dD])%b)" % (_HIGH, _LOW, _HIGH, _LOW))
_REPLACEMENT = b"\\\\ufffd"
#: Stands for an escaped backslash, so that what follows it is text. No JSON has it as it is.
_BACKSLASH = b"\0\0"


def replace_lone_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate; two halves side by side become the character they mean."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def replace_lone_escapes(json: bytes, most: int = 0) -> bytes:
    r"""JSON text with the escape of U+FFFD for each escape of a lone surrogate.

    Args:
        most: Raise `ValueError` when there are so many; 0: however many there are.
    """
    if b"\\ud" not in json and b"\\uD" not in json:
        return json
    masked = b"\\\\" in json and _BACKSLASH not in json
    found, count = _LONE.subn(_REPLACEMENT, json.replace(b"\\\\", _BACKSLASH) if masked else json, most)
    if most and count == most:
        raise ValueError(f"more than {most} halves of characters")
    if not count:
        return json
    return found.replace(_BACKSLASH, b"\\\\") if masked else found


def to_blob(text: str) -> bytes:
    """UTF-8 that also carries lone surrogates, which the text types of databases refuse.

    JSON can spell them (``"\\ud800"``), so the CLI and its users can send them. `from_blob` is the inverse.
    """
    return text.encode("utf-8", "surrogatepass")


def from_blob(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")
