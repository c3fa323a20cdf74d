"""The short form of `make chaos`: three nodes, two stores and eight users under trouble."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from support.fleet_chaos.audit import besides, compare, compare_answers
from support.fleet_chaos.options import Options
from support.fleet_chaos.report import TARGET, table, too_slow
from support.fleet_chaos.run import chaos
from support.fleet_chaos.transcript import Outcome, Prompt, Transcript
from support.histories import Shape


@pytest.mark.cli
@pytest.mark.timeout(300)
async def test_every_history_is_as_its_users_were_told_whatever_dies(tmp_path: Path) -> None:
    options = Options(users=8, seconds=20.0, pause=3.0)
    result = await chaos(options, tmp_path)
    print(table(result.measured) if result.measured else "it did not come to its end")
    assert not result.wrong, "\n".join([f"seed {options.seed}", *result.wrong, *result.log[-200:]])
    counts = result.measured["counts"]
    assert sum(count for kind, count in counts.items() if kind.startswith("fault: ")) >= 3
    assert result.measured["prompts"]["acknowledged"] >= 8


def said(*names: str) -> list[Prompt]:
    """Acknowledged one after the other."""
    now = time.monotonic()
    return [
        Prompt("s", "u", name, name, began=now + number, ended=now + number + 0.5, outcome=Outcome.ACKNOWLEDGED)
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    ("stored", "wrong"),
    [
        (["a", "b", "c"], None),
        (["a", "c"], "missing"),
        (["a", "b", "b", "c"], "2 times"),
        (["b", "a", "c"], "stands before"),
        (["a", "b", "x", "c"], "never said"),
    ],
)
def test_the_audit_sees_what_is_wrong(stored: list[str], wrong: str | None) -> None:
    found = compare(said("a", "b", "c"), stored)
    assert bool(found) == (wrong is not None)
    assert wrong is None or any(wrong in one for one in found)


def test_what_was_not_acknowledged_may_be_missing_and_never_stands_twice() -> None:
    prompts = said("a", "b")
    prompts[1].outcome = Outcome.UNKNOWN
    assert not compare(prompts, ["a"])
    assert not compare(prompts, ["a", "b"])
    assert compare(prompts, ["a", "b", "b"])


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.ACKNOWLEDGED])
def test_what_stands_in_a_history_and_was_not_acknowledged_is_counted(outcome: Outcome) -> None:
    prompts = said("a", "b", "c")
    prompts[1].outcome = prompts[2].outcome = outcome
    transcript = Transcript()
    for prompt in besides(prompts, ["a", "b"]):
        transcript.stands(prompt)
    assert transcript.counts == {f"in the history: {outcome}": 1}
    # Of an interrupted one its user was told that it may stand there.
    assert transcript.unexpected == ([] if outcome is Outcome.INTERRUPTED else [f"b of u in s, {outcome}"])


@pytest.mark.parametrize(("stored", "wrong"), [("two", False), ("three", True), ("", True)])
def test_what_a_user_was_told_is_what_is_stored(stored: str, wrong: bool) -> None:
    events = [("user.message", "a"), ("assistant.message", "one"), ("user.message", "b"), ("assistant.message", "")]
    lines = [
        json.dumps({"id": f"e{number}", "type": kind, "data": {"content": text}})
        for number, (kind, text) in enumerate([*events, ("tool.execution_start", "x"), ("assistant.message", stored)])
    ]
    prompts = said("a", "b", "c")
    prompts[0].told, prompts[1].told = "one", "two"
    found = compare_answers(prompts, Shape("\n".join(lines)).exchanges)
    assert bool(found) == wrong


def test_a_recovery_that_is_slow_by_itself_misses_the_target() -> None:
    measured = {"recovery_target_seconds": TARGET, "recovery_seconds": {"p95": TARGET + 9}}
    alone = "recovery_seconds_without_other_faults"
    assert too_slow({**measured, alone: {"count": 0}}) is None
    assert too_slow({**measured, alone: {"p95": TARGET}}) is None
    assert too_slow({**measured, alone: {"p95": TARGET + 0.1}}) is not None
