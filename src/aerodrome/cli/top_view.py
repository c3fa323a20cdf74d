"""What `aerodrome top` shows of a snapshot (`operators.view`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aerodrome.cli.console import moment

_MIB = 1 << 20
#: Lines of a screen that are no rows of tables.
_AROUND = 12


def screen(seen: dict[str, Any], *, rows: int | None) -> RenderableType:
    """Everything of the snapshot that fits.

    Args:
        rows: Lines there are; ``None``: as many as it takes.
    """
    nodes, tenants, runtimes = seen["nodes"], seen["tenants"], seen["runtimes"]
    left = None if rows is None else max(6, rows - _AROUND)
    some_nodes, left = _some(nodes, left, 3)
    some_tenants, left = _some(tenants, left, 2)
    some_runtimes, _ = _some(sorted(runtimes, key=lambda row: -row["sessions"]), left, 1)
    return Group(
        _totals(seen),
        Text(),
        _nodes(some_nodes, len(nodes)),
        Text(),
        _tenants(some_tenants, len(tenants)),
        Text(),
        _runtimes(some_runtimes, len(runtimes)),
    )


def trouble(reason: str) -> RenderableType:
    return Text(f"nothing is seen at the moment: {reason}", style="bold red")


def _some(rows: Sequence[dict[str, Any]], left: int | None, parts: int) -> tuple[Sequence[dict[str, Any]], int | None]:
    """As many of the rows as one of `parts` equal parts of the lines has room for, and the lines left then."""
    if left is None:
        return rows, None
    shown = rows[: max(1, left // parts)]
    return shown, left - len(shown)


def _totals(seen: dict[str, Any]) -> Text:
    totals = seen["totals"]
    return Text.assemble(
        ("aerodrome", "bold"),
        f"  {moment(seen['at'])}  {totals['nodes']} nodes  {totals['runtimes']} runtimes  {totals['sessions']} sessions"
        f"  {totals['turns']} turns running  {totals['waiting']} waiting  {_mib(totals['rss_bytes'])} MiB",
    )


def _nodes(rows: Sequence[dict[str, Any]], of: int) -> Table:
    names = ("NODE", "RUNTIMES", "SESSIONS", "TURNS", "WAITING", "WAIT", "MiB", "AGE", "")
    cells = (
        (
            row["name"],
            row["runtimes"],
            row["sessions"],
            row["turns"],
            row["waiting"],
            f"{row['wait']:.1f}",
            _mib(row["rss_bytes"]),
            "" if row["age"] is None else f"{row['age']:.0f}",
            "draining" if row["draining"] else "",
        )
        for row in rows
    )
    return _table(names, cells, of - len(rows), text=(0, 8))


def _tenants(rows: Sequence[dict[str, Any]], of: int) -> Table:
    names = ("TENANT", "RUNTIMES", "SESSIONS", "TURNS", "WAITING")
    cells = (
        (row["tenant"] or "(others)", row["runtimes"], row["sessions"], row["turns"], row["waiting"]) for row in rows
    )
    return _table(names, cells, of - len(rows), text=(0,))


def _runtimes(rows: Sequence[dict[str, Any]], of: int) -> Table:
    names = ("RUNTIME", "NODE", "STATE", "TENANT", "USER", "SESSIONS", "TURNS SO FAR", "MiB")
    cells = (
        (
            row["id"],
            row["node"],
            row["state"],
            row["tenant"] or "-",
            row["user"] or "-",
            row["sessions"],
            row["turns"],
            _mib(row["rss_bytes"]),
        )
        for row in rows
    )
    return _table(names, cells, of - len(rows), text=(0, 1, 2, 3, 4))


def _table(names: Sequence[str], rows: Iterable[Sequence[object]], more: int, *, text: Sequence[int]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for number, name in enumerate(names):
        table.add_column(name, no_wrap=True, justify="left" if number in text else "right")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    if more > 0:
        table.add_row(Text(f"and {more} more", style="dim"))
    return table


def _mib(size: int) -> int:
    return size // _MIB
