"""The prompts of a node that were accepted and have not begun: how many there are, and how many there may be.

They cost memory and rows of the ledger, whichever session they wait in, so that each tenant and each user may have so
many, and so much of them. One more is refused at once: it would wait for longer than anybody does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from aerodrome.errors import RateLimited
from aerodrome.model import TurnRow


@dataclass(frozen=True, slots=True)
class BacklogLimits:
    per_tenant: int = 10_000
    per_user: int = 1_000
    #: Characters of what they say and bring along.
    characters_per_tenant: int = 1 << 30
    characters_per_user: int = 1 << 28


class Backlog:
    """Args:
    estimate: Seconds until one with so many before it may begin, by the places of this tenant, or of its user.
    """

    def __init__(self, limits: BacklogLimits, estimate: Callable[[int, str, str | None], float]) -> None:
        self._limits = limits
        self._estimate = estimate
        #: The turns that are counted, by id, and their characters.
        self._waiting: dict[str, int] = {}
        #: Of each tenant, and (with a name) of each user.
        self._counts: Counter[tuple[str, str | None]] = Counter()
        self._characters: Counter[tuple[str, str | None]] = Counter()

    @property
    def tenants(self) -> dict[str, int]:
        return {tenant: count for (tenant, user), count in self._counts.items() if user is None}

    def check(self, turn: TurnRow) -> None:
        """Raises `RateLimited`: it is one too many."""
        tenant, user, limits = turn.key.tenant, turn.author, self._limits
        of_user = ("yours", user, limits.per_user, limits.characters_per_user)
        of_tenant = ("your organisation", None, limits.per_tenant, limits.characters_per_tenant)
        size = _characters_of(turn)
        for who, name, most, most_characters in (of_user, of_tenant):
            waiting, characters = self._counts[tenant, name], self._characters[tenant, name]
            # A single one may always wait: what it may be has another limit.
            if waiting >= most or (waiting and characters + size > most_characters):
                raise RateLimited(
                    f"{waiting} prompts of {who} wait already, with {characters} characters",
                    retry_after=self._estimate(waiting, tenant, name),
                )

    def enter(self, turn: TurnRow) -> None:
        """Count an accepted prompt. Raises as `check`."""
        self.check(turn)
        size = self._waiting[turn.id] = _characters_of(turn)
        for name in (None, turn.author):
            self._counts[turn.key.tenant, name] += 1
            self._characters[turn.key.tenant, name] += size

    def leave(self, turn: TurnRow) -> None:
        """It has begun, or come to nothing. Leaving again changes nothing."""
        size = self._waiting.pop(turn.id, None)
        if size is None:
            return
        for name in (None, turn.author):
            self._counts[turn.key.tenant, name] -= 1
            self._characters[turn.key.tenant, name] -= size
            if not self._counts[turn.key.tenant, name]:
                del self._counts[turn.key.tenant, name], self._characters[turn.key.tenant, name]


def _characters_of(turn: TurnRow) -> int:
    values = (value for attachment in turn.attachments for value in attachment.values())
    return len(turn.prompt) + sum(len(value) for value in values if isinstance(value, str))
