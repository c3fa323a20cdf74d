"""Several callers, one session: what happens to a prompt that comes while a turn is running.

    python examples/concurrent_access.py

Runs against a scripted model; `common.py` says how to use a real one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from aerodrome import Fleet
from common import example_settings


async def main() -> None:
    with example_settings() as settings:
        async with Fleet(settings, http=True) as fleet:
            # One user at two devices: a program with the SDK, and a page that speaks HTTP.
            session = await (await fleet.client(user="alice")).create_session(session_id="shared")
            await session.send("[[delay: 10m]] Write a novel")
            print("the program has asked for a novel, and the model is at work")

            headers = {"Authorization": f"Bearer {fleet.credential('alice')}"}
            async with httpx.AsyncClient(base_url=f"{fleet.http_url}/api/v1", headers=headers, timeout=300) as page:
                # No lock is needed, and none can run out: a session runs one turn at a time, whoever asks.
                refused = await say(page, "Are you busy?", on_busy="reject")
                print(f"reject: {refused.status_code} {refused.json()['code']}")

                queued = asyncio.create_task(say(page, "My name is Ada", on_busy="enqueue"))
                # Ends the turn that runs, and comes before what is queued.
                stopped = await say(page, "[[say: Stopped.]] Never mind the novel.", on_busy="interrupt")
                print(f"interrupt: {stopped.json()['message']['content']}")
                print(f"enqueue: {(await queued).json()['message']['content']}")

                history = (await page.get("/sessions/shared/messages")).json()["messages"]
                print("in order:", [message["content"] for message in history])


async def say(page: httpx.AsyncClient, prompt: str, **options: Any) -> httpx.Response:
    return await page.post("/sessions/shared/messages", json={"prompt": prompt, **options})


if __name__ == "__main__":
    asyncio.run(main())
