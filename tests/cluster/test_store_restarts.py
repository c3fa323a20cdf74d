"""The stores of a fleet are restarted under users who talk all the time: turns are late, and none fails."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.host import User
from support.nodes import eventually, nodes
from support.postgres import server as postgresql
from support.server import write_config
from support.stores import valkey

pytestmark = pytest.mark.cli

USERS = 6
#: Seconds for which a store is away: longer than the nodes' time to live, so that they fence themselves, and nearly as
#: long as nobody is to notice.
AWAY = 9.0


@pytest.mark.soak
async def test_restarts_of_the_stores_fail_no_turn(tmp_path: Path, model: ModelServer) -> None:
    outcomes: Counter[str] = Counter()
    said: dict[str, list[str]] = {f"s-{number}": [] for number in range(USERS)}
    enough = asyncio.Event()

    async def talk(user: User, session: str) -> None:
        while not enough.is_set():
            prompt = f"[[say: {session} {len(said[session])}]]"
            # Asked once: who waits long enough is not told of the stores at all.
            answer = await user.http.post(f"/sessions/{session}/messages", json={"prompt": prompt})
            assert answer.status_code == 200, answer.text
            turn = answer.json()["turn"]
            outcomes[turn["status"]] += 1
            outcomes["retried"] += turn["retried"]
            said[session].append(prompt)
            await asyncio.sleep(0.2)  # thinks

    async with AsyncExitStack() as stack:
        coordination = stack.enter_context(valkey())
        state = stack.enter_context(postgresql())
        config = write_config(tmp_path, model.base_url)
        text = config.read_text().replace("[coordination]\n", f'[coordination]\nurl = "{coordination.url}"\n')
        text = text.replace('heartbeat = "200ms"\nttl = "2s"', 'heartbeat = "1s"\nttl = "5s"')
        config.write_text(f'{text}[state]\nurl = "{state.url}"\n')
        fleet = await stack.enter_async_context(nodes(config, "a"))
        await fleet.start("b")
        users = [await fleet.user("ab"[number % 2], f"user{number}") for number in range(USERS)]
        talks = []
        for user, session in zip(users, said, strict=True):
            await user.open(session)
            talks.append(asyncio.create_task(talk(user, session)))

        async def all_go_on() -> None:
            goal = {session: len(prompts) + 2 for session, prompts in said.items()}
            await eventually(
                lambda: (
                    any(task.done() for task in talks)
                    or all(len(prompts) >= goal[session] for session, prompts in said.items())
                ),
                60,
            )
            for task in talks:
                if task.done():
                    task.result()

        await all_go_on()
        for store, how in ((coordination, signal.SIGKILL), (state, signal.SIGKILL), (state, signal.SIGINT)):
            await asyncio.to_thread(store.stop, how)
            await asyncio.sleep(AWAY)
            await asyncio.to_thread(store.start)
            await all_go_on()
        enough.set()
        await asyncio.gather(*talks)
        assert set(outcomes) <= {"completed", "retried"}, outcomes
        for user, (session, prompts) in zip(users, said.items(), strict=True):
            assert await user.prompts_seen(session) == prompts
    print(dict(outcomes))
