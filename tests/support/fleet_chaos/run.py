"""One run, from the start of the stores to the last look at what is left."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aerodrome.demo.model import ModelServer
from support.fleet_chaos.audit import audit_end, audit_histories, settle
from support.fleet_chaos.faults import Faults
from support.fleet_chaos.fleet import fleet
from support.fleet_chaos.http_user import HttpUser
from support.fleet_chaos.options import NODES, Options
from support.fleet_chaos.report import measure
from support.fleet_chaos.sdk_user import SdkUser, tool_of
from support.fleet_chaos.transcript import Transcript
from support.fleet_chaos.users import Session, Speaker, Talker, World
from support.fleet_chaos.watch import Watch

TENANTS = ("acme", "bank", "solo")
#: A built-in tool that stays in its session, for those who have none of their own.
_BUILT_IN = "list_agents {}"
#: Seconds that everything but the time of trouble may take.
_BESIDES = 400.0


class Result:
    def __init__(self) -> None:
        #: See `report.measure`; empty when the run did not come so far.
        self.measured: dict[str, Any] = {}
        self.wrong: list[str] = []
        self.log: list[str] = []


async def chaos(options: Options, directory: Path) -> Result:
    """One run; what is wrong is in the result."""
    result = Result()
    transcript, watch = Transcript(), Watch()
    result.log = transcript.log
    try:
        with ModelServer.in_thread(delay=0.02) as model:
            async with (
                watch.waiting("the whole run", options.seconds + _BESIDES),
                fleet(directory, model.base_url, transcript, watch) as running,
            ):
                await _run(World(options, running, transcript, watch), result)
    except* AssertionError as failed:
        result.wrong += [f"{type(error).__name__}: {error}" for error in _each(failed)]
    return result


async def _run(world: World, result: Result) -> None:
    tenants = {f"u{number}": TENANTS[_tenant(number)] for number in range(world.options.users)}
    sessions = _sessions(tenants)
    world.keys = await world.fleet.keys(tenants)
    http = {user: HttpUser(world, user, streams=False) for user in tenants}
    try:
        await _open(sessions, http)
        begun = time.monotonic()
        await _trouble(world, tenants, sessions)
        seconds = time.monotonic() - begun
        world.transcript.say("the trouble is over")
        result.wrong += await settle(world)
        result.wrong += await audit_histories(world, sessions, http)
        result.wrong += await settle(world)
        result.measured = measure(world.options, world.transcript, seconds, await _ledger(world))
    finally:
        for user in http.values():
            await user.aclose()
    for name, code in zip(NODES, await asyncio.gather(*(world.fleet.stop(name) for name in NODES)), strict=True):
        if code != 0:
            result.wrong.append(f"node {name} ended with {code}")
    result.wrong += await audit_end(world)
    result.wrong += [
        f"{count} answers of {code}" for code, count in world.transcript.counts.items() if "internal" in code
    ]
    result.wrong += world.fleet.complaints()


def _tenant(number: int) -> int:
    """Few in the tenant where each user has a runtime of their own."""
    return 2 if number % 8 == 7 else number % 2


def _sessions(tenants: dict[str, str]) -> list[Session]:
    """One for each user, and in each tenant one that all its users write in."""
    found = [Session(tenant, f"chat-{user}", user) for user, tenant in tenants.items()]
    for tenant in TENANTS:
        owner, *others = [user for user in tenants if tenants[user] == tenant] or [""]
        if others:
            found.append(Session(tenant, f"team-{tenant}", owner, tuple(others[:4])))
    return found


async def _open(sessions: list[Session], http: dict[str, HttpUser]) -> None:
    for session in sessions:
        owner = http[session.owner]
        await owner.call("POST", "/sessions", {"id": session.id})
        for writer in session.writers:
            await owner.call("PUT", f"/sessions/{session.id}/members/{writer}", {"role": "writer"})


async def _trouble(world: World, tenants: dict[str, str], sessions: list[Session]) -> None:
    """Until the time is over, or enough turns are done; afterwards every prompt has its outcome and everything runs."""
    async with _speakers(world, tenants) as speakers, asyncio.TaskGroup() as group:
        for user, (speaker, tool) in speakers.items():
            own = [session for session in sessions if user in (session.owner, *session.writers)]
            group.create_task(Talker(world, user, own, speaker, tool).talk(), name=user)
        faults = group.create_task(Faults(world.fleet, world.transcript, world.options).run(), name="faults")
        end = time.monotonic() + world.options.seconds
        while time.monotonic() < end and world.transcript.turns < (world.options.turns or 1 << 30):
            await asyncio.sleep(0.1)
        faults.cancel()
        # The last prompts meet faults, too, until they are mended.
        world.over.set()


@asynccontextmanager
async def _speakers(world: World, tenants: dict[str, str]) -> AsyncIterator[dict[str, tuple[Speaker, str]]]:
    """A third each: JSON, streams, the SDK."""
    found: dict[str, tuple[Speaker, str]] = {}
    for number, user in enumerate(tenants):
        if number % 3 == 2:
            found[user] = SdkUser(world, user), tool_of(user)
        else:
            found[user] = HttpUser(world, user, streams=number % 3 == 1), _BUILT_IN
    try:
        yield found
    finally:
        for speaker, _ in found.values():
            await speaker.aclose()


async def _ledger(world: World) -> dict[str, int]:
    rows = await asyncio.to_thread(world.fleet.query, "SELECT status, retried FROM turn")
    counts = Counter(status for status, _ in rows)
    return {**dict(sorted(counts.items())), "retried": sum(retried for _, retried in rows)}


def _each(group: BaseExceptionGroup[AssertionError]) -> Iterator[AssertionError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _each(error)
        else:
            yield error
