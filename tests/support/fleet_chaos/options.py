"""How long, how many, and how fast the coordination of the fleet is."""

from __future__ import annotations

import argparse
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

#: Of `coordination`, in seconds: short, so that a run sees many nodes die.
HEARTBEAT, TTL = 0.2, 2.0
#: The coordination and the state store are waited for as long as a restart here can take.
STORE_PATIENCE = 15.0
#: Seconds that one prompt may take from its first try to its outcome, over all faults that meet it.
PATIENCE = 120.0
NODES = ("a", "b", "c")


@dataclass(frozen=True, slots=True)
class Options:
    users: int = 24
    #: Length of the time of trouble.
    seconds: float = 180.0
    #: End it earlier, after so many turns.
    turns: int | None = None
    #: Between the beginnings of two faults, about.
    pause: float = 8.0
    #: Seconds that a user lets pass before the next prompt, in the mean.
    think: float = 0.15
    seed: int = field(default_factory=lambda: random.randrange(1 << 32))
    #: Where logs and configuration go.
    directory: Path | None = None

    def chance(self, name: str) -> random.Random:
        """A source of chance of its own for each part, so that one does not shift what another draws."""
        return random.Random(f"{self.seed}:{name}")


def arguments() -> argparse.Namespace:
    """Of `make chaos`, which are in the environment, and of the program."""
    default = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m support.fleet_chaos", description="A fleet under trouble.")
    parser.add_argument("--seed", type=int, default=default("SEED"), help="of users and faults; drawn by default")
    parser.add_argument("--users", type=int, default=default("USERS", "24"))
    parser.add_argument("--minutes", type=float, default=default("MINUTES", "3"), help="of trouble")
    parser.add_argument("--turns", type=int, default=default("TURNS"), help="end after so many")
    parser.add_argument("--pause", type=float, default=default("PAUSE", "8"), help="seconds between two faults, about")
    # Without that, two dozen users keep two cores busy, and what is measured is how long a turn waits for them.
    parser.add_argument("--think", type=float, default=default("THINK", "2"), help="seconds between a user's prompts")
    parser.add_argument("--json", default=default("JSON"), help="file for what was measured")
    return parser.parse_args()
