"""Ephemeral and persistent sessions behind HTTP.

    python examples/http_endpoints.py

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
        # The HTTP API is off unless asked for. A service of its own is `aerodrome serve`.
        async with Fleet(settings, tenant="acme", http=True) as fleet, api_of(fleet, "alice") as api:
            await ephemeral(api)
            await persistent(api)


def api_of(fleet: Fleet, user: str) -> httpx.AsyncClient:
    # Good as long as this fleet runs, and stored nowhere. Keys that last are issued by `aerodrome keys create`.
    headers = {"Authorization": f"Bearer {fleet.credential(user)}"}
    # A turn may take minutes.
    return httpx.AsyncClient(base_url=f"{fleet.http_url}/api/v1", headers=headers, timeout=300)


async def ephemeral(api: httpx.AsyncClient) -> None:
    """One question, one answer. The session is deleted with its turn, also when the client goes away or the turn fails;
    code that creates, asks and deletes has to get all of that right by itself.
    """
    answer = checked(await api.post("/ask", json={"prompt": "[[say: Titan]] Name the largest moon of Saturn."}))
    print("ephemeral:", answer["message"]["content"])
    print("what remains:", checked(await api.get("/sessions"))["sessions"])


async def persistent(api: httpx.AsyncClient) -> None:
    """A conversation under an id of your choice. To open is to create or to resume, whichever is right, so that a
    repeated request is harmless; and of two that come at once, one creates it.
    """
    opened = [await api.post("/sessions", json={"id": "support-42"}) for _ in range(2)]
    print("persistent: opened with", [response.status_code for response in opened])
    for prompt in ("My name is Ada", "What is my name?"):
        answer = checked(await api.post("/sessions/support-42/messages", json={"prompt": prompt}))
        print(f"{prompt} -> {answer['message']['content']}")
    history = checked(await api.get("/sessions/support-42/messages"))["messages"]
    print("what remains:", [message["content"] for message in history])
    print("deleted:", (await api.delete("/sessions/support-42")).status_code)


def checked(response: httpx.Response) -> dict[str, Any]:
    response.raise_for_status()
    return dict(response.json())


if __name__ == "__main__":
    asyncio.run(main())
