"""Processes that do not come to their end."""

from __future__ import annotations

import asyncio
import sys

import pytest

_PROGRAM = """
import asyncio, sys, time
from aerodrome._util.farewell import Farewell

async def waits():
    await asyncio.Event().wait()

async def main():
    Farewell({seconds}, lambda: print("last", flush=True)).begin()
    {work}

asyncio.run(main())
"""


async def _ends(work: str, seconds: float) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PROGRAM.format(seconds=seconds, work=work),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    ("work", "named"),
    [
        pytest.param("await waits()", "waits", id="task"),
        pytest.param("time.sleep(600)", "in main", id="loop"),
        pytest.param("asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)", "in _worker", id="thread"),
    ],
)
async def test_what_keeps_it_from_ending_is_said_and_it_ends_with_1(work: str, named: str) -> None:
    code, out, err = await _ends(work, 1.0)
    assert code == 1
    assert out.splitlines()[-1] == "last"
    assert named in err + out


async def test_whatever_ends_in_time_ends_as_it_would_have() -> None:
    assert await _ends("pass", 600.0) == (0, "", "")


async def test_it_ends_also_when_the_last_thing_fails() -> None:
    code, out, _ = await _ends("Farewell(1.0, lambda: 1 / 0).begin(); await waits()", 600.0)
    assert code == 1
    assert "waits" in out
