"""Who follows a page: an environment in which Aerodrome is installed and nothing else has been done."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from aerodrome._util.xdg import aerodrome_cache


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
