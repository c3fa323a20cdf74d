"""Who follows a page: an environment in which Aerodrome is installed and nothing else has been done."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from aerodrome._util.xdg import aerodrome_cache


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def reader_of(home: Path) -> dict[str, str]:
    """The environment of somebody who has installed Aerodrome and done nothing else."""
    kept = ("TERM", "NPM_CONFIG_REGISTRY", "npm_config_registry")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NO_PROXY": "127.0.0.1",
        # The installed Copilot CLI: 200 MB that need not come anew for each page.
        "AERODROME_CACHE_DIR": str(aerodrome_cache()),
    }
