"""A lifecycle as a table, `(state, stimulus) -> state`, and the object that walks it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

S = TypeVar("S", bound=StrEnum)
I = TypeVar("I", bound=StrEnum)  # noqa: E741 - I for the input, S for the state

#: Steps remembered for the error that tells how it came to this.
_REMEMBERED = 13


class ImpossibleTransition(Exception):
    """A stimulus that cannot come in this state: a bug of ours."""


class Machine(Generic[S, I]):
    """Where one thing stands, and how it came there."""

    def __init__(self, start: S, transitions: Mapping[tuple[S, I], S]) -> None:
        self.state: S = start
        self._transitions = transitions
        self._story: deque[str] = deque([start.value], maxlen=_REMEMBERED)

    def apply(self, stimulus: I) -> S:
        """Take a stimulus in and return the new state.

        Raises:
            ImpossibleTransition: The table has no such row; nothing is changed.
        """
        target = self._transitions.get((self.state, stimulus))
        if target is None:
            raise ImpossibleTransition(f"{stimulus} in state {self.state}; so far: {' '.join(self._story)}")
        if target is not self.state:
            self._story.append(f"-{stimulus}-> {target}")
        self.state = target
        return target
