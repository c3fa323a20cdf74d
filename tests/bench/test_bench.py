"""The benchmarks run to their end, on real processes. What they measure is not judged here."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from aerodrome.bench.run import BENCHMARKS
from aerodrome.cli.bench import Name


def test_the_command_line_names_every_benchmark() -> None:
    assert [name.value for name in Name] == list(BENCHMARKS)


@pytest.mark.cli
@pytest.mark.timeout(180)
def test_a_quick_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aerodrome", "bench", "--quick", "--json"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["scale"] == "quick"
    assert report["cores"] >= 1
    rows = Counter(row["benchmark"] for row in report["rows"])
    assert rows == {"turn": 2, "first-turn": 2, "hibernation": 2, "cpu": 2, "memory": 4, "store": 1, "link": 1}
    for row in report["rows"]:
        numbers = [row["value"], *row["measured"].values(), *(row["interval"] or [])]
        assert all(math.isfinite(number) for number in numbers), row
        assert row["value"] > 0 or row["unit"] == "MB", row
        assert (row["target"] is None) == (row["verdict"] is None)
    # One line a benchmark that begins, and nothing else.
    assert done.stderr.split() == [word for name in BENCHMARKS for word in (name, "...")]
    assert _processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def _processes_of(directory: Path) -> list[str]:
    """Processes that were told of this directory, by an argument or by their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = [*process.cmdline(), *process.environ().values()]
            if any(str(directory) in word for word in told):
                found.append(" ".join(process.cmdline()))
    return found
