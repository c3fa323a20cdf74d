"""The official Node SDK, in a process of its own (node/client.mjs), installed when it is first needed.

The version is that of the lock beside the script. npm puts it into the user's cache, from the registry of npm's own
configuration; without the optional packages, which are the CLI for each platform, and without running their scripts.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aerodrome._util.xdg import aerodrome_cache
from aerodrome.bench.children import Child, child
from aerodrome.bench.lab import MODEL
from aerodrome.bench.sdk import Endpoint
from aerodrome.errors import Invalid

_SOURCE = Path(__file__).parent / "node"
_INSTALL = ("ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund")
_INSTALL_TIMEOUT = 300.0


@asynccontextmanager
async def clients() -> AsyncIterator[NodeClients]:
    """Raises `Invalid`, with the reason, when there is no Node SDK to be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Invalid("it needs Node.js with npm")
    directory = await asyncio.to_thread(_install, npm)
    async with child(node, str(directory / "client.mjs")) as process:
        yield NodeClients(process)


class NodeClients:
    """One process, with a client of each name."""

    def __init__(self, process: Child) -> None:
        self._process = process

    async def open(self, name: str, endpoint: Endpoint) -> None:
        command: dict[str, Any] = {"do": "open", "name": name, "model": MODEL, "tools": endpoint.tools}
        if endpoint.model_url is not None:
            command["provider"] = {"type": "openai", "baseUrl": endpoint.model_url, "apiKey": "bench"}
        await self._process.ask(address=endpoint.address, token=endpoint.token, **command)

    async def create(self, name: str) -> None:
        await self._process.ask(do="create", name=name)

    async def forget(self, name: str) -> None:
        await self._process.ask(do="forget", name=name)

    async def turn(self, name: str, prompt: str) -> None:
        await self._process.ask(do="turn", name=name, prompt=prompt)


def _install(npm: str) -> Path:
    """The directory with the script and the packages that it imports."""
    files = [path for path in sorted(_SOURCE.iterdir()) if path.is_file()]
    version = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]
    directory = aerodrome_cache() / "bench" / f"node-sdk-{version}"
    directory.mkdir(parents=True, exist_ok=True)
    done = directory / "installed"
    with (directory / "lock").open("w") as lock:
        # Another benchmark may be installing.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            for path in files:
                shutil.copy(path, directory)
            try:
                subprocess.run(
                    [npm, *_INSTALL],
                    cwd=directory,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=_INSTALL_TIMEOUT,
                )
            except subprocess.CalledProcessError as error:
                raise Invalid(f"npm could not install it: {str(error.stderr).strip()[-300:]}") from error
            except subprocess.TimeoutExpired as error:
                raise Invalid(f"npm did not install it within {_INSTALL_TIMEOUT:g} s") from error
            done.touch()
    return directory
