"""`aerodrome bench`: measure this machine, with real Copilot CLI processes and a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from aerodrome.cli.console import complain, err, note, print_json, print_table
from aerodrome.cli.options import JsonOption

if TYPE_CHECKING:
    from aerodrome.bench.report import Row
    from aerodrome.bench.run import Watcher

_UNITS = {"ms": "ms", "mb": "MB"}


class Name(StrEnum):
    """The benchmarks; `aerodrome.bench.run.BENCHMARKS` has the same, and costs the import of the whole server."""

    TURN = "turn"
    FIRST_TURN = "first-turn"
    SANDBOX_START = "sandbox-start"
    HIBERNATION = "hibernation"
    CPU = "cpu"
    MEMORY = "memory"
    STORE = "store"
    LINK = "link"
    GATEWAY_TURN = "gateway-turn"
    GATEWAY_THROUGHPUT = "gateway-throughput"
    GATEWAY_ALONE = "gateway-alone"
    GATEWAY_FAILOVER = "gateway-failover"
    GATEWAY_CLIENTS = "gateway-clients"
    FLEET_RECOVERY = "fleet-recovery"
    DIRECTORY_SCALE = "directory-scale"
    STORM = "storm"
    USERS_PER_GB = "users-per-gb"
    RECYCLING = "recycling"
    WARM_CLAIM = "warm-claim"
    TELEMETRY = "telemetry"


def bench(
    only: Annotated[
        list[Name] | None,
        typer.Option(metavar="NAME", help=f"Run only this one of {', '.join(Name)}; may be repeated."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few samples of each: shows that it works, not how fast it is.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when a target is missed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: what Aerodrome costs over the bare Copilot CLI, as ratios."""
    from aerodrome.bench.report import missed
    from aerodrome.bench.run import run
    from aerodrome.bench.scale import FULL, QUICK
    from aerodrome.observability.logging import configure_logging

    configure_logging("warning", "console")
    names = [name.value for name in Name if not only or name in only]
    with _watcher() as watcher:
        report = asyncio.run(run(names, QUICK if quick else FULL, watcher))
    if as_json:
        print_json(report.as_json())
    else:
        print_table(("WHAT", "MEASURED", "95 % INTERVAL", "TARGET", "", "FROM"), map(_cells, report.rows))
        note(
            f"Copilot CLI {report.cli_version}, {report.cores} cores, load {report.load[0]:.1f} before and "
            f"{report.load[1]:.1f} after, {report.seconds:.0f} s"
        )
        if quick:
            note("--quick takes too few samples to judge by.")
    late = missed(report.rows)
    if check and late:
        complain(f"{len(late)} of the targets missed: " + "; ".join(row.what for row in late))
        raise typer.Exit(1)


def _cells(row: Row) -> tuple[str, ...]:
    value = "-" if row.value is None else f"{row.value:{'.0f' if row.value >= 1000 else '.3g'}} {row.unit}"
    interval = "" if row.interval is None else "{:.2f} to {:.2f}".format(*row.interval)
    target = "" if row.target is None else f"{'>=' if row.at_least else '<='} {row.target:g} {row.unit}"
    origin = [_describe(name, number) for name, number in row.measured.items()]
    return row.what, value, interval, target, row.verdict or "", ", ".join([*origin, row.note] if row.note else origin)


def _describe(name: str, value: float) -> str:
    words, _, unit = name.rpartition("_")
    if unit in _UNITS:
        return f"{words.replace('_', ' ')} {value:.3g} {_UNITS[unit]}"
    return f"{value:g} {name.replace('_', ' ')}"


@contextmanager
def _watcher() -> Iterator[Watcher]:
    """Bars on a terminal; elsewhere a line for each benchmark that begins."""
    console = err()
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def progress(self, benchmark: str, done: float) -> None:
        if benchmark not in self._tasks:
            self._tasks[benchmark] = self._bars.add_task(benchmark, total=1.0)
        self._bars.update(self._tasks[benchmark], completed=done)


class _Lines:
    def progress(self, benchmark: str, done: float) -> None:
        if done == 0:
            note(f"{benchmark} ...")
