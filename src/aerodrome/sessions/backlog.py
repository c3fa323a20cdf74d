"""The prompts of a node that were accepted and have not begun: how many there are, and how many there may be.

They cost memory and rows of the ledger, whichever session they wait in, so that each tenant and each user may have so
many. One more is refused at once: it would wait for longer than anybody does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from aerodrome.errors import Capacity
from aerodrome.model import TurnRow


@dataclass(frozen=True, slots=True)
class BacklogLimits:
    per_tenant: int = 10_000
    per_user: int = 1_000


class Backlog:
    """Args:
    estimate: Seconds until one with so many before it may begin, by the places of this tenant, or of its user.
    """

    def __init__(self, limits: BacklogLimits, estimate: Callable[[int, str, str | None], float]) -> None:
        self._limits = limits
        self._estimate = estimate
        #: Ids of the turns that are counted.
        self._waiting: set[str] = set()
        #: Of each tenant, and (with a name) of each user.
        self._counts: Counter[tuple[str, str | None]] = Counter()

    @property
    def tenants(self) -> dict[str, int]:
        return {tenant: count for (tenant, user), count in self._counts.items() if user is None}

    def check(self, turn: TurnRow) -> None:
        """Raises `Capacity`: it is one too many."""
        tenant, user, limits = turn.key.tenant, turn.author, self._limits
        for who, name, most in (("yours", user, limits.per_user), ("your organisation", None, limits.per_tenant)):
            waiting = self._counts[tenant, name]
            if waiting >= most:
                raise Capacity(
                    f"{waiting} prompts of {who} wait already", retry_after=self._estimate(waiting, tenant, name)
                )

    def enter(self, turn: TurnRow) -> None:
        """Count an accepted prompt. Raises as `check`."""
        self.check(turn)
        self._waiting.add(turn.id)
        self._counts.update(((turn.key.tenant, None), (turn.key.tenant, turn.author)))

    def leave(self, turn: TurnRow) -> None:
        """It has begun, or come to nothing. Leaving again changes nothing."""
        if turn.id in self._waiting:
            self._waiting.discard(turn.id)
            for name in (None, turn.author):
                self._counts[turn.key.tenant, name] -= 1
                if not self._counts[turn.key.tenant, name]:
                    del self._counts[turn.key.tenant, name]
