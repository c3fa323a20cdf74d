"""The prompts that are with the runtime: handed to the session's activation, and not ended yet.

Usually that is one. A prompt that steers comes to it, and may outlast it: one that came too late to steer is answered
in a turn of its own, behind.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aerodrome._util.tasks import Flag
from aerodrome.events import SessionEvent
from aerodrome.sessions.activation import Activation, Loss
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.tracker import TELLING, TurnTracker

#: What the model says reaches the session's readers in one of these first.
_ANSWERS = frozenset(
    f"assistant.{name}" for name in ("message", "message_start", "message_delta", "reasoning", "reasoning_delta")
)


class Delivery:
    """Args:
    timeout: Seconds that a turn may take: of a prompt that waits in the runtime's queue, from when it is taken up, or
        nothing is before it any more.
    on_tool: Called when the first tool of a prompt's turn has started.
    """

    def __init__(self, timeout: float, on_tool: Callable[[TurnRun], None]) -> None:
        self._timeout = timeout
        self._on_tool = on_tool
        self._runs: list[TurnRun] = []
        self._deadlines: dict[TurnTracker, float] = {}
        #: Prompts of which nothing has been answered yet.
        self._unanswered: set[TurnRun] = set()
        self._changed = Flag()

    @property
    def runs(self) -> list[TurnRun]:
        return list(self._runs)

    def add(self, run: TurnRun) -> TurnTracker:
        """Begin an attempt, before the prompt is sent: its first events come before the answer to `send`.

        Returns:
            The attempt's tracker, which also names the attempt: the same run may be delivered again.
        """
        run.attempts += 1
        run.abort_sent = False
        if run.answered_at is None:
            self._unanswered.add(run)
        tracker = run.tracker = TurnTracker()
        self._runs.append(run)
        self._deadlines[tracker] = math.inf
        self._start_clocks()
        return tracker

    async def send(self, run: TurnRun, activation: Activation, *, steer: bool = False) -> None:
        """Hand an added prompt over. Raises what `Activation.send` raises."""
        attempt = run.tracker
        attempt.sending()
        message_id = await activation.send(run.message, trace=run.span.context, steer=steer)
        if self.has(run, attempt):
            run.sent_as(message_id)
            attempt.sent_as(message_id)
            self._look(run)
            self._start_clocks()
            self._changed.set()

    def has(self, run: TurnRun, attempt: TurnTracker) -> bool:
        """Whether this attempt is still under way."""
        return run.tracker is attempt and attempt in self._deadlines

    def remove(self, run: TurnRun, attempt: TurnTracker) -> bool:
        """``False``: this attempt is over already."""
        if not self.has(run, attempt):
            return False
        self._runs.remove(run)
        self._unanswered.discard(run)
        del self._deadlines[attempt]
        self._start_clocks()
        self._changed.set()
        return True

    def take_all(self) -> list[TurnRun]:
        runs = self.runs
        for run in runs:
            self.remove(run, run.tracker)
        return runs

    def take_ended(self) -> list[TurnRun]:
        ended = [run for run in self._runs if run.tracker.ended]
        for run in ended:
            self.remove(run, run.tracker)
        return ended

    def overdue(self) -> list[TurnRun]:
        now = asyncio.get_running_loop().time()
        return [run for run in self._at_work() if self._deadlines[run.tracker] <= now]

    def feed(self, event: SessionEvent) -> None:
        if self._unanswered and event.type in _ANSWERS:
            self._answer_begins()
        if event.type not in TELLING:
            return
        for run in self._runs:
            run.tracker.feed(event)
            self._look(run)
            if run.tracker.ended:
                self._changed.set()
        if event.type == "user.message":
            self._start_clocks()

    def tell(self, event: SessionEvent, behind: str, *, but: TurnRun | None) -> None:
        """An event for those who follow one of the prompts."""
        for run in self._runs:
            if run is not but:
                run.publish(event, behind)

    async def change(self, lost: asyncio.Future[Loss]) -> None:
        """Wait until a prompt may have ended, come, gone or become overdue, or the activation is lost."""
        try:
            left = min(self._deadlines[run.tracker] for run in self._at_work()) - asyncio.get_running_loop().time()
            waiting: set[asyncio.Future[Any]] = {self._changed.raised, lost}
            await asyncio.wait(waiting, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._changed.clear()

    def _answer_begins(self) -> None:
        """Of all of them: whose it is does not show in its first piece, and mostly there is one."""
        now = asyncio.get_running_loop().time()
        for run in self._unanswered:
            run.answered_at = now
        self._unanswered.clear()

    def _start_clocks(self) -> None:
        """A prompt has come, been taken up, or gone."""
        now = asyncio.get_running_loop().time()
        for place, run in enumerate(self._at_work()):
            if self._deadlines[run.tracker] == math.inf and (place == 0 or run.tracker.begun):
                self._deadlines[run.tracker] = now + self._timeout

    def _at_work(self) -> list[TurnRun]:
        """Those whose time runs, or has not begun: of one that only waits for the idle it is over, unless there is
        nothing else."""
        return [run for run in self._runs if not run.tracker.succeeded] or self._runs

    def _look(self, run: TurnRun) -> None:
        if run.tracker.tool_ran and not run.row.tool_ran:
            run.row = replace(run.row, tool_ran=True)
            self._on_tool(run)
