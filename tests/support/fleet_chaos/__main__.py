"""`make chaos`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

from support.fleet_chaos.options import Options
from support.fleet_chaos.report import table
from support.fleet_chaos.run import chaos


def main() -> int:
    options = _arguments()
    logging.getLogger("copilot").setLevel(logging.CRITICAL)
    given = Options(users=options.users, seconds=options.minutes * 60, turns=options.turns, pause=options.pause)
    if options.seed is not None:
        given = Options(given.users, given.seconds, given.turns, given.pause, options.seed)
    directory = Path(tempfile.mkdtemp(prefix="aerodrome-chaos-"))
    print(f"seed {given.seed}, {given.users} users, {given.seconds:g} s of trouble, logs in {directory}", flush=True)
    result = asyncio.run(chaos(given, directory))
    (directory / "chaos.log").write_text("\n".join(result.log) + "\n")
    if result.measured:
        print(table(result.measured))
        if options.json:
            Path(options.json).write_text(json.dumps({**result.measured, "wrong": result.wrong}, indent=2) + "\n")
    for wrong in result.wrong:
        print(f"WRONG: {wrong}", file=sys.stderr)
    print(f"seed {given.seed}: {'failed; see ' + str(directory) if result.wrong else 'every history is as told'}")
    return bool(result.wrong)


def _arguments() -> argparse.Namespace:
    default = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m support.fleet_chaos", description="A fleet under trouble.")
    parser.add_argument("--seed", type=int, default=default("SEED"), help="of users and faults; drawn by default")
    parser.add_argument("--users", type=int, default=default("USERS", "24"))
    parser.add_argument("--minutes", type=float, default=default("MINUTES", "3"), help="of trouble")
    parser.add_argument("--turns", type=int, default=default("TURNS"), help="end after so many")
    parser.add_argument("--pause", type=float, default=default("PAUSE", "8"), help="seconds between two faults, about")
    parser.add_argument("--json", default=default("JSON"), help="file for what was measured")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
