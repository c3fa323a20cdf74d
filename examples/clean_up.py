"""Old sessions are deleted by themselves: no cron job, and nothing that is in use.

    python examples/clean_up.py

Runs against a scripted model; `common.py` says how to use a real one.
"""

from __future__ import annotations

import asyncio

from aerodrome import Fleet
from common import ask, example_settings


async def main() -> None:
    # Seconds, to see it happen; the defaults are 30 minutes and 30 days. Sessions that are idle are unloaded first.
    with example_settings(sessions={"idle_timeout": "2s", "ttl": "15s"}) as settings:
        async with Fleet(settings) as fleet:
            client = await fleet.client(user="alice")
            sessions = {name: await client.create_session(session_id=name) for name in ("daily", "forgotten")}
            await asyncio.gather(*(ask(session, "My name is Ada") for session in sessions.values()))
            print("stored:", await stored(fleet))

            # Both were made at the same time. It is the last *use* that counts, so the one in daily use stays.
            while "forgotten" in await stored(fleet):
                await ask(sessions["daily"], "What is my name?")
                await asyncio.sleep(0.5)
            print("stored:", await stored(fleet))
            print(f"daily, older than that: {await ask(sessions['daily'], 'What is my name?')}")

            # Deleted means that nothing is left: no file, no row, no lock. Its name is free, and has no history.
            again = await client.create_session(session_id="forgotten")
            print(f"forgotten, anew: {await ask(again, 'What is my name?')}")


async def stored(fleet: Fleet) -> list[str]:
    return sorted(session["id"] for session in await fleet.sessions())


if __name__ == "__main__":
    asyncio.run(main())
