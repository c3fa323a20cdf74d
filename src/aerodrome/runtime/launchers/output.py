"""What a runtime writes to standard output and error: the port it listens on, its last lines, a log file.

The pipe is read as fast as it fills, whatever becomes of the log: a full pipe would stop the runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from pathlib import Path
from typing import IO

_LISTENING = re.compile(rb"listening on port (\d{1,5})\b")
#: Bytes of a line that are looked at and remembered; the log has them all.
_LINE = 1000


class RuntimeOutput(asyncio.Protocol):
    """The reading end of the pipe. `port` and `ended` settle as the runtime speaks and closes it."""

    def __init__(self, log: LogFile) -> None:
        loop = asyncio.get_running_loop()
        self.port: asyncio.Future[int] = loop.create_future()
        self.ended = asyncio.Event()
        self._log = log
        self._tail: deque[bytes] = deque(maxlen=40)
        #: The beginning of a line that is not complete.
        self._line = b""

    def tail(self) -> str:
        lines = [*self._tail, self._line] if self._line else self._tail
        return "\n".join(line.decode("utf-8", "replace").rstrip() for line in lines)

    def data_received(self, data: bytes) -> None:
        self._log.write(data)
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._complete_line(self._line + piece)
            self._line = b""
        self._line = (self._line + rest)[:_LINE]

    def connection_lost(self, exc: Exception | None) -> None:
        self._log.close()
        self.ended.set()

    def _complete_line(self, line: bytes) -> None:
        line = line[:_LINE]
        self._tail.append(line)
        if not self.port.done() and (match := _LISTENING.search(line)):
            self.port.set_result(int(match[1]))


class LogFile:
    """Two files of half the size each, `output.log` and the one before it; a disk that is full loses lines of it."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._path = directory / "output.log"
        self._half = max_bytes // 2
        self._written = 0
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        # Pieces are as large as the pipe gives them; a log of less than a piece would never hold one.
        for start in range(0, len(data), max(1, self._half)):
            with contextlib.suppress(OSError):
                self._append(data[start : start + self._half])

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _append(self, piece: bytes) -> None:
        if self._written + len(piece) > self._half:
            self.close()
            self._written = 0
            self._path.replace(self._path.with_suffix(".log.1"))
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        self._written += self._file.write(piece) or 0
