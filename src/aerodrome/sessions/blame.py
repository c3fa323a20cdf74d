"""Which session is to blame for the end of a runtime. Pure.

A runtime that ends by itself takes all its sessions with it, and one of them has made it do so: one that was in a turn,
or one that was being loaded. The idle ones are innocent. If only one comes into question, it is *charged*. Of several
nobody knows which it was: they are *suspected*, and each goes on in a runtime of its own, where the guilty one charges
itself and the others clear themselves by ending a turn. So an innocent neighbour is never charged. Whoever comes into
question again within a day has to end twice as many turns each time (`Record`): a guilty one may be harmless while it
is alone, and is there each time.

At `LIMIT` charges a session is quarantined: it is loaded no more until an operator releases it. Charges are stored with
the session, so that all nodes see them and a restart keeps them; those below the limit are forgotten after a day.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aerodrome.errors import Quarantined
from aerodrome.model import SessionKey
from aerodrome.runtime.deaths import Death

#: Charges at which a session is quarantined.
LIMIT = 2
#: Seconds after which charges below the limit are forgotten.
FORGOTTEN_AFTER = 86400.0
#: Suspected sessions at a time that get runtimes of their own: those with the longest histories.
MOST_SUSPECTED = 8
#: Turns at most that a suspected session has to end before it is cleared.
MOST_TURNS = 64
#: Name among the options of a session's row.
OPTION = "charges"


@dataclass(frozen=True, slots=True)
class Charges:
    """What is stored of a session that has made runtimes end."""

    count: int
    #: Unix seconds of the latest.
    at: float
    #: What the latest was.
    reason: str

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Charges | None:
        """Those among the options of a session's row."""
        stored = options.get(OPTION)
        if not isinstance(stored, dict):
            return None
        return cls(int(stored.get("count", 0)), float(stored.get("at", 0.0)), str(stored.get("reason", "")))

    def stored(self) -> dict[str, Any]:
        return {"count": self.count, "at": self.at, "reason": self.reason}

    @property
    def quarantined(self) -> bool:
        return self.count >= LIMIT

    def counts(self, now: float) -> bool:
        """Whether they are not forgotten yet."""
        return self.quarantined or now - self.at < FORGOTTEN_AFTER


def charged(before: Charges | None, death: Death, now: float) -> Charges:
    """The session's charges with one more."""
    count = before.count if before is not None and before.counts(now) else 0
    return Charges(count + 1, now, death.value)


def refusal(charges: Charges, key: SessionKey) -> Quarantined:
    # A reason of another release is as good as none.
    how = _HOW.get(charges.reason, "by what is not known here")
    return Quarantined(
        f"this session has ended {charges.count} runtimes, the last one {how}, and is not loaded any "
        f"more; an operator can release it: aerodrome sessions release {key.id} --tenant {key.tenant}",
        reason=charges.reason,
        at=charges.at,
    )


_HOW = {
    Death.CRASHED.value: "by a crash",
    Death.MEMORY.value: "for want of memory",
    Death.SHORTAGE.value: "while the machine had no memory left",
    Death.STUCK.value: "because it answered nobody any more",
}


def in_question(
    death: Death, loading: Collection[SessionKey], in_turn: Mapping[SessionKey, int]
) -> Sequence[SessionKey]:
    """The sessions that may have caused a runtime's end, the likeliest first.

    Args:
        loading: Those that were being loaded.
        in_turn: Those in a turn, with the length of the history that each was loaded with.
    """
    if death is Death.OUTSIDE:
        return []
    if death in (Death.STUCK, Death.SHORTAGE):
        # On a machine that is too busy, or has too little memory for all, it happens to those in a turn as well.
        return sorted(loading)
    return [*sorted(loading), *sorted(set(in_turn).difference(loading), key=lambda key: (-in_turn[key], key))]


class Record:
    """How often sessions have come into question of late without being found out. Times in seconds, on one clock."""

    def __init__(self) -> None:
        self._times: dict[SessionKey, tuple[int, float]] = {}

    def add(self, keys: Sequence[SessionKey], now: float) -> Mapping[SessionKey, int]:
        """They have come into question, the likeliest first.

        Returns:
            Those that are to be suspected, each with the turns that it has to end to be cleared.
        """
        for key in keys:
            self._times[key] = (self.times(key, now) + 1, now)
        likeliest = sorted(keys, key=lambda key: -self.times(key, now))[:MOST_SUSPECTED]
        return {key: min(MOST_TURNS, 2 ** (self.times(key, now) - 1)) for key in likeliest}

    def times(self, key: SessionKey, now: float) -> int:
        count, latest = self._times.get(key, (0, now))
        return count if now - latest < FORGOTTEN_AFTER else 0

    def forget(self, now: float) -> None:
        """Let go of what is over."""
        self._times = {key: value for key, value in self._times.items() if self.times(key, now)}
