"""Nodes, runtimes and tenants of a fleet as operators see them, made of what the nodes said with their last heartbeats.
Pure.

A node says the same amount whatever its number of sessions: its runtimes, which are bounded, and the busiest of its
tenants (`busiest`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aerodrome.coordination.ports import Node

Row = dict[str, Any]
#: Tenants that a node names; the others are one row without a name.
NAMED = 20

_COUNTS = ("sessions", "turns", "waiting")


def busiest(tenants: Mapping[str, Mapping[str, int]], most: int = NAMED) -> list[Row]:
    """What a node says of its tenants: the busiest by name, and the sum of the others as that of tenant ``None``."""
    ranked = sorted(tenants.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    rows = [{"tenant": name, **_counts(counts)} for name, counts in ranked[:most]]
    others = Counter[str]()
    for _, counts in ranked[most:]:
        others.update(counts)
    return [*rows, {"tenant": None, **_counts(others)}] if others else rows


def node_row(node: Node, now: float) -> Row:
    """The row of `aerodrome nodes ls`. Sizes in bytes, times in seconds.

    Args:
        now: Unix time.
    """
    load = node.load
    runtimes = load.get("runtimes", [])
    started_at = load.get("started_at")
    return {
        "name": node.name,
        "incarnation": node.incarnation,
        "address": node.address,
        "sessions": load.get("sessions", 0),
        "runtimes": len(runtimes),
        "turns": sum(row.get("turns", 0) for row in load.get("tenants", [])),
        "waiting": sum(row.get("waiting", 0) for row in load.get("tenants", [])),
        "wait": load.get("wait", 0.0),
        "rss_bytes": load.get("rss_bytes", 0) + sum(row.get("rss_bytes", 0) for row in runtimes),
        "draining": bool(load.get("draining")),
        "age": None if started_at is None else max(0.0, round(now - started_at, 1)),
    }


def node_rows(nodes: Iterable[Node], now: float) -> list[Row]:
    return [node_row(node, now) for node in nodes]


def runtime_rows(nodes: Iterable[Node]) -> list[Row]:
    """The rows of `aerodrome runtimes ls`."""
    return [row for node in nodes for row in node.load.get("runtimes", [])]


def tenant_rows(nodes: Sequence[Node]) -> list[Row]:
    """Of each tenant, over all nodes: loaded sessions, turns that run, prompts that wait, runtimes; the busiest first.

    Tenant ``None`` is those that are not among the busiest of their node.
    """
    sums: dict[str | None, Counter[str]] = {}
    for node in nodes:
        for row in node.load.get("tenants", []):
            sums.setdefault(row["tenant"], Counter()).update({name: row.get(name, 0) for name in _COUNTS})
        for runtime in node.load.get("runtimes", []):
            if (tenant := runtime.get("tenant")) in sums and tenant is not None:
                sums[tenant]["runtimes"] += 1
    rows = [{"tenant": tenant, **_counts(counts), "runtimes": counts["runtimes"]} for tenant, counts in sums.items()]
    return sorted(rows, key=lambda row: (row["tenant"] is None, -row["turns"], -row["waiting"], str(row["tenant"])))


def snapshot(nodes: Sequence[Node], now: float) -> Row:
    """Everything that `aerodrome top` shows."""
    rows = node_rows(nodes, now)
    names = ("sessions", "runtimes", "turns", "waiting", "rss_bytes")
    return {
        "at": now,
        "totals": {"nodes": len(rows), **{name: sum(row[name] for row in rows) for name in names}},
        "nodes": rows,
        "tenants": tenant_rows(nodes),
        "runtimes": runtime_rows(nodes),
    }


def _counts(counts: Mapping[str, int]) -> Row:
    return {name: counts.get(name, 0) for name in _COUNTS}
