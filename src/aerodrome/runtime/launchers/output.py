"""What a runtime writes to standard output and error: the port it listens on, its last lines, a log file.

The pipe is read whatever becomes of the log: a full one would stop the runtime. Whoever runs programs in the runtime
can write to it, too, as much as they like, and must not keep the event loop busy with that. So what is read costs
little however it is made up, and after a piece of some size the pipe is left alone for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import deque
from pathlib import Path
from typing import IO, cast

_LISTENING = re.compile(rb"listening on port (\d{1,5})\b")
#: Bytes of a line that are looked at and remembered; the log has them all.
_LINE = 1000
#: Lines that are remembered.
_LINES = 40
#: A piece of so many bytes is more than a runtime has to say, and bytes a second that are read of such.
_MUCH, _RATE = 1 << 14, 4 << 20


class RuntimeOutput(asyncio.Protocol):
    """The reading end of the pipe. `port` and `ended` settle as the runtime speaks and closes it."""

    def __init__(self, log: LogFile) -> None:
        loop = asyncio.get_running_loop()
        self.port: asyncio.Future[int] = loop.create_future()
        self.ended = asyncio.Event()
        self._log = log
        self._tail: deque[bytes] = deque(maxlen=_LINES)
        #: The beginning of a line that is not complete.
        self._line = b""
        self._pipe: asyncio.ReadTransport | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._last_words = False

    def tail(self) -> str:
        lines = [*self._tail, self._line] if self._line else self._tail
        return "\n".join(line.decode("utf-8", "replace").rstrip() for line in lines)

    def expect_last_words(self) -> None:
        """It has ended: what is left in the pipe is read at once."""
        self._last_words = True
        if self._resting is not None:
            self._resting.cancel()
            self._read_on()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports implement the interface without being subclasses of it.
        self._pipe = cast("asyncio.ReadTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._log.write(data)
        if len(data) >= _MUCH and not self._last_words and self._pipe is not None:
            self._pipe.pause_reading()
            self._resting = asyncio.get_running_loop().call_later(len(data) / _RATE, self._read_on)
        if self.port.done():
            pieces = data.rsplit(b"\n", _LINES + 1)
            if len(pieces) > _LINES + 1:
                del pieces[0]  # what will be remembered is all behind it
                self._line = b""
        else:
            pieces = data.split(b"\n")
        *complete, rest = pieces
        for piece in complete:
            self._complete_line(self._line + piece)
            self._line = b""
        self._line = (self._line + rest)[:_LINE]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self._log.close()
        self.ended.set()

    def _read_on(self) -> None:
        self._resting = None
        if self._pipe is not None and not self._pipe.is_closing():
            self._pipe.resume_reading()

    def _complete_line(self, line: bytes) -> None:
        line = line[:_LINE]
        self._tail.append(line)
        if not self.port.done() and (match := _LISTENING.search(line)):
            self.port.set_result(int(match[1]))


async def read_output(descriptor: int, log: LogFile) -> tuple[asyncio.ReadTransport, RuntimeOutput]:
    """Begin to read a pipe, which belongs to the transport from here on."""
    output = RuntimeOutput(log)
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    opening = asyncio.ensure_future(asyncio.get_running_loop().connect_read_pipe(lambda: output, pipe))
    try:
        transport, _ = await asyncio.shield(opening)
    except asyncio.CancelledError:
        # Cancelled itself, uvloop closes the descriptor behind the pipe's back, which closes it once more later on,
        # when it may be somebody else's.
        opening.add_done_callback(lambda done: done.result()[0].close())
        raise
    return transport, output


class LogFile:
    """Two files of half the size each, `output.log` and the one before it; a disk that is full loses lines of it."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._path = directory / "output.log"
        self._half = max_bytes // 2
        self._written = 0
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        # Pieces are as large as the pipe gives them; a log of less than a piece would never hold one, and of the
        # piece it holds the end.
        for start in range(max(0, len(data) - 2 * self._half), len(data), max(1, self._half)):
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
