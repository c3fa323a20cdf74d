"""`make chaos`."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from support.fleet_chaos.options import Options, arguments
from support.fleet_chaos.report import table, too_slow
from support.fleet_chaos.run import chaos


def main() -> int:
    options = arguments()
    logging.getLogger("copilot").setLevel(logging.CRITICAL)
    given = Options(options.users, options.minutes * 60, options.turns, options.pause, options.think)
    if options.seed is not None:
        given = replace(given, seed=options.seed)
    directory = Path(tempfile.mkdtemp(prefix="aerodrome-chaos-"))
    print(f"seed {given.seed}, {given.users} users, {given.seconds:g} s of trouble, logs in {directory}", flush=True)
    result = asyncio.run(chaos(given, directory))
    (directory / "chaos.log").write_text("\n".join(result.log) + "\n")
    if result.measured:
        print(table(result.measured))
        for prompt in result.measured["in_the_history_unexpectedly"]:
            print(f"in the history: {prompt}")
        if (slow := too_slow(result.measured)) is not None:
            result.wrong.append(slow)
        if options.json:
            Path(options.json).write_text(json.dumps({**result.measured, "wrong": result.wrong}, indent=2) + "\n")
    for wrong in result.wrong:
        print(f"WRONG: {wrong}", file=sys.stderr)
    said = f"failed; see {directory}" if result.wrong else "every history is as told, and recovery is fast enough"
    print(f"seed {given.seed}: {said}")
    return bool(result.wrong)


if __name__ == "__main__":
    sys.exit(main())
