"""One Copilot CLI for all users of a tenant, with a session for each: the cheapest isolation.

    python examples/shared_cli.py

Runs against a scripted model; `common.py` says how to use a real one.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aerodrome import Fleet
from common import ask, example_settings

PEOPLE = {"alice": "Ada", "bob": "Bob", "carol": "Cleo"}


async def main() -> None:
    # A session costs a few megabytes, a process a few hundred. No process ever serves two tenants.
    with example_settings(isolation={"default": "tenant"}) as settings:
        async with Fleet(settings) as fleet:
            clients = {user: await fleet.client(user=user, tenant="acme") for user in PEOPLE}
            # All at once: the first request starts a process, the others wait for that one and start none.
            sessions = dict(
                zip(PEOPLE, await asyncio.gather(*(open_chat(clients[user], user) for user in PEOPLE)), strict=True)
            )
            for user, name in PEOPLE.items():
                await ask(sessions[user], f"My name is {name}")
            for user in PEOPLE:
                print(f"{user}: {await ask(sessions[user], 'What is my name?')}")

            [process] = [runtime for runtime in await fleet.runtimes() if runtime["tenant"] == "acme"]
            print(f"acme has one process with {process['sessions']} sessions")

            # Connected to the CLI itself, everybody would see, and might resume, everybody's sessions.
            for user, client in clients.items():
                print(f"{user} sees {[session.session_id for session in await client.list_sessions()]}")


async def open_chat(client: Any, user: str) -> Any:
    return await client.create_session(session_id=f"{user}-chat")


if __name__ == "__main__":
    asyncio.run(main())
