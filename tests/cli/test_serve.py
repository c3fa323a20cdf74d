"""What signals do to `aerodrome serve` while it starts and while it drains, with nothing behind it."""

from __future__ import annotations

import asyncio
import sys

_PROGRAM = """
import asyncio, os, signal
from aerodrome._util.systemd import Notifier
from aerodrome.app import node
from aerodrome.cli import serve
from aerodrome.cli.reload import Reload
from aerodrome.config import settings_of

class Node:
    http_address = gateway_address = ("127.0.0.1", 1)

    def __init__(self, settings, listeners):
        self.asked_to_drain = asyncio.Event()
        self.reloaded = 0

    def abort(self):
        pass

    async def __aenter__(self):
        await self.hung_up()
        return self

    async def reload(self, settings):
        self.reloaded += 1
        os.kill(os.getpid(), signal.SIGTERM)

    async def __aexit__(self, *_):
        await self.hung_up()
        print("reloaded", self.reloaded, flush=True)

    async def hung_up(self):
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(20):
            await asyncio.sleep(0)

node.Node = Node
settings = settings_of({"provider": {"type": "openai", "base_url": "http://127.0.0.1:9", "model": "m"}})
asyncio.run(serve._run(settings, Reload(None, lambda: settings), {}, Notifier({})))
"""


async def test_to_hang_up_ends_no_server_that_starts_or_drains() -> None:
    """By itself the signal would: the turns that a drain lets finish would be lost."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    # The one that came while it started counts once it runs.
    assert out.decode().splitlines()[-1] == "reloaded 1"
