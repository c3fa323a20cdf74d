"""What operators see, made of what nodes say."""

from __future__ import annotations

from aerodrome.coordination.ports import Node
from aerodrome.operators.view import busiest, node_row, runtime_rows, snapshot, tenant_rows


def node(name: str, **load: object) -> Node:
    return Node(name, f"{name}-1", "127.0.0.1:1", dict(load))


def tenant(name: str | None, sessions: int = 0, turns: int = 0, waiting: int = 0) -> dict[str, object]:
    return {"tenant": name, "sessions": sessions, "turns": turns, "waiting": waiting}


A = node(
    "a",
    runtimes=[{"id": "rt-1", "tenant": "acme", "rss_bytes": 100}, {"id": "rt-2", "tenant": None, "rss_bytes": 50}],
    tenants=[tenant("acme", 3, 2, 1), tenant(None, 1, 1, 1)],
    sessions=4,
    wait=0.5,
    rss_bytes=10,
    started_at=100.0,
)
B = node(
    "b", runtimes=[{"id": "rt-3", "tenant": "acme", "rss_bytes": 1}], tenants=[tenant("acme", 1), tenant("bank", 1, 9)]
)


def test_a_node_says_the_same_amount_however_many_tenants_and_sessions_it_has() -> None:
    crowd = {f"t{n:04}": {"sessions": n, "turns": 0, "waiting": 0} for n in range(1000)}
    rows = busiest(crowd)
    assert len(rows) == 21
    assert rows[0]["tenant"] == "t0999"
    assert rows[-1]["tenant"] is None
    assert sum(row["sessions"] for row in rows) == sum(range(1000))
    assert busiest({}) == []


def test_a_node_s_row_counts_what_it_says() -> None:
    assert node_row(A, 160.0) == {
        "name": "a",
        "incarnation": "a-1",
        "address": "127.0.0.1:1",
        "sessions": 4,
        "runtimes": 2,
        "turns": 3,
        "waiting": 2,
        "wait": 0.5,
        "rss_bytes": 160,
        "draining": False,
        "age": 60.0,
    }


def test_a_node_of_an_older_release_says_less() -> None:
    row = node_row(node("old", runtimes=[], sessions=1, draining=True), 160.0)
    assert (row["turns"], row["waiting"], row["age"], row["draining"]) == (0, 0, None, True)


def test_tenants_are_counted_over_all_nodes_the_busiest_first() -> None:
    assert tenant_rows([A, B]) == [
        {**tenant("bank", 1, 9, 0), "runtimes": 0},
        {**tenant("acme", 4, 2, 1), "runtimes": 2},
        {**tenant(None, 1, 1, 1), "runtimes": 0},
    ]


def test_a_snapshot_has_everything() -> None:
    seen = snapshot([A, B], 160.0)
    assert seen["totals"] == {"nodes": 2, "sessions": 4, "runtimes": 3, "turns": 12, "waiting": 2, "rss_bytes": 161}
    assert (
        [row["id"] for row in seen["runtimes"]] == ["rt-1", "rt-2", "rt-3"] == [r["id"] for r in runtime_rows([A, B])]
    )
