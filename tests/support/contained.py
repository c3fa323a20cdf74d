"""Nodes that are started by a command around them, which takes rights or places from them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import httpx

from aerodrome._util.xdg import aerodrome_cache, runtime_packages
from aerodrome.runtime.binary import resolve
from support.nodes import eventually


def unpack() -> None:
    """As the image does while it is made, should nothing have unpacked the CLI on this machine yet."""
    packages = {"COPILOT_PKG_CACHE_HOME": str(runtime_packages()), "COPILOT_OFFLINE": "true"}
    quiet = {"COPILOT_AUTO_UPDATE": "false", "COPILOT_DISABLE_KEYTAR": "1"}
    subprocess.run([resolve("auto").path, "--version"], check=True, env={**os.environ, **packages, **quiet})


async def takes_a_turn(command: Sequence[str], log: Path, key: str, **env: str) -> None:
    """Start the node, see it take a turn for the holder of the key, and end it."""
    inside = {**os.environ, "AERODROME_CACHE_DIR": str(aerodrome_cache()), **env}
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=stderr, env=inside, cwd="/"
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("ready "), log.read_text()[-2000:]
        url = "http://" + line.split()[1].removeprefix("http=")
        async with httpx.AsyncClient(timeout=60, headers={"Authorization": f"Bearer {key}"}) as client:

            async def ready() -> bool:
                return (await client.get(f"{url}/ready")).status_code == 200

            await eventually(ready, 60)
            answer = await client.post(f"{url}/api/v1/ask", json={"prompt": "[[say: here]]"})
            assert answer.json()["message"]["content"] == "here", answer.text
    finally:
        process.kill()
        await process.wait()
