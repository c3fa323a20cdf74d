"""What a benchmark reports: rows, each one number with what it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

from aerodrome.bench.stats import percentile, ratio_interval


class Verdict(StrEnum):
    MET = "met"
    MISSED = "missed"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    benchmark: str
    what: str
    #: ``None``: could not be measured here, and `note` says why.
    value: float | None
    #: "x" for a ratio, else what the value counts, such as "MB".
    unit: str = "x"
    #: The value shall not be over it, or under it with `at_least`; ``None``: reported for information.
    target: float | None = None
    #: 95 % interval of the value, where it is a ratio of medians.
    interval: tuple[float, float] | None = None
    #: The numbers behind the value, by name; the name ends with the unit.
    measured: Mapping[str, float] = field(default_factory=dict)
    #: Of this value more is better.
    at_least: bool = False
    #: What to know before believing the value.
    note: str = ""

    @property
    def verdict(self) -> Verdict | None:
        if self.target is None or self.value is None:
            return None
        met = self.value >= self.target if self.at_least else self.value <= self.target
        return Verdict.MET if met else Verdict.MISSED

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "interval": self.interval,
            "target": self.target,
            "at_least": self.at_least,
            "verdict": self.verdict,
            "measured": dict(self.measured),
            "note": self.note,
        }


def compare(
    benchmark: str,
    what: str,
    names: tuple[str, str],
    times: Mapping[str, Sequence[float]],
    *,
    target: float | None = None,
) -> Row:
    """The ratio of two medians as a row.

    Args:
        names: The one and the other it is divided by, as keys of `times`.
        times: Seconds.
    """
    one, other = (times[name] for name in names)
    measured: dict[str, float] = {}
    for name in names:
        measured[f"{name}_p50_ms"] = median(times[name]) * 1e3
        measured[f"{name}_p95_ms"] = percentile(times[name], 95) * 1e3
    return Row(
        benchmark,
        what,
        median(one) / median(other),
        target=target,
        interval=ratio_interval(one, other),
        measured={**measured, "samples": len(one)},
    )


def skipped(benchmark: str, what: str, why: str) -> Row:
    return Row(benchmark, what, None, note=f"skipped: {why}")


def missed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.verdict is Verdict.MISSED]
