"""Users talk while runtimes are killed, hung and emptied; afterwards every history must be what was acknowledged."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil

from support.host import Host, User


@dataclass
class Conversation:
    user: User
    session: str
    #: Prompts whose turn was told as completed, in order.
    completed: list[str] = field(default_factory=list)
    #: Prompts whose turn was told as interrupted: they may not be in the history.
    interrupted: list[str] = field(default_factory=list)


class Chaos:
    """Args:
    users: Each has one session, in turn of one of two tenants.
    turns: Of each user.
    faults: How many, spread over the run.
    """

    def __init__(self, running: Host, *, users: int, turns: int, faults: int, seed: int) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self._running = running
        self._users = users
        self._turns = turns
        self._faults = faults
        self._random = random.Random(seed)
        self._done = 0

    async def run(self) -> None:
        """Raises `AssertionError`, with the seed, when a history is not what was acknowledged."""
        conversations = [await self._conversation(number) for number in range(self._users)]
        faults = asyncio.create_task(self._make_trouble())
        await asyncio.gather(*(self._talk(conversation) for conversation in conversations))
        faults.cancel()
        await asyncio.gather(faults, return_exceptions=True)
        for conversation in conversations:
            await self._check(conversation)

    async def _conversation(self, number: int) -> Conversation:
        user = await self._running.user(f"user{number}", ("acme", "bank")[number % 2])
        await user.open(f"chat{number}")
        return Conversation(user, f"chat{number}")

    async def _talk(self, conversation: Conversation) -> None:
        for number in range(self._turns):
            prompt = f"{conversation.session} prompt {number}"
            response = await self._send(conversation, prompt)
            status = response.json()["turn"]["status"]
            self.counts[f"turns {status}"] += 1
            self.counts["turns retried"] += response.json()["turn"]["retried"]
            if status == "completed":
                conversation.completed.append(prompt)
            else:
                assert status == "interrupted", (self.seed, response.text)
                conversation.interrupted.append(prompt)
            self._done += 1

    async def _send(self, conversation: Conversation, prompt: str) -> httpx.Response:
        """Until the turn was at least begun: a 503 without a turn, or that failed before it began, is tried again."""
        while True:
            response = await conversation.user.http.post(
                f"/sessions/{conversation.session}/messages", json={"prompt": prompt}
            )
            if response.status_code == 503 and response.json()["code"] in ("runtime_unavailable", "capacity"):
                self.counts["tried again"] += 1
                await asyncio.sleep(0.2)
                continue
            return response

    async def _make_trouble(self) -> None:
        total = self._users * self._turns
        for number in range(self._faults):
            while self._done < (number + 1) * total // (self._faults + 1):
                await asyncio.sleep(0.01)
            await self._fault()

    async def _fault(self) -> None:
        kind = self._random.choice(["kill", "kill", "suspend", "hibernate"])
        if kind == "hibernate":
            for live in self._running.node.sessions.live:
                self.counts["sessions hibernated"] += await self._running.node.sessions.hibernate(live)
            return
        claimed = [runtime for runtime in self._running.node.pool.runtimes if runtime.key is not None]
        if claimed:
            pid = self._random.choice(claimed).pid
            assert pid is not None
            process = psutil.Process(pid)
            process.kill() if kind == "kill" else process.suspend()
            self.counts[f"runtimes {kind}ed"] += 1

    async def _check(self, conversation: Conversation) -> None:
        """Each completed prompt stands in the history once, in order; an interrupted one at most once."""
        seen = json.loads(await conversation.user.text(conversation.session, "[[turns]]"))[:-1]
        assert len(seen) == len(set(seen)), (self.seed, seen)
        acknowledged = [prompt for prompt in seen if prompt not in conversation.interrupted]
        assert acknowledged == conversation.completed, (self.seed, seen, conversation)
