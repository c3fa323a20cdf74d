"""Lone surrogates: half a character, which JavaScript strings and JSON escapes may hold and UTF-8 cannot say.

The CLI never answers a message with one in it, and msgspec refuses the whole message, so that they are replaced
where text comes in and where it goes out.
"""

from __future__ import annotations

import re

#: An escaped backslash (so that what follows it is text), a pair, or a lone half.
_ESCAPES = re.compile(
    rb"\\\\"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_REPLACEMENT = b"\\ufffd"


def replace_lone_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate; two halves side by side become the character they mean."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def replace_lone_escapes(json: bytes) -> bytes:
    r"""JSON text with the escape of U+FFFD for each escape of a lone surrogate."""
    return _ESCAPES.sub(lambda match: _REPLACEMENT if match[1] else match[0], json)
