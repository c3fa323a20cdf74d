from __future__ import annotations

import asyncio
import json

import pytest

from aerodrome.coordination.backends.subscription import Subscription, text_of
from aerodrome.coordination.ports import ClusterEvent

EVENT = ClusterEvent("lease", "acme/s1", "a-1")


@pytest.mark.parametrize("text", ["", "{", "5", "null", '["lease", "acme/s1"]', '["a", "b", "c", "d"]', b"\xff"])
async def test_what_is_no_event_of_ours_ends_no_listening(text: str | bytes) -> None:
    heard: list[ClusterEvent] = []
    told = asyncio.Event()

    async def listen() -> None:
        subscription.began()
        subscription.heard(text)
        subscription.heard(text_of(EVENT))
        told.set()
        await asyncio.Event().wait()

    subscription = Subscription("test", listen, lambda error: None)
    stop = subscription.add(heard.append)
    async with asyncio.timeout(5):
        await told.wait()
    stop()
    await subscription.aclose()
    assert heard == [EVENT]
    assert json.loads(text_of(EVENT)) == ["lease", "acme/s1", "a-1"]
