"""Who runs a session is asked of the coordination store, which may stand still for a while."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.nodes import nodes
from support.server import write_config
from support.stores import valkey

pytestmark = pytest.mark.cli

#: Milliseconds that the store stands still: longer than a call of it is waited for, and shorter than it takes nodes to
#: fence themselves.
STILL = "3000"


async def test_the_question_waits_for_a_store_that_stands_still(tmp_path: Path, model: ModelServer) -> None:
    with valkey() as store:
        config = write_config(tmp_path, model.base_url, "[runtime]\nwarm = 0\n")
        text = config.read_text().replace("[coordination]\n", f'[coordination]\nurl = "{store.url}"\n')
        config.write_text(text.replace('heartbeat = "200ms"\nttl = "2s"', 'heartbeat = "200ms"\nttl = "5s"'))
        async with nodes(config, "a", "b") as fleet:
            at_a, at_b = await fleet.user("a"), await fleet.user("b")
            for session in ("http", "native"):
                await at_b.open(session)
                await at_b.text(session, "[[say: one]]")
            client = await fleet.sdk("a")
            await client.create()
            await asyncio.to_thread(store.command, "CLIENT", "PAUSE", STILL, "ALL")
            said, chat = await asyncio.gather(at_a.text("http", "[[say: two]]"), client.resume("native"))
            assert said == "two"
            assert await chat.turn("[[say: two]]") == "two"
            for session in ("http", "native"):
                assert await at_b.prompts_seen(session) == ["[[say: one]]", "[[say: two]]"]
