"""Places under ceilings, and the line of those who wait for one: fair between tenants, between the users of a tenant,
and first come, first served for each user. Pure.

A *ticket* waits, then holds a place, then is done. Whoever is held back by a ceiling of their own (their user's, their
tenant's) holds nobody else back: a tenant that may not have one more is passed over until it may.

It counts services, not seconds: how long a turn takes is not known when it starts. What bounds the places that long
turns keep is the ceiling of the tenant (ADR 0030).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from aerodrome.fairness.order import FairOrder


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Most places that are held at the same time; ``None``: no limit."""

    total: int | None = None
    per_tenant: int | None = None
    per_user: int | None = None


class Stage(StrEnum):
    WAITING = "waiting"
    HOLDING = "holding"
    DONE = "done"


class Scope(StrEnum):
    """Whose ceiling it is."""

    USER = "user"
    TENANT = "tenant"
    ALL = "all"


@dataclass(eq=False, slots=True)
class Ticket:
    tenant: str
    user: str
    stage: Stage = Stage.WAITING


@dataclass(slots=True)
class _User:
    waiting: deque[Ticket] = field(default_factory=deque)
    holding: int = 0


class _Tenant:
    def __init__(self) -> None:
        self.users: dict[str, _User] = {}
        #: The users of whom somebody waits whom the ceiling of the user does not hold back.
        self.order = FairOrder(lambda _: 1.0)
        self.waiting = 0
        self.holding = 0


class FairLine:
    """Args:
    weight: Of a tenant: one of weight 2 gets twice as many places as one of weight 1 while both wait.
    """

    def __init__(self, ceilings: Ceilings = Ceilings(), weight: Callable[[str], float] = lambda _: 1.0) -> None:
        self._ceilings = ceilings
        self._tenants: dict[str, _Tenant] = {}
        self._order = FairOrder(weight)
        self.waiting = 0
        self.holding = 0

    # --- what is there ---

    @property
    def tenants(self) -> dict[str, tuple[int, int]]:
        """Of each tenant that is here: how many wait, how many hold a place."""
        return {name: (tenant.waiting, tenant.holding) for name, tenant in self._tenants.items()}

    def knows(self, tenant: str, user: str | None = None) -> bool:
        """Whether anybody of the tenant, or of its user, waits or holds a place."""
        found = self._tenants.get(tenant)
        return found is not None and (user is None or user in found.users)

    def waiting_of(self, tenant: str, user: str | None = None) -> int:
        found = self._tenants.get(tenant)
        if found is None or user is None:
            return found.waiting if found is not None else 0
        return len(found.users[user].waiting) if user in found.users else 0

    def held_back_by(self, tenant: str, user: str) -> Scope | None:
        """The narrowest ceiling that is reached for this user; ``None``: there is room."""
        found = self._tenants.get(tenant)
        if found is not None:
            if user in found.users and _full(found.users[user].holding, self._ceilings.per_user):
                return Scope.USER
            if _full(found.holding, self._ceilings.per_tenant):
                return Scope.TENANT
        return Scope.ALL if _full(self.holding, self._ceilings.total) else None

    def first(self) -> Ticket | None:
        """Who has the next place; ``None`` when nobody waits who may have one now."""
        if _full(self.holding, self._ceilings.total) or (name := self._order.first()) is None:
            return None
        tenant = self._tenants[name]
        user = tenant.order.first()
        assert user is not None, "a tenant is ready when one of its users is"
        return tenant.users[user].waiting[0]

    def ahead(self, tenant: str, user: str, ticket: Ticket | None = None) -> int:
        """How many of those who wait are served before this ticket, or before one that came now, if nobody else comes
        and no ceiling of a tenant or user holds anybody back."""
        found = self._tenants.get(tenant)
        own = found.users[user].waiting if found is not None and user in found.users else ()
        turn = own.index(ticket) if ticket is not None and ticket in own else len(own)
        in_tenant = turn
        if found is not None:
            in_tenant += sum(
                min(len(other.waiting), found.order.before(user, name, turn))
                for name, other in found.users.items()
                if name != user and found.order.is_ready(name)
            )
        return in_tenant + sum(
            min(other.waiting, self._order.before(tenant, name, in_tenant))
            for name, other in self._tenants.items()
            if name != tenant and self._order.is_ready(name)
        )

    @property
    def able(self) -> int:
        """How many of those who wait may have a place now, as far as the ceilings of their tenants go."""
        per_tenant = self._ceilings.per_tenant
        if per_tenant is None:
            return self.waiting
        return sum(min(tenant.waiting, max(0, per_tenant - tenant.holding)) for tenant in self._tenants.values())

    def upcoming(self, most: int) -> list[Ticket]:
        """The first in line, in order, of those whom the ceilings of their tenants let have a place; as if there were
        no other ceilings."""
        order, orders, found = self._order.copy(), dict[str, FairOrder](), list[Ticket]()
        taken, taken_by = Counter[tuple[str, str]](), Counter[str]()
        while len(found) < most and (name := order.first()) is not None:
            tenant = self._tenants[name]
            if name not in orders:
                orders[name] = tenant.order.copy()
            user = orders[name].first()
            assert user is not None, "a tenant is ready when one of its users is"
            waiting = tenant.users[user].waiting
            found.append(waiting[taken[name, user]])
            taken[name, user] += 1
            taken_by[name] += 1
            orders[name].serve(user)
            orders[name].set_ready(user, taken[name, user] < len(waiting))
            order.serve(name)
            held = tenant.holding + taken_by[name]
            order.set_ready(name, bool(orders[name]) and not _full(held, self._ceilings.per_tenant))
        return found

    # --- what happens ---

    def join(self, tenant: str, user: str) -> Ticket:
        """Wait at the end of the user's line."""
        ticket = Ticket(tenant, user)
        here = self._tenants.setdefault(tenant, _Tenant())
        here.users.setdefault(user, _User()).waiting.append(ticket)
        here.waiting += 1
        self.waiting += 1
        self._look_again(tenant, user)
        return ticket

    def take(self, ticket: Ticket) -> None:
        """Give a place to `first`."""
        assert ticket is self.first(), "out of order"
        tenant = self._tenants[ticket.tenant]
        user = tenant.users[ticket.user]
        self._order.serve(ticket.tenant)
        tenant.order.serve(ticket.user)
        user.waiting.popleft()
        tenant.waiting -= 1
        self.waiting -= 1
        user.holding += 1
        tenant.holding += 1
        self.holding += 1
        ticket.stage = Stage.HOLDING
        self._look_again(ticket.tenant, ticket.user)

    def leave(self, ticket: Ticket) -> None:
        """Wait no longer, or give the place back. Leaving again changes nothing."""
        if ticket.stage is Stage.DONE:
            return
        tenant = self._tenants[ticket.tenant]
        user = tenant.users[ticket.user]
        if ticket.stage is Stage.WAITING:
            user.waiting.remove(ticket)
            tenant.waiting -= 1
            self.waiting -= 1
        else:
            user.holding -= 1
            tenant.holding -= 1
            self.holding -= 1
        ticket.stage = Stage.DONE
        self._look_again(ticket.tenant, ticket.user)

    def _look_again(self, tenant_name: str, user_name: str) -> None:
        """Something has changed for this user."""
        tenant = self._tenants[tenant_name]
        user = tenant.users[user_name]
        tenant.order.set_ready(user_name, bool(user.waiting) and not _full(user.holding, self._ceilings.per_user))
        if not user.waiting and not user.holding:
            del tenant.users[user_name]
        self._order.set_ready(tenant_name, bool(tenant.order) and not _full(tenant.holding, self._ceilings.per_tenant))
        if not tenant.users:
            del self._tenants[tenant_name]


def _full(held: int, ceiling: int | None) -> bool:
    return ceiling is not None and held >= ceiling
