"""The `process` launcher: the CLI as a child of this process, listening on loopback.

The port is the runtime's own choice and read from its output (trap 2). Each runtime has a home of its own and an
environment of a few listed variables: nothing of the host's secrets reaches it by accident.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from aerodrome.errors import RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.homes import kill_leftovers
from aerodrome.runtime.launchers.output import LogFile, RuntimeOutput, read_output
from aerodrome.runtime.ports import LaunchSpec, connected

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

_EXEC = Path(__file__).with_name("_exec.py")


def cli_arguments(log_dir: str) -> list[str]:
    """What every runtime is started with."""
    return [
        *("--headless", "--no-auto-update", "--no-auto-login"),
        *("--host", "127.0.0.1"),
        *("--log-dir", log_dir, "--log-level", "error"),
    ]


class ProcessLauncher:
    """Args:
    package_cache: Directory in which the CLI unpacks itself, shared by all runtimes: docs/facts.md, "Starting".
    """

    def __init__(self, package_cache: Path) -> None:
        self._package_cache = package_cache

    async def launch(self, spec: LaunchSpec, *, timeout: float) -> ChildProcess:
        try:
            self._make_directories(spec)
            process = await self._start(spec)
        except OSError as error:
            raise RuntimeUnavailable(f"the Copilot CLI at {spec.command} could not be started: {error}") from error
        try:
            await process.listening(timeout)
        except BaseException:
            process.kill()
            # The child is dead or dying: reap it also when we are being cancelled, or it stays a zombie.
            await asyncio.shield(process.reap())
            raise
        return process

    def _make_directories(self, spec: LaunchSpec) -> None:
        # The home comes first: it is what tells that the log directory belongs to a living runtime.
        for directory in (spec.home, spec.home / "workspace", spec.home / "tmp", spec.log_dir, self._package_cache):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def _start(self, spec: LaunchSpec) -> ChildProcess:
        # A pipe of our own: asyncio closes those it makes only when the last process that has inherited one has
        # ended, and not at all while nobody reads.
        reading, writing = os.pipe()
        try:
            transport, output = await read_output(reading, LogFile(spec.log_dir, spec.log_bytes))
            try:
                child = await asyncio.create_subprocess_exec(
                    *self._arguments(spec),
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=writing,
                    env=self._environment(spec),
                    cwd=spec.home / "workspace",
                    start_new_session=True,
                )
            except BaseException:
                transport.close()
                raise
        finally:
            os.close(writing)
        return ChildProcess(child, spec.home, output, transport)

    def _arguments(self, spec: LaunchSpec) -> list[str]:
        return [
            sys.executable,
            "-I",
            "-S",
            str(_EXEC),
            str(os.getpid()),
            str(spec.command),
            *cli_arguments(str(spec.log_dir)),
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
            # Gives the memory of closed sessions back to the system (docs/facts.md, "Memory and wear").
            "MALLOC_TRIM_THRESHOLD_": "131072",
        }
        return env | dict(spec.env)


class ChildProcess:
    """A runtime that is our child. Implements `RuntimeProcess`."""

    def __init__(
        self, child: asyncio.subprocess.Process, home: Path, output: RuntimeOutput, pipe: asyncio.ReadTransport
    ) -> None:
        self._child = child
        self._home = home
        self._output = output
        self._pipe = pipe
        self._cleaned = False

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._output.port.result()

    @property
    def workspace(self) -> Path:
        return self._home / "workspace"

    @property
    def copilot_home(self) -> Path:
        return self._home / "copilot"

    @property
    def ended_by(self) -> str | None:
        return None

    async def connect(self) -> socket.socket:
        return await connected(*self.address)

    async def claim(self, owner: RuntimeKey) -> None:
        """Nothing is held back from it, and its workspace is in its home."""

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
        # and the id its meaning, as long as anybody is in it; afterwards it may become somebody else's.
        if not self._cleaned:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)

    def output_tail(self) -> str:
        return self._output.tail()

    async def cleanup(self) -> None:
        self.kill()
        self._cleaned = True
        self._output.expect_last_words()
        try:
            # Those who left the group are known by their environment.
            await asyncio.to_thread(kill_leftovers, self._home)
        finally:
            # And somebody who is not may hold the pipe open; what it still writes is of no interest.
            self._pipe.close()
            await self._output.ended.wait()

    async def reap(self) -> None:
        await self._child.wait()
        await self.cleanup()

    async def listening(self, timeout: float) -> None:
        """Wait for the port.

        Raises:
            RuntimeUnavailable: The process ended first, or `timeout` seconds have passed.
        """
        port = self._output.port
        ended = asyncio.ensure_future(self._child.wait())
        try:
            await asyncio.wait({ended, port}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if port.done():
            return
        if self._child.returncode is None:
            raise RuntimeUnavailable(f"the Copilot CLI did not listen within {timeout:g} s of its start{self._said()}")
        # The last words may still be in the pipe, which one of its children may hold open.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._output.ended.wait()
        raise RuntimeUnavailable(
            f"the Copilot CLI ended with code {self._child.returncode} before it listened{self._said()}"
        )

    def _said(self) -> str:
        tail = self.output_tail()
        return f"; it said: {tail[-600:]}" if tail else " and said nothing"
