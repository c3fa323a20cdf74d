"""``python -m support.outside ROOT TOOL ARGUMENTS...``"""

from __future__ import annotations

import sys
from pathlib import Path

from support.outside.world import Refused, World


def main(root: str, tool: str, *arguments: str) -> int:
    # Late, and only one: each is a start of a program.
    if tool in ("docker", "az"):
        from support.outside import containers as module
    elif tool in ("helm", "kubectl"):
        from support.outside import kubernetes as module  # type: ignore[no-redef]
    elif tool in ("aerodrome", "lint_imports", "pytest", "venv_python"):
        from support.outside import clone as module  # type: ignore[no-redef]
    elif tool == "systemctl":
        from support.outside import systemd as module  # type: ignore[no-redef]
    else:
        from support.outside import machine as module  # type: ignore[no-redef]
    world = World(Path(root))
    try:
        return int(getattr(module, tool)(world, list(arguments)) or 0)
    except Refused as refused:
        print(f"{tool}: {refused}", file=sys.stderr)
        return 1
    finally:
        world.save()


sys.exit(main(*sys.argv[1:]))
