"""A process of ours that has stood still, as a paused or overloaded machine makes it, blames nobody else for that."""

from __future__ import annotations

import asyncio

import pytest

from support.loop_clock import loop_clock
from support.peer import Owner, linked


@pytest.mark.parametrize("answered", [True, False])
async def test_an_answer_that_came_while_we_stood_still_came_in_time(answered: bool) -> None:
    """A ping's, say: its runtime would be killed, with the turns in it, for what was no fault of it."""
    async with linked(Owner()) as (link, peer):
        with loop_clock() as clock:
            asking = asyncio.create_task(link.request("ping", {}, timeout=5))
            request = await peer.receive()
            if answered:
                peer.answer(request, "pong")
            # Nothing is read meanwhile, and when we go on the time is over.
            clock.advance(60)
            if answered:
                assert await asking == "pong"
                return
            for _ in range(10):
                await asyncio.sleep(0)
            assert not asking.done()
            clock.advance(1)
            with pytest.raises(TimeoutError):
                await asking
