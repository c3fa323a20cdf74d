"""A process with runtimes, to be killed: `pool_process.py HOMES LOGS COMMAND ENV_JSON COUNT` prints their pids."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from aerodrome._util.xdg import runtime_packages
from aerodrome.model import RuntimeKey
from aerodrome.runtime.homes import Homes
from aerodrome.runtime.launchers.process import ProcessLauncher
from aerodrome.runtime.pool import PoolOptions, RuntimePool
from aerodrome.runtime.supervisor import RuntimeOptions


async def main(homes: str, logs: str, command: str, env: str, count: str) -> None:
    with Homes(Path(homes)) as part:
        runtime = RuntimeOptions(command=Path(command), homes=part.path, logs=Path(logs), env=json.loads(env))
        pool = RuntimePool(PoolOptions(runtime=runtime, warm=0), ProcessLauncher(runtime_packages()))
        await pool.start()
        keys = [RuntimeKey("acme", f"user{n}") for n in range(int(count))]
        reserved = await asyncio.gather(*(pool.reserve(key) for key in keys))
        print("pids", *(runtime.pid for runtime in reserved), flush=True)
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
