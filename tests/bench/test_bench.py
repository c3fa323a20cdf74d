"""The benchmarks run to their end, on real processes. What they measure is not judged here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from aerodrome.bench import directory_scale, node_sdk
from aerodrome.bench.run import BENCHMARKS
from aerodrome.cli.bench import Name
from aerodrome.errors import Invalid
from support.postgres import shared_server

HAPROXY = "HAProxy in TCP mode"


def test_the_command_line_names_every_benchmark() -> None:
    assert [name.value for name in Name] == list(BENCHMARKS)


#: Rows by benchmark.
HOST = {"turn": 2, "sandbox-start": 2, "store": 1, "link": 1}
LONG = {"first-turn": 2, "hibernation": 2, "cpu": 4, "memory": 4, "gateway-throughput": 3, "gateway-failover": 1}
GATEWAY = {"gateway-turn": 7, "gateway-alone": 6, "gateway-clients": 3}
FLEET = {"fleet-recovery": 2, "directory-scale": 4, "storm": 1, "users-per-gb": 5}
WEAR = {"recycling": 3, "warm-claim": 1}
WATCHED = {"telemetry": 6}


@pytest.mark.cli
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "expected",
    [
        pytest.param(HOST, id="host"),
        pytest.param(LONG, id="long", marks=pytest.mark.soak),
        pytest.param(GATEWAY, id="gateway"),
        pytest.param(FLEET, id="fleet", marks=pytest.mark.soak),
        pytest.param(WEAR, id="wear"),
        pytest.param(WATCHED, id="watched", marks=pytest.mark.soak),
    ],
)
def test_a_quick_run(tmp_path: Path, expected: dict[str, int]) -> None:
    only = [word for name in expected for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "-m", "aerodrome", "bench", "--quick", "--json", *only],
        env={**os.environ, "TMPDIR": str(tmp_path), directory_scale.VARIABLE: shared_server().url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["scale"] == "quick"
    assert report["cores"] >= 1
    rows = Counter(row["benchmark"] for row in report["rows"])
    skipped = [row for row in report["rows"] if row["value"] is None]
    if HAPROXY in {row["what"] for row in skipped}:
        rows["gateway-alone"] += 2  # one row for the three
    assert rows == expected
    for row in skipped:
        assert row["what"] == HAPROXY or "Node SDK" in row["what"], f"{row['what']}: {row['note']}"
        assert row["note"].startswith("skipped: "), row["note"]
        assert row["verdict"] is None
    for row in report["rows"]:
        if row not in skipped:
            _check(row)
    # One line a benchmark that begins, and nothing else.
    assert done.stderr.split() == [word for name in expected for word in (name, "...")]
    deadline = time.monotonic() + 60
    while left := _processes_of(tmp_path):  # of a process that was killed, the system ends those that it has started
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def _check(row: dict[str, Any]) -> None:
    numbers = [row["value"], *row["measured"].values(), *(row["interval"] or [])]
    assert all(math.isfinite(number) for number in numbers), row
    # What is small beside the rest of the node's memory may come out negative, and so may a time added.
    # The clock of processor time is coarser than a few turns.
    small = row["unit"] in ("MB", "KB", "ms") or row["what"].startswith("processor time")
    assert row["value"] > 0 or small, row
    assert (row["target"] is None) == (row["verdict"] is None)


def test_the_benchmarks_under_test_are_all() -> None:
    assert sorted([*HOST, *LONG, *GATEWAY, *FLEET, *WEAR, *WATCHED]) == sorted(BENCHMARKS)


def test_without_node_the_rows_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    async def open_clients() -> None:
        async with node_sdk.clients():
            pass

    with pytest.raises(Invalid, match=r"Node\.js"):
        asyncio.run(open_clients())


def _processes_of(directory: Path) -> list[str]:
    """Processes that were told of this directory, by an argument or by their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = [*process.cmdline(), *process.environ().values()]
            if any(str(directory) in word for word in told):
                found.append(" ".join(process.cmdline()))
    return found
