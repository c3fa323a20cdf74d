"""Team chat: several users in one session, each with the client of their choice.

    python examples/team_chat.py

Runs against a scripted model; `common.py` says how to use a real one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx

from aerodrome import Fleet
from common import ask, example_settings

CHAT = "/sessions/team/messages"


async def main() -> None:
    # The SDK logs the errors that it raises. Here they are what we want to see.
    logging.getLogger("copilot").setLevel(logging.CRITICAL)
    with example_settings() as settings:
        async with Fleet(settings, http=True) as fleet, page_of(fleet, "alice") as page, page_of(fleet, "bob") as bob:
            # Alice opens the session with the SDK, and shares it over HTTP.
            alice = await (await fleet.client(user="alice")).create_session(session_id="team")
            for user, role in (("bob", "writer"), ("carol", "reader")):
                await page.put(f"/sessions/team/members/{user}", json={"role": role})

            # Carol follows with an SDK of her own: whatever anybody says, she sees.
            seen: asyncio.Queue[str] = asyncio.Queue()
            carol = await fleet.client(user="carol")
            reading = await carol.resume_session("team", on_event=lambda event: note(event, seen))

            print(f"alice, by SDK: {await ask(alice, 'My name is Ada')}")
            print(f"bob, by HTTP: {await say(bob, 'What is my name?')}")
            print("carol has seen:", [await seen.get() for _ in range(2)])
            try:
                await reading.send("May I say something?")
            except Exception as error:
                print(f"carol may not write: {error}")

            # One queue for all. Who does not want to wait is told for whom it would have been.
            await alice.send("[[delay: 10m]] Write a novel")
            busy = (await bob.post(CHAT, json={"prompt": "Quick!", "on_busy": "reject"})).json()
            print(f"bob, who cannot wait: {busy['code']}, a turn of {busy['author']} is running")
            queued = asyncio.create_task(say(bob, "[[say: Thank you.]] I can wait"))
            await seen.get()  # it has begun
            await page.post("/sessions/team/abort")
            print(f"bob, who can: {await queued}")

            # Access ends at once, also for who is connected.
            await page.delete("/sessions/team/members/carol")
            print(f"carol sees {[session.session_id for session in await carol.list_sessions()]}")

            # Who said what is kept with the session.
            for message in (await page.get(CHAT)).json()["messages"]:
                print(f"  {message.get('author', 'copilot')}: {message['content']}")


def page_of(fleet: Fleet, user: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {fleet.credential(user)}"}
    return httpx.AsyncClient(base_url=f"{fleet.http_url}/api/v1", headers=headers, timeout=300)


def note(event: Any, seen: asyncio.Queue[str]) -> None:
    if event.type.value == "user.message":
        seen.put_nowait(event.data.content)


async def say(page: httpx.AsyncClient, prompt: str) -> str:
    return str((await page.post(CHAT, json={"prompt": prompt})).json()["message"]["content"])


if __name__ == "__main__":
    asyncio.run(main())
