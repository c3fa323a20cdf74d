"""What a run has measured, as a table and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from support.fleet_chaos.options import TTL, Options
from support.fleet_chaos.transcript import Outcome, Transcript

#: A session of a node that was killed is served again within this time, in 95 of 100 cases.
TARGET = TTL + 2.0


def measure(options: Options, transcript: Transcript, seconds: float, ledger: dict[str, int]) -> dict[str, Any]:
    """Args:
    seconds: How long the trouble lasted.
    ledger: Turns by their status in the ledger, and those that were retried.
    """
    recoveries = list(transcript.recoveries())
    outcomes = {str(outcome): sum(p.outcome is outcome for p in transcript.prompts) for outcome in Outcome}
    return {
        "seed": options.seed,
        "users": options.users,
        "seconds": round(seconds, 1),
        "prompts": outcomes,
        "ledger": ledger,
        "in_the_history_unexpectedly": list(transcript.unexpected),
        "counts": dict(sorted(transcript.counts.items())),
        "turn_seconds": _spread([p.ended - p.began for p in transcript.prompts if p.ended is not None]),
        "recovery_target_seconds": TARGET,
        "recovery_seconds": _spread([taken for taken, _ in recoveries]),
        "recovery_seconds_without_other_faults": _spread([taken for taken, alone in recoveries if alone]),
    }


def too_slow(measured: dict[str, Any]) -> str | None:
    """Whether the target of the recovery is missed, in words.

    Only recoveries count in which nothing else was broken: a session is not served while its store is away.
    """
    p95 = measured["recovery_seconds_without_other_faults"].get("p95")
    if p95 is None or p95 <= measured["recovery_target_seconds"]:
        return None
    return f"recovery took {p95:g} s (p95), over the target of {measured['recovery_target_seconds']:g} s"


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"count": 0}
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "median": round(statistics.median(ordered), 2),
        "p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 2),
        "max": round(ordered[-1], 2),
    }


def table(measured: dict[str, Any]) -> str:
    rows = [("seed", measured["seed"]), ("users", measured["users"]), ("seconds of trouble", measured["seconds"])]
    rows += [(f"prompts {name}", count) for name, count in measured["prompts"].items() if count]
    rows += [(f"turns {name}", count) for name, count in measured["ledger"].items()]
    rows += list(measured["counts"].items())
    rows.append(("in the history unexpectedly", len(measured["in_the_history_unexpectedly"])))
    for name in ("turn_seconds", "recovery_seconds", "recovery_seconds_without_other_faults"):
        spread = measured[name]
        said = ", ".join(f"{key} {value:g}" for key, value in spread.items())
        rows.append((name.replace("_", " "), said))
    rows.append(("recovery target, p95 without other faults", f"{measured['recovery_target_seconds']:g}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)
