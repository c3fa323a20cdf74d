"""Afterwards: is each history what its users were told, and has everything come to its end?"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from support.fleet_chaos.http_user import HttpUser
from support.fleet_chaos.transcript import Outcome, Prompt
from support.fleet_chaos.users import Session, World
from support.histories import Shape

#: Seconds after the last prompt in which nothing may be left unfinished.
SETTLE = 40.0
_VIEW = "[[turns]]"


async def audit_histories(world: World, sessions: Sequence[Session], users: dict[str, HttpUser]) -> list[str]:
    """What is wrong with the histories: as stored, as any node tells them, and as the model is sent them."""
    atonce = asyncio.Semaphore(4)

    async def one(session: Session) -> list[str]:
        async with atonce:
            return await _audit(world, session, users[session.owner])

    return [wrong for found in await asyncio.gather(*(one(session) for session in sessions)) for wrong in found]


async def _audit(world: World, session: Session, owner: HttpUser) -> list[str]:
    prompts = world.transcript.of(session.id)
    shape = Shape(await asyncio.to_thread(world.fleet.history, session.tenant, session.id))
    found = [*compare(prompts, shape.prompts), *compare_answers(prompts, shape.exchanges), *_line(shape)]
    wrong = [f"{session.id}, as stored: {what}" for what in found]
    for prompt in besides(prompts, shape.prompts):
        world.transcript.stands(prompt)
    if wrong:
        wrong.append(str(shape))
        wrong += await asyncio.to_thread(_evidence, world, session, prompts, shape)
    owner.switch()
    told = await _told(owner, session.id)
    if told != shape.prompts:
        wrong.append(f"{session.id}: node {owner.node} tells {told}, stored is {shape.prompts}")
    view = await _view(owner, session.id)
    wrong += [f"{session.id}, as the model sees it: {what}" for what in compare(prompts, view)]
    return wrong


def compare(prompts: Sequence[Prompt], stored: Sequence[str]) -> list[str]:
    """What is wrong with a history of these user turns."""
    wrong = [f"{text!r} stands in it {times} times" for text, times in Counter(stored).items() if times > 1]
    by_text = {prompt.text: prompt for prompt in prompts}
    wrong += [f"{text!r} was never said" for text in stored if text not in by_text]
    at = {text: number for number, text in enumerate(stored)}
    acknowledged = [prompt for prompt in prompts if prompt.outcome is Outcome.ACKNOWLEDGED]
    wrong += [f"{prompt} was acknowledged and is missing" for prompt in acknowledged if prompt.text not in at]
    # What was acknowledged before another prompt was sent stands before it, whoever said them.
    present = [prompt for prompt in prompts if prompt.text in at]
    for first in (prompt for prompt in present if prompt.outcome is Outcome.ACKNOWLEDGED):
        for second in present:
            if (first.ended or 0.0) <= second.began and at[first.text] > at[second.text]:
                wrong.append(f"{second} stands before {first}, which was acknowledged before it was said")
    return wrong


def compare_answers(prompts: Sequence[Prompt], stored: Sequence[tuple[str, str]]) -> list[str]:
    """What is wrong with the answers in a history: each user was told what stands in it.

    Args:
        stored: User turns with their answers.
    """
    answers = dict(stored)
    return [
        f"{prompt} was answered {prompt.told!r}, and {answers[prompt.text]!r} is stored"
        for prompt in prompts
        if prompt.told is not None and answers.get(prompt.text, prompt.told) != prompt.told
    ]


def besides(prompts: Sequence[Prompt], stored: Sequence[str]) -> list[Prompt]:
    """The prompts that stand in a history of these user turns and were not acknowledged."""
    present = set(stored)
    return [prompt for prompt in prompts if prompt.outcome is not Outcome.ACKNOWLEDGED and prompt.text in present]


def _evidence(world: World, session: Session, prompts: Sequence[Prompt], shape: Shape) -> list[str]:
    """Of prompts that were acknowledged and are missing: what the ledger has, and what their user has seen."""
    stored = {event.id for event in shape.events}
    found = []
    for prompt in prompts:
        if prompt.outcome is Outcome.ACKNOWLEDGED and prompt.text not in shape.prompts:
            rows = world.fleet.query(
                "SELECT id, status, retried, message_id, incarnation, created_at, started_at, ended_at, answer "
                "FROM turn WHERE session = %s AND prompt = %s",
                session.id,
                prompt.text,
            )
            seen = [f"{kind} {event}{' (stored)' if event in stored else ''}" for kind, event in prompt.seen]
            found.append(f"{prompt}: the ledger has {rows}; its user has seen {seen}")
    return found


def _line(shape: Shape) -> list[str]:
    wrong = [f"a fork: {[(event.id, event.type, event.text) for event in fork]}" for fork in shape.forks]
    return wrong + [f"{event.type} {event.id} does not follow the event before it" for event in shape.breaks]


async def _told(owner: HttpUser, session: str) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        query = f"?limit=1000{f'&cursor={cursor}' if cursor else ''}"
        page = await owner.call("GET", f"/sessions/{session}/messages{query}")
        found += [message["content"] for message in page["messages"] if message["role"] == "user"]
        if (cursor := page["next"]) is None:
            return found


async def _view(owner: HttpUser, session: str) -> list[str]:
    answer = await owner.call("POST", f"/sessions/{session}/messages", {"prompt": _VIEW})
    seen = json.loads(answer["message"]["content"])
    assert seen[-1] == _VIEW
    # The question itself may have been asked before, and not answered.
    return [text for text in seen if text != _VIEW]


async def settle(world: World) -> list[str]:
    """Wait until nothing is unfinished or held by the dead; what still is, when it does not come to that."""
    return await _eventually(lambda: _unfinished(world), SETTLE)


def _unfinished(world: World) -> list[str]:
    rows = world.fleet.query("SELECT session, id, status, incarnation FROM turn WHERE status IN ('queued', 'running')")
    living = world.fleet.living()
    wrong = [f"turn {row} is unfinished" for row in rows]
    wrong += [f"place {place} is taken" for place in living["places"]]
    wrong += [f"cap {cap}" for cap in living["caps"].items()]
    for key, incarnation in living["leases"].items():
        if incarnation not in living["nodes"]:
            wrong.append(f"the lease of {key} is that of {incarnation}, which is dead")
    return wrong


async def audit_end(world: World) -> list[str]:
    """After all nodes were stopped: no process, no home, no lease, no node."""

    def left() -> list[str]:
        living = world.fleet.living()
        held: list[Any] = [*living["leases"].items(), *living["nodes"].items(), *living["places"]]
        return [*world.fleet.strays(), *(f"{what} is left in Valkey" for what in held)]

    return await _eventually(left, 10.0)


async def _eventually(wrong: Callable[[], list[str]], seconds: float) -> list[str]:
    deadline = time.monotonic() + seconds
    while True:
        found = await asyncio.to_thread(wrong)
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)
