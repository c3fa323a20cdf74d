"""A cap on loaded sessions: the least recently used one makes room, and comes back when it is needed.

    python examples/session_cap.py

Runs against a scripted model; `common.py` says how to use a real one.
"""

from __future__ import annotations

import asyncio

from aerodrome import Fleet
from common import ask, example_settings


async def main() -> None:
    # A small cap, to see what it does. It counts for each process, as their memory and their pace do.
    with example_settings(runtime={"max_sessions": 2}) as settings:
        async with Fleet(settings) as fleet:
            client = await fleet.client(user="alice")
            first = await client.create_session(session_id="first")
            await ask(first, "My name is Ada")
            second = await client.create_session(session_id="second")
            await ask(second, "My name is Bob")
            # The oldest is now the one used last, so it is not the one to go.
            await ask(first, "What is my name?")
            await show(fleet, "two sessions fit")

            # A place is reserved before the session is loaded, so that many that come at once do not exceed the cap.
            third = await client.create_session(session_id="third")
            await ask(third, "My name is Cleo")
            await show(fleet, "a third one came")

            # Hibernated is not closed: the same object goes on working, and waking takes some ten milliseconds.
            print(f"second: {await ask(second, 'What is my name?')}")
            await show(fleet, "the second one was needed again")


async def show(fleet: Fleet, what: str) -> None:
    states = {session["id"]: str(session["state"]) for session in await fleet.sessions()}
    print(f"{what}:", ", ".join(f"{name} {states[name]}" for name in ("first", "second", "third") if name in states))


if __name__ == "__main__":
    asyncio.run(main())
