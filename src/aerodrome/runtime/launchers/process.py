"""The `process` launcher: the CLI as a child of this process, listening on loopback.

The port is the runtime's own choice and read from its output (trap 2). Each runtime has a home of its own and an
environment of a few listed variables: nothing of the host's secrets reaches it by accident.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime.ports import LaunchSpec

#: Passed on from our own environment: what a program needs to find libraries, certificates and proxies.
PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
)

_LISTENING = re.compile(r"listening on port (\d+)")
_EXEC = Path(__file__).with_name("_exec.py")


class ProcessLauncher:
    """Args:
    package_cache: Directory in which the CLI unpacks itself, shared by all runtimes (FACTS: +1.3 s without).
    """

    def __init__(self, package_cache: Path) -> None:
        self._package_cache = package_cache

    async def launch(self, spec: LaunchSpec, *, timeout: float) -> ChildProcess:
        for directory in (
            spec.home,
            spec.home / "workspace",
            spec.home / "tmp",
            spec.log_dir,
            self._package_cache,
        ):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            child = await asyncio.create_subprocess_exec(
                *self._arguments(spec),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment(spec),
                cwd=spec.home / "workspace",
                start_new_session=True,
            )
        except OSError as error:
            raise RuntimeUnavailable(f"the Copilot CLI at {spec.command} could not be started: {error}") from error
        process = ChildProcess(child, spec)
        try:
            await process.listening(timeout)
        except BaseException:
            process.kill()
            # The child is dead or dying: reap it also when we are being cancelled, or it stays a zombie.
            await asyncio.shield(process.reap())
            raise
        return process

    def _arguments(self, spec: LaunchSpec) -> list[str]:
        return [
            sys.executable,
            "-I",
            "-S",
            str(_EXEC),
            str(os.getpid()),
            str(spec.command),
            "--headless",
            "--no-auto-update",
            "--no-auto-login",
            "--host",
            "127.0.0.1",
            "--log-dir",
            str(spec.log_dir),
            "--log-level",
            "error",
        ]

    def _environment(self, spec: LaunchSpec) -> Mapping[str, str]:
        env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        env |= {
            "HOME": str(spec.home),
            "TMPDIR": str(spec.home / "tmp"),
            "COPILOT_HOME": str(spec.home / "copilot"),
            "COPILOT_PKG_CACHE_HOME": str(self._package_cache),
            "COPILOT_CONNECTION_TOKEN": spec.token,
            "COPILOT_DISABLE_KEYTAR": "1",
            # Gives the memory of closed sessions back to the system (FACTS, "Memory").
            "MALLOC_TRIM_THRESHOLD_": "131072",
        }
        return env | dict(spec.env)


class ChildProcess:
    """A runtime that is our child. Implements `RuntimeProcess`."""

    def __init__(self, child: asyncio.subprocess.Process, spec: LaunchSpec) -> None:
        self._child = child
        self._spec = spec
        self._tail: deque[str] = deque(maxlen=40)
        self._port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read_output(), name=f"runtime-output:{spec.id}")

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port.result()

    @property
    def exit_code(self) -> int | None:
        return self._child.returncode

    async def wait(self) -> int:
        return await self._child.wait()

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()

    def kill(self) -> None:
        # The group, not the process: a tool the runtime started must not outlive it. The group keeps its id,
        # and the id its meaning, as long as anybody is in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def output_tail(self) -> str:
        return "\n".join(self._tail)

    async def cleanup(self) -> None:
        self.kill()
        # Somebody who left the group may hold the pipe open; what it still writes is of no interest.
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def reap(self) -> None:
        await self._child.wait()
        await self.cleanup()

    async def listening(self, timeout: float) -> None:
        """Wait for the port.

        Raises:
            RuntimeUnavailable: The process ended first, or `timeout` seconds have passed.
        """
        ended = asyncio.ensure_future(self._child.wait())
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wait({ended, self._port}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise RuntimeUnavailable(
                f"the Copilot CLI did not listen within {timeout:g} s of its start{self._said()}"
            ) from None
        finally:
            if not ended.done():
                ended.cancel()
        if not self._port.done():
            # The last words may still be in the pipe.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await asyncio.shield(self._reader)
            raise RuntimeUnavailable(
                f"the Copilot CLI ended with code {self._child.returncode} before it listened{self._said()}"
            )

    def _said(self) -> str:
        return f"; it said: {self.output_tail()[-600:]}" if self._tail else " and said nothing"

    async def _read_output(self) -> None:
        """Keep the pipe empty (a full one would stop the runtime) and the log bounded: two files of half each."""
        assert self._child.stdout is not None
        path = self._spec.log_dir / "output.log"
        half = max(self._spec.log_bytes // 2, 4096)
        written = 0
        log = path.open("ab", buffering=0)
        try:
            while line := await _read_line(self._child.stdout):
                text = line.decode("utf-8", "replace").rstrip()
                self._tail.append(text)
                if not self._port.done() and (match := _LISTENING.search(text)):
                    self._port.set_result(int(match[1]))
                with contextlib.suppress(OSError):  # a full disk must not stop the runtime
                    written += log.write(line) or 0
                if written >= half:
                    written = 0
                    log.close()
                    path.replace(path.with_suffix(".log.1"))
                    log = path.open("ab", buffering=0)
        finally:
            log.close()


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """A line, or a piece of one that is longer than the stream's limit; empty at the end."""
    try:
        return await stream.readline()
    except ValueError:
        # Over the limit: readline has dropped the piece from its buffer.
        return b"(a very long line)\n"
