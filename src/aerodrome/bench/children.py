"""Processes that the benchmarks start beside nodes and CLIs: told what to do, and answering, in lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil

from aerodrome.errors import RuntimeUnavailable

_STOP_TIMEOUT = 5.0


class Child:
    """Made by `child`. It ends when its standard input does, and so also when whoever started it has died."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.stats = psutil.Process(process.pid)
        self._process = process
        self._name = name

    async def ask(self, **command: Any) -> Any:
        """Raises `RuntimeUnavailable` when it has ended, or says that it could not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeUnavailable(f"{self._name} has ended")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeUnavailable(f"{self._name}: {answer['error']}")
        return answer


@asynccontextmanager
async def child(*command: str) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Child(process, " ".join(command[-2:]))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def python_child(module: str) -> contextlib.AbstractAsyncContextManager[Child]:
    return child(sys.executable, "-m", module)


async def serve(perform: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
    """The child's side: answer each line with what `perform` returns, until the input ends."""
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        sys.stdout.write(json.dumps(await perform(json.loads(line))) + "\n")
        sys.stdout.flush()
