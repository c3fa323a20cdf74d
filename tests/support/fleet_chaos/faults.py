"""What goes wrong, when: a deck of faults, shuffled by the seed."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import psutil

from support.fleet_chaos.fleet import ChaosFleet, Node
from support.fleet_chaos.options import TTL, Options
from support.fleet_chaos.transcript import NodeKill, Transcript

#: Each kind as often as it is in a deck. A deck is dealt to its end before the next is shuffled.
DECK = {
    "runtime killed": 2,
    "runtime paused": 1,
    "node killed": 2,
    "node paused": 1,
    "Valkey restarted": 1,
    "Valkey emptied": 1,
    "PostgreSQL restarted": 1,
    "PostgreSQL crashed": 1,
}


class Faults:
    def __init__(self, fleet: ChaosFleet, transcript: Transcript, options: Options) -> None:
        self._fleet = fleet
        self._transcript = transcript
        self._chance = options.chance("faults")
        self._pause = options.pause
        self._valkey, self._postgres = asyncio.Lock(), asyncio.Lock()
        self._doing: dict[str, Callable[[], Awaitable[bool]]] = {
            "runtime killed": self._kill_runtime,
            "runtime paused": self._pause_runtime,
            "node killed": self._kill_node,
            "node paused": self._pause_node,
            "Valkey restarted": self._restart_valkey,
            "Valkey emptied": self._empty_valkey,
            "PostgreSQL restarted": lambda: self._restart_postgres(signal.SIGINT),
            "PostgreSQL crashed": lambda: self._restart_postgres(signal.SIGKILL),
        }

    async def run(self) -> None:
        """For ever, until cancelled; then what is under way is brought to its end, so that everything runs again."""
        async with asyncio.TaskGroup() as group:
            with suppress(asyncio.CancelledError):
                for kind in _dealt(self._chance):
                    await asyncio.sleep(self._chance.uniform(0.5, 1.5) * self._pause)
                    group.create_task(self._fault(kind), name=kind)
            # The group waits for them outside of the cancellation.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()

    async def _fault(self, kind: str) -> None:
        begun = time.monotonic()
        if await self._doing[kind]():
            self._transcript.counts[f"fault: {kind}"] += 1
            self._transcript.faults.append((begun, time.monotonic(), kind))
        else:
            self._transcript.counts["faults without a target"] += 1

    def _any_node(self) -> Node | None:
        """One that is up, as long as another is left."""
        up = [node for node in self._fleet.nodes.values() if node.up]
        return self._chance.choice(up) if len(up) > 1 else None

    def _any_runtime(self) -> psutil.Process | None:
        found = [runtime for node in self._fleet.nodes.values() if node.up for runtime in node.runtimes()]
        return self._chance.choice(found) if found else None

    async def _kill_runtime(self) -> bool:
        if (runtime := self._any_runtime()) is None:
            return False
        self._transcript.say(f"kill runtime {runtime.pid}")
        with suppress(psutil.NoSuchProcess):
            runtime.kill()
        return True

    async def _pause_runtime(self) -> bool:
        """Longer or shorter than it takes to hold it for dead."""
        if (runtime := self._any_runtime()) is None:
            return False
        self._transcript.say(f"pause runtime {runtime.pid}")
        with suppress(psutil.NoSuchProcess):
            runtime.suspend()
            await asyncio.sleep(self._chance.uniform(1.0, 6.0))
            runtime.resume()
        return True

    async def _kill_node(self) -> bool:
        if (node := self._any_node()) is None:
            return False
        sessions = self._fleet.loaded_at(node.name)
        at = time.monotonic()
        self._transcript.kills.append(NodeKill(at, node.name, sessions))
        self._transcript.say(f"kill node {node.name}, which runs {', '.join(sessions) or 'nothing'}")
        await self._fleet.kill(node.name)
        await asyncio.sleep(self._chance.uniform(0.2, 3.0))
        await self._fleet.start(node.name)
        self._transcript.say(f"node {node.name} is up again")
        return True

    async def _pause_node(self) -> bool:
        """Longer than others take it for alive."""
        if (node := self._any_node()) is None:
            return False
        assert node.server is not None
        self._transcript.say(f"pause node {node.name}")
        node.paused = True
        process = psutil.Process(node.server.process.pid)
        process.suspend()
        try:
            await asyncio.sleep(TTL + self._chance.uniform(0.5, 3.0))
        finally:
            process.resume()
            node.paused = False
        self._transcript.say(f"node {node.name} goes on")
        return True

    async def _restart_valkey(self) -> bool:
        async with self._valkey:
            self._transcript.say("kill Valkey")
            await asyncio.to_thread(self._fleet.valkey.stop)
            await asyncio.sleep(self._chance.uniform(0.0, 3.0))
            await asyncio.to_thread(self._fleet.valkey.start)
            self._transcript.say("Valkey is up again, and empty")
        return True

    async def _empty_valkey(self) -> bool:
        async with self._valkey:
            self._transcript.say("empty Valkey")
            await asyncio.to_thread(self._fleet.valkey.empty)
        return True

    async def _restart_postgres(self, how: signal.Signals) -> bool:
        async with self._postgres:
            self._transcript.say(f"stop PostgreSQL with {how.name}")
            await asyncio.to_thread(self._fleet.postgres.stop, how)
            await asyncio.sleep(self._chance.uniform(0.0, 3.0))
            await asyncio.to_thread(self._start_postgres)
            self._transcript.say("PostgreSQL is up again")
        return True

    def _start_postgres(self) -> None:
        """What its killed parent has left may still hold the memory that they share."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self._fleet.postgres.start()
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def _dealt(chance: random.Random) -> Iterator[str]:
    while True:
        deck = [kind for kind, times in DECK.items() for _ in range(times)]
        chance.shuffle(deck)
        yield from deck
