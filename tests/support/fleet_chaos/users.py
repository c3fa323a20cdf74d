"""What users of both doors have in common: their sessions, their node, and a prompt after the other."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Protocol

from support.fleet_chaos.fleet import ChaosFleet
from support.fleet_chaos.options import NODES, PATIENCE, Options
from support.fleet_chaos.transcript import Prompt, Transcript
from support.fleet_chaos.watch import Watch

#: Seconds without a sign of life after which a node is left for another.
SILENCE = 6.0


@dataclass(frozen=True, slots=True)
class Session:
    tenant: str
    id: str
    owner: str
    #: Users beside the owner who write in it.
    writers: tuple[str, ...] = ()


@dataclass(slots=True)
class World:
    """What a run consists of."""

    options: Options
    fleet: ChaosFleet
    transcript: Transcript
    watch: Watch
    #: User -> API key.
    keys: dict[str, str] = field(default_factory=dict)
    #: No new prompts any more.
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Speaker(Protocol):
    """Brings a prompt to its outcome, and survives whatever happens meanwhile."""

    async def say(self, prompt: Prompt) -> None: ...
    async def aclose(self) -> None: ...


class Placed:
    """A user's choice of a node."""

    def __init__(self, world: World, user: str) -> None:
        self.world, self.user = world, user
        self.chance = world.options.chance(user)
        self.node = self.chance.choice(NODES)

    def switch(self) -> None:
        self.node = self.chance.choice([name for name in NODES if name != self.node])
        self.world.transcript.counts["changes of node"] += 1

    def refused(self, code: str) -> None:
        self.world.transcript.counts[f"refusal: {code}"] += 1

    async def rest(self) -> None:
        """Before the next try."""
        await asyncio.sleep(self.chance.uniform(0.1, 0.4))


class Talker:
    """Args:
    tool: A tool that the speaker's sessions have, if they have one.
    """

    def __init__(self, world: World, user: str, sessions: list[Session], speaker: Speaker, tool: str | None) -> None:
        self.user = user
        self._world, self._speaker, self._tool = world, speaker, tool
        self._sessions = sessions
        self._chance: random.Random = world.options.chance(f"{user} talks")

    async def talk(self) -> None:
        number = 0
        while not self._world.over.is_set():
            number += 1
            session = self._chance.choice(self._sessions)
            prompt = self._next(session, number)
            self._world.transcript.prompts.append(prompt)
            async with self._world.watch.waiting(f"the outcome of {prompt}", PATIENCE):
                await self._speaker.say(prompt)
            assert prompt.outcome is not None
            await asyncio.sleep(self._chance.uniform(0.0, 2 * self._world.options.think))

    def _next(self, session: Session, number: int) -> Prompt:
        answer = f"{self.user}-{number}"
        text = f"[[delay: {self._chance.uniform(0.0, 0.8):.2f}s]][[say: {answer}]]"
        if self._tool is not None and self._chance.random() < 0.3:
            text = f"[[tool: {self._tool}]][[then]]{text}"
        return Prompt(session.id, self.user, f"{text} {answer}", answer)
