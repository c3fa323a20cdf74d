"""The order of service, by counts: nobody starves, shares are as the weights, first come first served for each user."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aerodrome.fairness.line import Ceilings, FairLine, Scope, Stage, Ticket
from aerodrome.fairness.order import FairOrder

WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 7.5])


def served(line: FairLine, most: int | None = None) -> list[Ticket]:
    """Those who are served when each gives its place back at once."""
    order: list[Ticket] = []
    while (most is None or len(order) < most) and (ticket := line.first()) is not None:
        line.take(ticket)
        line.leave(ticket)
        order.append(ticket)
    return order


# --- shares ---


@given(st.dictionaries(st.sampled_from("abcdef"), WEIGHTS, min_size=2), st.integers(1, 300))
def test_who_waits_all_the_time_is_served_in_proportion_to_its_weight(weights: dict[str, float], services: int) -> None:
    line = FairLine(weight=weights.__getitem__)
    for tenant, _ in itertools.product(weights, range(services)):
        line.join(tenant, "u")
    counts = Counter(ticket.tenant for ticket in served(line, services))
    for a, b in itertools.combinations(weights, 2):
        # The bound of self-clocked fair queueing: each is ahead of the other by no more than a service of its own.
        assert abs(counts[a] / weights[a] - counts[b] / weights[b]) <= 1 / weights[a] + 1 / weights[b] + 1e-9


@given(st.dictionaries(st.sampled_from("abcd"), WEIGHTS, min_size=1), st.integers(0, 500), WEIGHTS)
def test_a_first_prompt_waits_for_one_round_however_many_others_have_queued(
    weights: dict[str, float], earlier: int, own: float
) -> None:
    line = FairLine(weight=lambda tenant: weights.get(tenant, own))
    for tenant, number in itertools.product(weights, range(1000)):
        line.join(tenant, f"u{number % 7}")
    served(line, earlier)
    mine = line.join("quiet", "me")
    before = list(itertools.takewhile(lambda ticket: ticket is not mine, served(line)))
    assert all(n <= 1 + weights[tenant] / own for tenant, n in counts_of(before).items())


def counts_of(tickets: list[Ticket]) -> Counter[str]:
    return Counter(ticket.tenant for ticket in tickets)


def test_a_storm_of_one_tenant_leaves_the_order_of_another_as_it_is() -> None:
    """Each prompt of the quiet tenant is served as the next but one, as if the storm were one caller."""
    line = FairLine(Ceilings(total=1))
    for number in range(10_000):
        line.join("storm", f"user{number % 100}")
    positions = []
    for _ in range(50):
        mine = line.join("quiet", "alice")
        order = served_until(line, mine)
        positions.append(len(order))
    assert max(positions) <= 2


def served_until(line: FairLine, last: Ticket) -> list[Ticket]:
    order: list[Ticket] = []
    while last.stage is Stage.WAITING:
        order += served(line, 1)
    return order


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6))
def test_the_users_of_a_tenant_take_turns(prompts: list[int]) -> None:
    line = FairLine()
    for user, count in enumerate(prompts):
        for _ in range(count):
            line.join("acme", str(user))
    order = [ticket.user for ticket in served(line)]
    for round_number in range(max(prompts)):
        waiting = {str(user) for user, count in enumerate(prompts) if count > round_number}
        assert set(order[: len(waiting)]) == waiting
        order = order[len(waiting) :]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), max_size=60))
def test_first_come_first_served_for_each_user_and_everybody_is_served(joins: list[tuple[str, str]]) -> None:
    line = FairLine()
    joined = [line.join(tenant, user) for tenant, user in joins]
    order = served(line)
    assert len(order) == len(joined)
    for tenant, user in set(joins):
        mine = [ticket for ticket in joined if (ticket.tenant, ticket.user) == (tenant, user)]
        assert [ticket for ticket in order if (ticket.tenant, ticket.user) == (tenant, user)] == mine
    assert line.tenants == {}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), min_size=1, max_size=40),
    st.dictionaries(st.sampled_from("abc"), WEIGHTS),
    st.integers(0, 20),
    st.data(),
)
def test_how_many_are_ahead_is_what_then_happens(
    joins: list[tuple[str, str]], weights: dict[str, float], earlier: int, data: st.DataObject
) -> None:
    line = FairLine(weight=lambda tenant: weights.get(tenant, 1.0))
    joined = [line.join(*join) for join in joins]
    served(line, earlier)
    waiting = [ticket for ticket in joined if ticket.stage is Stage.WAITING]
    if not waiting:
        return
    mine = data.draw(st.sampled_from(waiting))
    said = line.ahead(mine.tenant, mine.user, mine)
    # Ties between those who have been served already may be told the other way round.
    assert abs(said - (len(served_until(line, mine)) - 1)) <= len({*joins})


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), min_size=1, max_size=40),
    st.dictionaries(st.sampled_from("abc"), WEIGHTS),
    st.integers(0, 20),
    st.integers(0, 50),
)
def test_who_is_upcoming_is_served_next(
    joins: list[tuple[str, str]], weights: dict[str, float], earlier: int, most: int
) -> None:
    line = FairLine(weight=lambda tenant: weights.get(tenant, 1.0))
    for join in joins:
        line.join(*join)
    served(line, earlier)
    assert line.upcoming(most) == served(line, most)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), min_size=1, max_size=40),
    st.integers(0, 20),
    st.integers(1, 6),
)
def test_who_is_able_is_who_is_served_when_all_keep_what_they_get(
    joins: list[tuple[str, str]], earlier: int, ceiling: int
) -> None:
    line = FairLine(Ceilings(per_tenant=ceiling))
    for join in joins:
        line.join(*join)
    for _ in range(earlier):
        if (ticket := line.first()) is not None:
            line.take(ticket)
    able, upcoming = line.able, line.upcoming(100)
    kept: list[Ticket] = []
    while (ticket := line.first()) is not None:
        line.take(ticket)
        kept.append(ticket)
    assert upcoming == kept
    assert able == len(kept)
    assert line.able == 0


def test_one_that_has_not_been_served_yet_knows_its_place_exactly() -> None:
    line = FairLine()
    tickets = [line.join(tenant, "u") for tenant in "abcde"]
    assert [line.ahead(ticket.tenant, "u", ticket) for ticket in tickets] == [0, 1, 2, 3, 4]
    assert line.ahead("new", "u") == 5


def test_who_was_away_has_saved_nothing_up_and_who_was_alone_owes_nothing() -> None:
    line = FairLine()
    for _ in range(100):
        line.join("busy", "u")
    served(line, 90)
    for _ in range(10):
        line.join("late", "u")
    assert counts_of(served(line, 10)) == {"busy": 5, "late": 5}


def test_who_comes_and_goes_behind_one_that_waits_leaves_nothing() -> None:
    """As in an outage, when nobody is served and all try again."""
    order = FairOrder(lambda _: 1.0)
    order.set_ready("waits", True)
    for _ in range(1000):
        for flow in ("b", "a"):
            order.set_ready(flow, True)
        order.set_ready("b", False)
        order.set_ready("a", False)
    assert len(order._heap) <= 100
    order.set_ready("b", True)
    order.set_ready("a", True)
    served = []
    for _ in range(4):
        served.append(first := order.first())
        assert first is not None
        order.serve(first)
    assert served == ["waits", "b", "a", "waits"]


def test_ever_new_flows_do_not_starve_one_that_waits() -> None:
    """Each new one has had less than whoever was there before: start tags alone would prefer them for ever."""
    order = FairOrder(lambda _: 1.0)
    order.set_ready("always", True)
    served_always = 0
    for number in range(1000):
        order.set_ready(str(number), True)
        while (first := order.first()) == "always":
            order.serve("always")
            served_always += 1
        assert first == str(number)
        order.serve(first)
        order.set_ready(first, False)
    assert served_always >= 999
    assert len(order._heap) < 5


# --- ceilings ---


class LineMachine(RuleBasedStateMachine):
    """Whatever is done to it: ceilings hold, nobody who may have a place waits for one, nothing is left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.ceilings = Ceilings(total=4, per_tenant=3, per_user=2)
        self.line = FairLine(self.ceilings, weight={"a": 2.0, "b": 1.0, "c": 0.5}.__getitem__)
        self.tickets: list[Ticket] = []

    def give_out(self) -> None:
        while (ticket := self.line.first()) is not None:
            self.line.take(ticket)

    @rule(tenant=st.sampled_from("abc"), user=st.sampled_from("xyz"))
    def join(self, tenant: str, user: str) -> None:
        free = self.line.held_back_by(tenant, user) is None
        ticket = self.line.join(tenant, user)
        self.tickets.append(ticket)
        self.give_out()
        assert (ticket.stage is Stage.HOLDING) is free

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        self.tickets.remove(ticket)
        self.line.leave(ticket)
        self.line.leave(ticket)
        self.give_out()

    @invariant()
    def ceilings_hold(self) -> None:
        holding = [t for t in self.tickets if t.stage is Stage.HOLDING]
        tenants, users = counts_of(holding), Counter((t.tenant, t.user) for t in holding)
        assert len(holding) == self.line.holding <= 4
        assert all(count <= 3 for count in tenants.values())
        assert all(count <= 2 for count in users.values())
        for ticket in self.tickets:
            if ticket.stage is Stage.WAITING:
                held_back = (
                    Scope.USER
                    if users[ticket.tenant, ticket.user] == 2
                    else Scope.TENANT
                    if tenants[ticket.tenant] == 3
                    else Scope.ALL
                    if len(holding) == 4
                    else None
                )
                assert held_back is not None, "somebody waits who may have a place"
                assert self.line.held_back_by(ticket.tenant, ticket.user) is held_back

    @invariant()
    def it_counts_right(self) -> None:
        waiting = [t for t in self.tickets if t.stage is Stage.WAITING]
        assert self.line.waiting == len(waiting)
        for tenant in "abc":
            assert self.line.waiting_of(tenant) == counts_of(waiting)[tenant]
            assert self.line.knows(tenant) is any(t.tenant == tenant for t in self.tickets)

    def teardown(self) -> None:
        for ticket in self.tickets:
            self.line.leave(ticket)
        assert self.line.tenants == {}
        assert self.line.first() is None


TestLineMachine = LineMachine.TestCase
TestLineMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_nobody_is_held_back_by_the_ceiling_of_another() -> None:
    line = FairLine(Ceilings(total=10, per_tenant=3, per_user=1))
    for _ in range(5):
        line.join("acme", "alice")
    line.join("acme", "bob")
    line.join("bank", "carol")
    taken = []
    while (ticket := line.first()) is not None:
        line.take(ticket)
        taken.append((ticket.tenant, ticket.user))
    assert sorted(taken) == [("acme", "alice"), ("acme", "bob"), ("bank", "carol")]


def test_places_are_given_in_order_only() -> None:
    line = FairLine()
    line.join("acme", "alice")
    second = line.join("acme", "alice")
    with pytest.raises(AssertionError):
        line.take(second)
