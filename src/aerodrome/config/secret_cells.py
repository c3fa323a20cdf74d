"""A secret as it is now: `Cell`, and `LiveSecret`, the form in which settings carry one.

A cell is read when the settings are loaded, and then has to have a value. From then on it keeps the last good one: a
source that is away, empty or wrong is told once in the log, and again when it is well. Whoever needs the secret asks
the cell at the moment of use and keeps no copy.

`current` may be called from the loop: it looks at a file's metadata, and reads the file if that has changed. What takes
longer (Vault, programs) is asked by `refresh` in a thread; see `app.secret_keeper`. An address may be made of both: a
change of its file counts at once, with the rest as it was when last asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import structlog
from pydantic import SecretStr

from aerodrome.config.secret_sources import Source, Unresolved

log = structlog.get_logger(__name__)


class Cell:
    """Args:
    source: Where it is read from.
    check: Raises ValueError when a new value will not do; the last good one is kept then.

    Raises:
        Unresolved: There is no value.
    """

    def __init__(self, source: Source, check: Callable[[str], object] | None = None) -> None:
        self._source = source
        #: See above; set by whoever knows more about what the secret is for.
        self.check = check
        #: Why the value may be an old one; ``None``: it is what the source has.
        self.problem: str | None = None
        self._value = source.read()
        #: One reads, from whatever thread; a slow source must not be asked by two.
        self._reading = threading.Lock()

    @property
    def where(self) -> str:
        """Where the secret comes from, for people; nothing of the secret itself."""
        return self._source.where

    @property
    def polled(self) -> bool:
        """Whether it has to be refreshed now and then, because nothing tells that it has changed."""
        return self._source.polled

    def current(self) -> str:
        """The secret: what its source has, or the last good value. Never fails."""
        # Whoever is reading may wait for Vault, and others must not wait for that: what was good is good for so long.
        if self._source.changed() and self._reading.acquire(blocking=False):
            try:
                self._take(self._source.reread)
            finally:
                self._reading.release()
        return self._value

    def refresh(self) -> bool:
        """Read the source again; returns whether the secret is another one now. Blocks. Never fails."""
        with self._reading:
            return self._take(self._source.read, whole=True)

    def _take(self, read: Callable[[], str], *, whole: bool = False) -> bool:
        """Args:
        whole: All of it is looked up: what did not answer the last time is well if this goes well.
        """
        try:
            value = read()
            if value != self._value and self.check is not None:
                self.check(value)
        except ValueError as error:
            self._keep(str(error))
            return False
        except Exception as error:
            # Not its text, which may quote anything. Whoever asks has others to ask as well.
            self._keep(f"it can not be looked up: {type(error).__name__}")
            return False
        if self.problem is not None and (whole or not self.polled):
            log.info("secret.recovered", source=self.where)
            self.problem = None
        changed = value != self._value
        if changed:
            self._value = value
            log.info("secret.changed", source=self.where)
        return changed

    def _keep(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("secret.kept", source=self.where, reason=problem)
        self.problem = problem

    def __repr__(self) -> str:
        return f"<Cell {self.where}>"

    # A copy would have a value of its own, which nobody refreshes.
    def __copy__(self) -> Cell:
        return self

    def __deepcopy__(self, _: Any) -> Cell:
        return self


class LiveSecret(SecretStr):
    """A `SecretStr` whose value is that of a cell, asked for anew each time."""

    def __init__(self, cell: Cell) -> None:
        super().__init__("")
        self.cell = cell

    def get_secret_value(self) -> str:
        return self.cell.current()

    def _display(self) -> str:
        return "**********"

    def __len__(self) -> int:
        return len(self.get_secret_value())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretStr) and self.get_secret_value() == other.get_secret_value()

    def __hash__(self) -> int:
        # Equal ones are told apart by their values, which change.
        return hash(LiveSecret)


__all__ = ["Cell", "LiveSecret", "Unresolved"]
