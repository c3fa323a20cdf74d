"""Anything at any moment: prompts of every kind, aborts, losses, hibernation, deletion, failing stores, cancelled
callers, in any order and interleaving. Whatever happened, at the end each accepted prompt has one outcome, which the
ledger has as well, stands in the history at most once, and nothing is held any more.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aerodrome._util.clock import ManualClock
from aerodrome.errors import AerodromeError
from aerodrome.model import OnBusy, SessionKey, SessionKind, TurnStatus
from aerodrome.sessions.api import Ask
from aerodrome.sessions.run import TurnRun
from support.scripted_node import ALICE, ScriptedNode, Stores, scripted_node, settle
from support.scripted_runtime import LoadedSession

SESSIONS = ["s0", "s1", "s2"]
sessions = st.sampled_from(SESSIONS)
#: Which one of those that there are, if any.
choices = st.integers(0, 11)
steps = st.sampled_from([0, 1, 2, 5, 20, 100])

#: (store, call) that may fail. Not those whose failure cannot be made good by trying again later.
FAILURES = [
    ("slow_ledger", "accept"),
    ("slow_ledger", "start"),
    ("slow_ledger", "note"),
    ("slow_ledger", "finish"),
    ("slow_ledger", "forget"),
    ("slow_ledger", "by_idempotency_key"),
    ("slow_directory", "get"),
    ("slow_coordination", "acquire"),
    ("slow_directory", "update"),
    ("slow_directory", "remove"),
    ("slow_files", "append"),
    ("slow_files", "write"),
    ("slow_files", "read"),
    ("slow_files", "raise_epoch"),
    ("slow_files", "delete_session"),
]
#: Those that may also fail when they have been done.
HALF_FAILURES = [("slow_ledger", "accept"), ("slow_ledger", "finish"), ("slow_files", "append")]


@dataclass(eq=False)
class Sending:
    session: str
    prompt: str
    task: asyncio.Task[TurnRun]


async def give_up(node: ScriptedNode) -> None:
    node.service.give_up_all("held for dead")


class SessionsMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 1 << 16), max_sessions=st.sampled_from([1, 2, 10]), cancel=st.booleans())
    def start(self, seed: int, max_sessions: int, cancel: bool) -> None:
        self.runner = asyncio.Runner()
        self.random = random.Random(seed)
        self.sendings: list[Sending] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.number = 0
        #: Sessions that were deleted at some time: their turns need not be in the ledger.
        self.deleted: set[str] = set()
        self.lives = 1

        async def pause() -> None:
            for _ in range(self.random.choice([0, 0, 1, 3])):
                await asyncio.sleep(0)

        async def make() -> ScriptedNode:
            stores = Stores(ManualClock(), pause)
            self.context = scripted_node(
                stores,
                pause=pause,
                max_sessions=max_sessions,
                max_runtimes=1,
                max_turns=2,
                max_queued=4,
                abort_timeout=0.001,
                cancel_on_disconnect=cancel,
            )
            return await self.context.__aenter__()

        self.node = self.runner.run(make())
        for session in SESSIONS:
            self.runner.run(self.node.open(session))

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start something as a caller would, and wait for it at the end only."""

        async def create() -> asyncio.Task[Any]:
            return asyncio.create_task(work)

        task = self.runner.run(create())
        self.tasks.append(task)
        return task

    def loaded(self, session: str) -> LoadedSession | None:
        found = [r.sessions[session] for r in self.node.pool.runtimes if session in r.sessions]
        return found[0] if found else None

    # --- what callers do ---

    @rule(session=sessions, on_busy=st.sampled_from(OnBusy), keyed=st.booleans(), again=st.booleans())
    def send(self, session: str, on_busy: OnBusy, keyed: bool, again: bool) -> None:
        earlier = [sending for sending in self.sendings if sending.session == session and "keyed" in sending.prompt]
        if again and earlier:
            prompt = earlier[-1].prompt
        else:
            self.number += 1
            prompt = f"{'keyed' if keyed else 'plain'} {self.number}"
        key = prompt if "keyed" in prompt else None
        task = self.begin(self.node.send(session, prompt, on_busy=on_busy, idempotency_key=key))
        self.sendings.append(Sending(session, prompt, task))

    @rule()
    def ask(self) -> None:
        self.number += 1
        task = self.begin(self.node.service.ask(ALICE, Ask(f"ask {self.number}")))
        self.sendings.append(Sending("", f"ask {self.number}", task))

    # What is there depends on timers, too. What is drawn must not: Hypothesis repeats what it has drawn.

    @rule(which=choices)
    def caller_goes_away(self, which: int) -> None:
        if waiting := [item for item in self.sendings if not item.task.done()]:
            waiting[which % len(waiting)].task.cancel()

    @rule(which=choices)
    def abandon(self, which: int) -> None:
        if runs := self.runs():
            self.runner.run(_call(runs[which % len(runs)].abandon))

    @rule(session=sessions)
    def abort(self, session: str) -> None:
        self.begin(self.node.service.abort(ALICE, session))

    @rule(session=sessions)
    def delete(self, session: str) -> None:
        self.deleted.add(session)
        self.begin(self.delete_and_open(session))

    async def delete_and_open(self, session: str) -> None:
        await self.node.service.delete(ALICE, session)
        await self.node.open(session)

    # --- what the runtime does ---

    @rule(session=sessions, act=st.sampled_from(["begin", "start_tool", "flush", "answer", "answer", "fail"]))
    def runtime_acts(self, session: str, act: str) -> None:
        loaded = self.loaded(session)
        if loaded is None or (act in ("start_tool", "fail") and not loaded.turn):
            return
        result = getattr(loaded, act)
        self.begin(result()) if act in ("flush", "answer", "fail") else self.runner.run(_call(result))

    @rule(reason=st.just("gone"))
    def lose_runtime(self, reason: str) -> None:
        for runtime in self.node.pool.runtimes:
            self.runner.run(_call(lambda runtime=runtime: runtime.kill(reason)))

    @rule(method=st.sampled_from(["session.create", "session.resume", "session.send", "session.abort"]))
    def refuse(self, method: str) -> None:
        for runtime in self.node.pool.runtimes:
            runtime.refusals.append(method)

    # --- what the node does ---

    @rule(which=choices)
    def hibernate(self, which: int) -> None:
        if there := self.node.service.live:
            self.begin(self.node.service.hibernate(there[which % len(there)]))

    @rule()
    def sweep(self) -> None:
        self.begin(self.node.janitor.sweep())

    @rule()
    def be_reborn(self) -> None:
        self.runner.run(self.node.stores.coordination.leave(self.node.incarnation))
        self.lives += 1
        self.node.incarnation = f"a-{self.lives}"
        self.runner.run(self.node.join())
        self.runner.run(give_up(self.node))

    # --- what the stores do ---

    @rule(failure=st.sampled_from(FAILURES))
    def store_fails(self, failure: tuple[str, str]) -> None:
        getattr(self.node.stores, failure[0]).fails.add(failure[1])

    @rule(failure=st.sampled_from(HALF_FAILURES))
    def store_fails_after(self, failure: tuple[str, str]) -> None:
        getattr(self.node.stores, failure[0]).fails_after.add(failure[1])

    @rule()
    def stores_are_back(self) -> None:
        for name in ("slow_ledger", "slow_coordination", "slow_directory", "slow_files"):
            getattr(self.node.stores, name).fails.clear()
            getattr(self.node.stores, name).fails_after.clear()

    @rule(count=steps)
    def time_passes(self, count: int) -> None:
        self.runner.run(settle(count))

    # --- what must hold ---

    def runs(self) -> list[TurnRun]:
        done = [sending.task for sending in self.sendings if sending.task.done() and not sending.task.cancelled()]
        return [task.result() for task in done if task.exception() is None]

    @invariant()
    def places_are_held_for_what_is_resident(self) -> None:
        if hasattr(self, "node"):
            assert self.node.places >= self.node.resident
            assert all(runtime.reserved >= 0 for runtime in self.node.pool.started)

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        try:
            self.stores_are_back()
            for runtime in self.node.pool.started:
                runtime.refusals.clear()
            self.runner.run(self.come_to_rest())
            self.runner.run(self.check())
            self.runner.run(self.context.__aexit__(None, None, None))
        finally:
            self.runner.close()

    async def come_to_rest(self) -> None:
        """Answer whatever is still asked."""
        self.node.pool.answer_by_themselves()
        for _ in range(30):
            await settle(100)
            for runtime in self.node.pool.runtimes:
                for session in list(runtime.sessions.values()):
                    if session.turn or session.pending:
                        await session.answer()
        await asyncio.sleep(0.005)  # aborts that were not honoured
        for _ in range(10):
            await settle(100)
        async with asyncio.timeout(10):
            await asyncio.gather(*self.tasks, return_exceptions=True)
            for run in self.runs():
                await run.over()
        await self.node.janitor.sweep()
        await settle(300)

    async def check(self) -> None:
        self.errors_are_ours()
        for session in SESSIONS:
            counts = Counter(self.node.prompts(session))
            assert not counts or max(counts.values()) == 1, f"a prompt stands twice in {session}: {counts}"
        for sending in self.sendings:
            if sending.task.cancelled() or sending.task.exception() is not None:
                continue
            await self.has_one_outcome(sending, sending.task.result())
        unfinished = await self.node.stores.ledger.unfinished()
        assert unfinished == [], "the ledger has turns that nobody will ever end"
        assert self.node.places == self.node.resident
        self.nothing_is_left_of_questions()

    def errors_are_ours(self) -> None:
        for task in self.tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, AerodromeError), repr(error)

    async def has_one_outcome(self, sending: Sending, run: TurnRun) -> None:
        assert run.ended
        try:
            told = (await run.wait()).status
        except AerodromeError:
            told = None  # the store could not record it; by now it has
        if not sending.session or sending.session in self.deleted:
            return
        recorded = self.node.ledger_row(run)
        assert recorded is not None
        assert recorded.status.is_final
        assert told in (None, recorded.status)
        if recorded.status is TurnStatus.COMPLETED:
            assert self.node.prompts(sending.session).count(sending.prompt) == 1

    def nothing_is_left_of_questions(self) -> None:
        kept = {SessionKey("acme", session) for session in SESSIONS}
        stores = self.node.stores
        assert set(stores.directory._rows) <= kept
        assert all(row.kind is SessionKind.PERSISTENT for row in stores.directory._rows.values())
        assert set(stores.files.files) <= kept
        assert {row.key for row in stores.ledger._rows.values()} <= kept


async def _call(function: Any) -> None:
    function()


TestSessionsMachine = SessionsMachine.TestCase
TestSessionsMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
