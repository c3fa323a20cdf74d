"""What the sessions tell of their work, and when; which metrics that becomes is not theirs."""

from __future__ import annotations

import pytest

from aerodrome.errors import RateLimited
from aerodrome.model import SessionKind, TurnStatus
from aerodrome.runtime.deaths import Death
from aerodrome.sessions.admission import TurnLimits
from support.scripted_node import scripted_node, settle


async def test_a_turn_is_told_once_with_its_times() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await node.send("s1", "hello")
        await settle()
        queued = await node.send("s1", "behind")
        await settle()
        await node.loaded("s1").answer()
        await run.wait()
        await settle()
        await node.loaded("s1").answer()
        await queued.wait()
        assert [turn.status for turn in node.told.turns] == ["completed", "completed"]
        first, second = node.told.turns
        assert first.tenant == "acme"
        assert first.code == ""
        for turn in (first, second):
            assert turn.seconds is not None
            assert turn.waited is not None
            assert turn.answered is not None
            assert 0 <= turn.waited <= turn.answered <= turn.seconds
        assert second.waited is not None
        assert second.waited > 0
        assert node.told.events.count("session_woken") == 1


async def test_a_loss_is_told_with_the_retry_and_the_turn_once() -> None:
    async with scripted_node(max_runtimes=3) as node:
        await node.open("s1")
        run = await node.send("s1", "hello")
        await settle()
        node.runtime.kill("killed by the test")
        await settle()
        await node.loaded("s1").answer()
        assert (await run.wait()).status is TurnStatus.COMPLETED
        assert [name for name in node.told.events if name != "model_called"] == [
            "session_woken",
            "session_lost",
            "turn_retried",
            "session_woken",
            "turn_ended",
        ]


async def test_an_ephemeral_session_s_turn_is_told() -> None:
    async with scripted_node() as node:
        node.pool.answer_by_themselves()
        await node.open("s1", SessionKind.EPHEMERAL)
        await (await node.send("s1", "hello")).wait()
        assert [turn.status for turn in node.told.turns] == ["completed"]


async def test_what_was_never_accepted_is_no_turn() -> None:
    async with scripted_node(limits=TurnLimits(per_minute=1)) as node:
        node.pool.answer_by_themselves()
        await node.open("s1")
        await (await node.send("s1", "one")).wait()
        with pytest.raises(RateLimited):
            await node.send("s1", "two")
        assert len(node.told.turns) == 1


async def test_a_quarantine_is_told() -> None:
    async with scripted_node(max_runtimes=5) as node:
        await node.open("a")
        run = await node.send("a", "too much")
        for _ in range(2):
            await settle()
            node.runtime.kill("no memory", Death.MEMORY)
        await run.wait()
        await settle()
        assert node.told.events.count("session_quarantined") == 1
        assert node.told.turns[0].code == "turn_interrupted"
