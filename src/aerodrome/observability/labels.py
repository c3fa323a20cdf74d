"""Bounds on values of labels that come from outside: each value is a series for as long as the process lives. Pure."""

from __future__ import annotations

OTHER = "other"


class Capped:
    """Args:
    most: Values that are told apart, the first to come; all others are `other`. 0: the label is empty, always.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if not self._most:
            return ""
        if value not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(value)
        return value
