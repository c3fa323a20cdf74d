"""One run from its seed to its end, and the shortest plan that still fails."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

from aerodrome.coordination import heartbeat
from aerodrome.coordination.backends.memory import MemoryCoordination, _Held
from aerodrome.coordination.backends.memory_directory import MemoryDirectory
from aerodrome.coordination.ports import Lease
from aerodrome.errors import AerodromeError
from aerodrome.model import SessionKey, SessionRow
from aerodrome.sessions.backends.memory import MemoryLedger
from aerodrome.statestore.provider import EVENTS_PATH
from support.simulation.fleet import TENANT, TTL, Build, SimulatedNode
from support.simulation.network import TIMEOUT, Network, Weather
from support.simulation.plan import LENGTH, MACHINES, Event, Plan, make_plan
from support.simulation.sites import CoordinationSite, DurableSite, MemoryFiles, StoreClock, at_once
from support.simulation.world import NodeLoop, Violation, World

T = TypeVar("T")

#: Seconds after which a client tries another node.
PATIENCE = 4.0
#: Seconds from the end of all faults, beside the time to live, until every session can be opened: calls under way are
#: given up, a beat comes through, the dead have been declared dead by a slow clock.
RECOVERY = PATIENCE + 2 * TIMEOUT + 2.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of; a mutation changes one of them."""

    coordination: Callable[[StoreClock], MemoryCoordination] = MemoryCoordination
    files: Callable[[], MemoryFiles] = MemoryFiles
    directory: Callable[[], MemoryDirectory] = MemoryDirectory
    ledger: Callable[[], MemoryLedger] = MemoryLedger
    build: Build = field(default_factory=Build)


@dataclass(slots=True)
class Outcome:
    seed: int
    plan: Plan
    violation: str | None = None
    steps: int = 0
    turns: int = 0
    #: Turns that were told as completed.
    acknowledged: int = 0
    #: Seconds from the end of faults until the last session was opened.
    recovered_after: float = 0.0
    log: list[str] = field(default_factory=list)

    def report(self) -> str:
        """What to print of a run that has failed."""
        events = "\n".join(str(event) for event in self.plan.events)
        log = "\n".join(self.log)
        return (
            f"seed {self.seed}: {self.violation}\n"
            f"replay: pytest tests/simulation --seed {self.seed}\n\n"
            f"plan, as short as it fails with this seed:\n{events}\n\nwhat happened:\n{log}"
        )


class Simulation:
    def __init__(self, seed: int, plan: Plan, parts: Parts, *, recording: bool = False) -> None:
        self.outcome = Outcome(seed, plan)
        self.world = World(seed, recording=recording)
        self.network = Network(self.world)
        self._plan = plan
        self._parts = parts
        self.coordination = CoordinationSite(self.world, plan.rates["coordination"], parts.coordination)
        self.state = DurableSite(self.world, parts.files(), parts.directory(), parts.ledger())
        self._sites = {site.name: site for site in (self.coordination, self.state)}
        self.rows = [SessionRow(SessionKey(TENANT, f"s{number}"), "alice") for number in range(plan.sessions)]
        self._nodes: dict[str, SimulatedNode] = {}
        self._lives = dict.fromkeys(MACHINES, 0)
        self._by_loop: dict[NodeLoop, SimulatedNode] = {}
        self._clients = NodeLoop(self.world, "clients")
        self._weathers = 0
        self._jumps: list[float] = []
        self._waiting: set[SessionKey] = set()
        #: Faults that wait for a store to have done something for a node.
        self._when: dict[tuple[str, str], list[Event]] = {}
        self.world.after_step = self._check_step
        self.network.carried_out = self._carried_out

    def run(self) -> Outcome:
        try:
            self.play()
            self._recover()
        except Exception as violation:  # what nobody expected is a failure of this seed as well
            named = violation if isinstance(violation, Violation) else repr(violation)
            self.world.say("VIOLATION:", named)
            self.outcome.violation = str(named)
        finally:
            self.outcome.steps = self.world.steps
            self.outcome.log = self.world.lines
            self.close()
        return self.outcome

    def close(self) -> None:
        for node in self._by_loop.values():
            node.kill()
        self.world.close()

    def play(self) -> None:
        """Everything that is in the plan. Raises `Violation`."""
        for row in self.rows:
            at_once(self.state.directory.insert(row))
            self._live_before(row.key)
        for machine in MACHINES:
            self._start(machine)
        for number, event in enumerate(self._plan.events):
            self.world.at(event.at, partial(self._perform, number, event))
        self.world.run(LENGTH)

    def _recover(self) -> None:
        self._mend()
        began = self.world.now
        self._waiting = {row.key for row in self.rows}
        for number, row in enumerate(self.rows):
            self._clients.spawn(self._insist(row, f"end{number}"), "client")
        # A clock that went back has given the dead so much longer.
        put_back = -sum(min(0.0, seconds) for seconds in self._jumps)
        self.world.run(began + TTL * 1.1 + RECOVERY + put_back, lambda: not self._waiting)
        if self._waiting:
            waiting = sorted(key.id for key in self._waiting)
            raise Violation(f"{waiting} cannot be opened {self.world.now - began:.1f} s after the last fault")
        self.outcome.recovered_after = self.world.now - began
        for row in self.rows:
            session = self.state.files.sessions.get(row.key)
            self.state.histories.check(row.key.id, session.files.get(EVENTS_PATH, "") if session else "")
            self.state.check_ledger(row.key)

    def _live_before(self, key: SessionKey) -> None:
        """The session has had many lives, which both stores remember."""
        self.coordination.store._leases[key] = _Held(1000, None)
        at_once(self.state.files.raise_epoch(key, 1000))

    # Events of the plan

    def _perform(self, number: int, event: Event) -> None:
        match event.kind, event.args:
            case "turn", (machine, session):
                self._turn(machine, self.rows[session], f"t{number}")
            case "hibernate", (machine, session):
                node = self._nodes[machine]
                if node.alive and not node.stopping:
                    node.loop.spawn(node.hibernate(self.rows[session].key), "hibernate")
            case "erase", (machine, session):
                node = self._nodes[machine]
                if node.alive:
                    node.loop.spawn(self._erase(node, self.rows[session]), "erase")
            case "expire", (machine, session, unused_for):
                node = self._nodes[machine]
                if node.alive:
                    node.loop.spawn(self._erase(node, self.rows[session], unused_for), "expire")
            case "when", (machine, operation, fault):
                self._when.setdefault((machine, operation), []).append(fault)
            case "pause" | "kill" | "leave", (machine, seconds):
                self._strike_node(event.kind, machine, seconds)
            case _:
                self._strike_stores(event)

    def _strike_node(self, kind: str, machine: str, seconds: float) -> None:
        self.world.say("***", kind, machine, f"for {seconds:.2f} s")
        node = self._nodes[machine]
        if kind == "pause":
            if node.alive and not node.loop.paused:
                node.loop.pause()
                self.world.after(seconds, partial(self._go_on, node))
            return
        if kind == "kill":
            node.kill()
        elif node.alive and not node.stopping:
            node.loop.spawn(node.stop(), "stop")
        self.world.after(seconds, partial(self._restart, machine))

    def _strike_stores(self, event: Event) -> None:
        self.world.say("***", event.kind, *event.args)
        match event.kind, event.args:
            case "down", (site, seconds):
                self._sites[site].down = True
                self.world.after(seconds, partial(self._up, site))
            case "cut", (machine, site, seconds):
                self.network.cut.add((machine, site))
                self.world.after(seconds, partial(self.network.cut.discard, (machine, site)))
            case "empty", ():
                self.coordination.empty()
            case "weather", (seconds, slow, lose_request, lose_answer):
                self._weathers += 1
                self.network.weather = Weather(slow, lose_request / 2, lose_answer / 2)
                self.world.after(seconds, partial(self._clear_up, self._weathers))
            case "wall clock", (machine, seconds):
                self._nodes[machine].clock.wall_offset += seconds
            case "jump", (seconds,):
                self._jumps.append(seconds)
                self.coordination.jump(seconds)
            case _:
                raise AssertionError(event)

    def _start(self, machine: str) -> None:
        self._lives[machine] += 1
        node = SimulatedNode(
            self.world,
            self.network,
            self.coordination,
            self.state,
            f"{machine}.{self._lives[machine]}",
            machine=machine,
            rate=self._plan.rates[machine],
            build=self._parts.build,
        )
        self._nodes[machine] = self._by_loop[node.loop] = node
        node.start()

    def _restart(self, machine: str) -> None:
        """What has been stopping for too long is killed, as an operator's supervisor does."""
        node = self._nodes[machine]
        if node.alive and not node.stopping:
            return  # another fault has started it already
        node.kill()
        self._start(machine)

    def _go_on(self, node: SimulatedNode) -> None:
        if node.alive and node.loop.paused:
            self.world.say("***", node.name, "goes on")
            node.loop.resume()

    def _up(self, site: str) -> None:
        self._sites[site].down = False

    def _clear_up(self, weather: int) -> None:
        if weather == self._weathers:
            self.network.weather = Weather()

    def _carried_out(self, machine: str, operation: str) -> None:
        for fault in self._when.pop((machine, operation), ()):
            self.world.say("*** when", operation, "has been done for", machine)
            self._perform(0, fault)

    def _mend(self) -> None:
        self.world.say("*** everything is mended")
        self._when.clear()
        self.network.cut.clear()
        self.network.weather = Weather()
        for site in self._sites.values():
            site.down = False
        for machine, node in list(self._nodes.items()):
            self._go_on(node)
            if not node.alive or node.stopping:
                self._restart(machine)

    # Turns

    def _turn(self, machine: str, row: SessionRow, turn: str) -> None:
        node = self._nodes[machine]
        if node.alive:
            self.outcome.turns += 1
            node.loop.spawn(self._try(node, row, turn), turn)

    async def _try(self, node: SimulatedNode, row: SessionRow, turn: str) -> bool:
        try:
            await node.turn(row, turn)
        except AerodromeError as error:
            self.world.say(f"{node.name} fails {turn}: {error.code}: {error.detail}")
            return False
        self.outcome.acknowledged += 1
        return True

    async def _erase(self, node: SimulatedNode, row: SessionRow, unused_for: float | None = None) -> None:
        try:
            await node.erase(row, unused_for=unused_for)
        except AerodromeError as error:
            self.world.say(f"{node.name} fails to erase {row.key.id}: {error.code}: {error.detail}")

    async def _insist(self, row: SessionRow, turn: str) -> None:
        """A client that tries one node after the other. A node that does not hold the lease hands its request to the
        one that does."""
        for attempt in itertools.count(1):
            node = self._nodes[self.world.random.choice(MACHINES)]
            name = f"{turn}.{attempt}"
            if await self._request(node, self._try(node, row, name)):
                break
            lease = await self._request(node, self._holder(node, row.key))
            for other in list(self._nodes.values()):
                holds = lease is not None and other.heartbeat.incarnation == lease.incarnation
                if holds and await self._request(other, self._try(other, row, f"{name}f")):
                    self._waiting.discard(row.key)
                    return
            await asyncio.sleep(0.3)
        self._waiting.discard(row.key)

    async def _request(self, node: SimulatedNode, work: Coroutine[Any, Any, T]) -> T | None:
        """Have a node do something. ``None``: it has not answered in time."""
        answer: asyncio.Future[T] = self._clients.create_future()

        def settle(result: T) -> None:
            if not answer.done():
                answer.set_result(result)

        async def serve() -> None:
            self._clients.arrive(settle, await work)

        if not node.alive:
            work.close()
            return None
        node.loop.spawn(serve(), "request")
        done, _ = await asyncio.wait({answer}, timeout=PATIENCE)
        return answer.result() if done else None

    async def _holder(self, node: SimulatedNode, key: SessionKey) -> Lease | None:
        try:
            return await node.holder(key)
        except AerodromeError:
            return None

    # Checks

    def _check_step(self, loop: NodeLoop) -> None:
        node = self._by_loop.get(loop)
        if node is not None and node.serves and not self.coordination.watch.lives(node.heartbeat.incarnation):
            raise Violation(f"{node.name} serves, and its time to live has run out")


def simulate(seed: int, parts: Parts | None = None, *, plan: Plan | None = None, recording: bool = False) -> Outcome:
    """One run. The same seed and plan give the same run, always."""
    numbers = itertools.count(1)
    # In place of random ones.
    with patch.object(heartbeat, "_incarnation", lambda name: f"{name}#{next(numbers)}"):
        return Simulation(seed, plan or make_plan(seed), parts or Parts(), recording=recording).run()


def shrink(failed: Outcome, parts: Parts | None = None) -> Outcome:
    """Leave out of the plan whatever the failure can do without; returns that run, recorded."""
    plan = failed.plan
    size = len(plan.events) // 2
    while size:
        start = 0
        while start < len(plan.events):
            fewer = replace(plan, events=plan.events[:start] + plan.events[start + size :])
            if simulate(failed.seed, parts, plan=fewer).violation is not None:
                plan = fewer
            else:
                start += size
        size //= 2
    return simulate(failed.seed, parts, plan=plan, recording=True)
