"""A prompt and the lease of its session, where there are other nodes."""

from __future__ import annotations

import asyncio

from aerodrome.model import TurnStatus
from support.scripted_node import ScriptedNode, scripted_node, settle


def among_others(node: ScriptedNode) -> None:
    object.__setattr__(node.context, "alone", lambda: False)


async def test_a_session_stays_where_it_was_loaded_for_a_prompt_until_that_is_in_its_queue() -> None:
    async with scripted_node(max_sessions=1, max_runtimes=1) as a, scripted_node(a.stores, name="b") as b:
        among_others(a)
        await a.open("s1")
        await a.open("s2")
        a.pool.answer_by_themselves()
        b.pool.answer_by_themselves()
        a.stores.slow_ledger.held.add("by_idempotency_key")
        sending = asyncio.create_task(a.send("s1", "one", idempotency_key="k"))
        await settle()
        assert a.resident == 1
        # Somebody needs its place, and another node is asked for it.
        other = asyncio.create_task(a.send("s2", "two"))
        await settle()
        elsewhere = await b.send("s1", "three")
        await settle()
        a.stores.slow_ledger.let_go("by_idempotency_key")
        assert (await (await sending).wait()).status is TurnStatus.COMPLETED
        assert (await elsewhere.wait()).status is TurnStatus.FAILED  # busy here
        await (await other).over()
