"""Names that come from outside, such as those of users, as stores can hold them."""

from __future__ import annotations


def ascii_name(name: str) -> str:
    """A spelling in ASCII, another for each name: text may hold lone surrogates, which UTF-8 cannot say."""
    return name.encode("unicode_escape").decode("ascii")
