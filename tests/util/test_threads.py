from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from aerodrome._util.threads import Threads
from aerodrome.errors import StoreUnavailable
from support.waiting import until

pytestmark = pytest.mark.timeout(60)


class Calls:
    """Which hang until they are let go of."""

    def __init__(self) -> None:
        self.begun = 0
        self.at_once = 0
        self._here = 0
        self._lock = threading.Lock()
        self._go = threading.Event()

    def __call__(self) -> int:
        with self._lock:
            self.begun += 1
            self._here += 1
            self.at_once = max(self.at_once, self._here)
        self._go.wait()
        with self._lock:
            self._here -= 1
        return self.begun

    def let_go(self) -> None:
        self._go.set()


async def test_a_call_has_its_result_or_its_error() -> None:
    threads = Threads("volume", 2, 2)

    def fails() -> None:
        raise FileNotFoundError("x")

    assert await asyncio.gather(*(threads.run("acme", lambda n=n: n * n) for n in range(50))) == [  # type: ignore[misc]
        n * n for n in range(50)
    ]
    with pytest.raises(FileNotFoundError, match="x"):
        await threads.run("acme", fails)
    assert await threads.run("acme", lambda: 1) == 1
    threads.close()
    with pytest.raises(StoreUnavailable):
        await threads.run("acme", lambda: 1)


async def test_there_are_no_more_at_a_time_of_one_and_of_all() -> None:
    threads, calls, others = Threads("volume", 5, 3), Calls(), Calls()
    running = [asyncio.create_task(threads.run("acme", calls)) for _ in range(10)]
    await until(lambda: calls.begun == 3)
    assert await threads.run("globex", lambda: 1) == 1
    running += [asyncio.create_task(threads.run(name, others)) for name in "abc"]
    await until(lambda: others.begun == 2)
    calls.let_go()
    others.let_go()
    await asyncio.gather(*running)
    assert (calls.begun, calls.at_once, others.begun) == (10, 3, 3)
    threads.close()


async def test_a_call_whose_caller_has_gone_counts_until_it_ends() -> None:
    threads, calls = Threads("volume", 8, 2), Calls()
    running = [asyncio.create_task(threads.run("acme", calls)) for _ in range(4)]
    await until(lambda: calls.begun == 2)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    next_one = asyncio.create_task(threads.run("acme", calls))
    # Calls of another are begun and ended meanwhile; one of acme is not begun.
    for _ in range(20):
        await threads.run("globex", lambda: 1)
    assert calls.begun == 2
    calls.let_go()
    await next_one
    assert calls.begun == 3, "those that had not begun are not made for nobody"
    threads.close()


def test_a_call_that_hangs_keeps_no_process_from_ending() -> None:
    program = """
import asyncio, threading
from aerodrome._util.threads import Threads

async def main():
    threads = Threads("volume", 1, 1)
    begun = threading.Event()
    def hang():
        begun.set()
        threading.Event().wait()
    task = asyncio.create_task(threads.run("acme", hang))
    await asyncio.to_thread(begun.wait)
    threads.close()
    task.cancel()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], timeout=50, check=True)
