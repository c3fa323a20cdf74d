"""Who of those that wait for a runtime, or for a place in one, is next (`fairness.line`), and when to come again.

There are two lines. A *request* waits for a place in the runtimes of its key: the users of a tenant that share them
take turns. A *claim* waits for a whole runtime on behalf of its key: tenants take turns by their weights, and in a
tenant of isolation `user` its users. What a claim got it holds until the runtime has ended, because a tenant has a
ceiling.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

from aerodrome.errors import RateLimited
from aerodrome.fairness.estimate import Rate, retry_after
from aerodrome.fairness.line import Ceilings, FairLine, Scope, Stage, Ticket
from aerodrome.model import RuntimeKey


class PlaceLine:
    """The requests for a place in the runtimes of one key."""

    def __init__(self) -> None:
        self.line = FairLine()
        self.rate = Rate(time.monotonic())


class RuntimeQueue:
    """Args:
    weight: Of a tenant.
    per_tenant, per_user: Most requests that wait.
    runtimes_per_tenant: Most runtimes that a tenant holds; ``None``: no limit.
    """

    def __init__(
        self,
        weight: Callable[[str], float],
        per_tenant: int,
        per_user: int,
        runtimes_per_tenant: int | None = None,
    ) -> None:
        self._per_tenant = per_tenant
        self._per_user = per_user
        self._places: dict[RuntimeKey, PlaceLine] = {}
        self._waiting: Counter[str] = Counter()
        #: All of them together.
        self.requests = 0
        self._claims = FairLine(Ceilings(per_tenant=runtimes_per_tenant), weight)
        self._claimed_for: dict[Ticket, RuntimeKey] = {}
        #: So many claims are the first, and which, as long as that is known.
        self._first: tuple[int, frozenset[Ticket]] | None = None

    # --- requests for a place ---

    def join(self, key: RuntimeKey, user: str) -> Ticket:
        """Raises `RateLimited`: too many wait already."""
        user = key.user or user
        here = self._places.get(key)
        waiting = here.line.waiting_of(key.tenant, user) if here is not None else 0
        of_tenant = self._waiting[key.tenant]
        if waiting >= self._per_user or of_tenant >= self._per_tenant:
            raise RateLimited(
                f"{waiting} requests of yours for a runtime wait already, and {of_tenant} of your organisation",
                retry_after=self.retry_after(key, user),
            )
        if here is None:
            here = self._places[key] = PlaceLine()
        self._waiting[key.tenant] += 1
        self.requests += 1
        return here.line.join(key.tenant, user)

    def is_first(self, key: RuntimeKey, ticket: Ticket) -> bool:
        """Whether it may take a place. One that has left the line may, because nobody waits behind it."""
        return ticket.stage is not Stage.WAITING or self._places[key].line.first() is ticket

    def leave(self, key: RuntimeKey, ticket: Ticket, *, served: bool = False) -> bool:
        """It waits no more; returns whether others of the key do."""
        if ticket.stage is Stage.WAITING:
            here = self._places[key]
            if served:
                here.line.take(ticket)
                here.rate.note(time.monotonic())
            here.line.leave(ticket)
            if not here.line.waiting:
                del self._places[key]
            self._waiting[key.tenant] -= 1
            self.requests -= 1
            if not self._waiting[key.tenant]:
                del self._waiting[key.tenant]
        return key in self._places

    def retry_after(self, key: RuntimeKey, user: str) -> float:
        """Seconds until a request that comes now might have its place. Who has waited in vain is at the end again."""
        here = self._places.get(key) or PlaceLine()
        ahead = here.line.ahead(key.tenant, key.user or user)
        return retry_after(ahead, here.rate.per_second(time.monotonic()), random.random())  # noqa: S311

    @property
    def waiting(self) -> dict[str, int]:
        """Requests that wait, by tenant."""
        return dict(self._waiting)

    # --- claims of a runtime ---

    @property
    def claims(self) -> int:
        """Those that may have a runtime now: whom the ceiling of the tenant holds back does not count."""
        return self._claims.able

    def held_back(self, key: RuntimeKey) -> bool:
        """Whether its tenant has as many runtimes as it may have."""
        return self._claims.held_back_by(key.tenant, key.user or "") is Scope.TENANT

    def join_claims(self, key: RuntimeKey) -> Ticket:
        ticket = self._claims.join(key.tenant, key.user or "")
        self._claimed_for[ticket] = key
        self._first = None
        return ticket

    def first_claim(self) -> RuntimeKey | None:
        """Whose the next runtime is."""
        ticket = self._claims.first()
        return self._claimed_for[ticket] if ticket is not None else None

    def is_among_first(self, ticket: Ticket, most: int) -> bool:
        """Whether it is one of the first so many claims. All who wait ask this whenever something has changed."""
        if self._first is None or self._first[0] != most:
            self._first = most, frozenset(self._claims.upcoming(most))
        return ticket in self._first[1]

    def serve_claim(self, ticket: Ticket) -> None:
        """Give the next runtime to `first_claim`; `leave_claims` when it has ended."""
        self._claims.take(ticket)
        self._forget_claim(ticket)

    def leave_claims(self, ticket: Ticket) -> None:
        """It waits no more, or its runtime has ended."""
        self._claims.leave(ticket)
        self._forget_claim(ticket)

    def _forget_claim(self, ticket: Ticket) -> None:
        self._claimed_for.pop(ticket, None)
        self._first = None
