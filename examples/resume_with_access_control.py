"""Resume a session, if it is yours.

    python examples/resume_with_access_control.py

Runs against a scripted model; `common.py` says how to use a real one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from aerodrome import Fleet
from common import ask, example_settings

#: Two users of one tenant. A host that reads the owner out of the id takes this session for one of `alice`.
OWNER, OTHER, SESSION = "alice-bob", "alice", "alice-bob-1"


async def main() -> None:
    # The SDK logs the errors that it raises. Here they are what we want to see.
    logging.getLogger("copilot").setLevel(logging.CRITICAL)
    with example_settings() as settings:
        async with Fleet(settings, tenant="acme") as fleet:
            client = await fleet.client(user=OWNER)
            print(f"{OWNER}: {await ask(await client.create_session(session_id=SESSION), 'My name is Ada')}")

        # Later, and perhaps in another process of yours: the same settings find the same sessions.
        async with Fleet(settings, tenant="acme") as fleet:
            # Who owns a session is a row in a database, written when it was made and read on every access.
            other = await fleet.client(user=OTHER)
            await refused(f"{OTHER} resumes {SESSION}", other.resume_session(SESSION))
            # Exactly what is said of a session that does not exist: that there is one is the owner's secret.
            await refused(f"{OTHER} resumes no-such-session", other.resume_session("no-such-session"))
            await refused(f"{OTHER} creates {SESSION}", other.create_session(session_id=SESSION))
            print(f"{OTHER} sees {[session.session_id for session in await other.list_sessions()]}")
            # Names are unique in a tenant only: the same user name in another tenant is somebody else.
            stranger = await fleet.client(user=OWNER, tenant="bank")
            await refused(f"{OWNER} of another tenant resumes {SESSION}", stranger.resume_session(SESSION))

            owner = await fleet.client(user=OWNER)
            session = await owner.resume_session(SESSION)
            print(f"{OWNER} resumes {SESSION}: {await ask(session, 'What is my name?')}")


async def refused(what: str, attempt: Awaitable[object]) -> None:
    try:
        await attempt
    except Exception as error:
        print(f"{what}: {str(error).partition('message: ')[2] or error}")
    else:
        raise AssertionError(f"{what}: nobody stopped it")


if __name__ == "__main__":
    asyncio.run(main())
