"""One Copilot CLI for each user: the strongest isolation.

    python examples/one_cli_per_user.py

Runs against a scripted model; `common.py` says how to use a real one.
"""

from __future__ import annotations

import asyncio

from aerodrome import Fleet
from common import ask, example_settings


async def main() -> None:
    # A user's process is claimed when the user comes, and ends when the last session in it has been idle for this long:
    # there are never more than for those who are at work. (The default is half an hour.)
    with example_settings(isolation={"default": "user"}, sessions={"idle_timeout": "2s"}) as settings:
        async with Fleet(settings, tenant="acme") as fleet:
            sessions, first = {}, {}
            for user, name in (("alice", "Ada"), ("bob", "Bob")):
                client = await fleet.client(user=user)
                sessions[user] = await client.create_session(session_id=f"{user}-chat")
                print(f"{user}: {await ask(sessions[user], f'My name is {name}')}")
                first[user] = (await processes(fleet))[user]
            print("processes:", ", ".join(f"{user} has {pid}" for user, pid in first.items()))
            assert first["alice"] != first["bob"], "nobody shares a process"

            while "alice" in await processes(fleet):
                await asyncio.sleep(0.1)
            print("alice was away for a while: her process has ended")

            # The same session object. What she said is stored, so any process can go on from there.
            print(f"alice: {await ask(sessions['alice'], 'What is my name?')}")
            print(f"in another process: {(await processes(fleet))['alice'] != first['alice']}")


async def processes(fleet: Fleet) -> dict[str, int]:
    return {runtime["user"]: runtime["pid"] for runtime in await fleet.runtimes() if runtime["user"]}


if __name__ == "__main__":
    asyncio.run(main())
