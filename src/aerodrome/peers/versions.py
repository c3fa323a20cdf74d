"""Which releases may run side by side on the same stores. Pure.

A release gets along with the one before it and the one after it: that is what a fleet that is replaced node by node
needs. "One before" is one step of the second number while the first is 0, and of the first number from then on; within
such a step all get along. What the stored tables are to a release is another question (`_util.migrations`).
"""

from __future__ import annotations

import re


def step(version: str) -> tuple[int, int] | None:
    """The step that a release belongs to: `(0, 2)` for 0.2.5, `(3, 0)` for 3.1. ``None``: it is no version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return None
    major, minor = int(found[1]), int(found[2])
    return (major, minor if major == 0 else 0)


def side_by_side(own: str, other: str) -> bool:
    """Whether nodes of the two releases may run at the same time. Of what is no version nothing is known: yes."""
    mine, theirs = step(own), step(other)
    if mine is None or theirs is None or mine == theirs:
        return True
    if mine[0] == theirs[0] == 0:
        return abs(mine[1] - theirs[1]) == 1
    # From the last 0.x to 1.0 is one step, which 0.x that is it nobody here can know.
    return abs(mine[0] - theirs[0]) == 1


def refusal(own: str, others: dict[str, str]) -> str | None:
    """Why a node of this release may not start beside these (name -> release), and what to do; ``None``: it may."""
    odd = {name: version for name, version in sorted(others.items()) if not side_by_side(own, version)}
    if not odd:
        return None
    listed = ", ".join(f"{name} runs {version}" for name, version in odd.items())
    drains = " and ".join(f"`aerodrome nodes drain {name} --wait`" for name in odd)
    return (
        f"this is Aerodrome {own}, and {listed}: more than one release lies between, and they do not understand each "
        f"other. Start a release in between (docs/upgrades.md), or end the other nodes first: {drains}"
    )
