"""What the supervisor needs from a way to start runtimes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aerodrome.model import RuntimeKey


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything a launcher must know of one runtime."""

    id: str
    command: Path
    #: A directory of the runtime's own: `COPILOT_HOME`, home directory and workspace are inside it.
    home: Path
    #: The connection token; travels in the environment, never in an argument.
    token: str
    #: Where output and logs go; survives the runtime for the operator to read.
    log_dir: Path
    env: Mapping[str, str] = field(default_factory=dict)
    log_bytes: int = 1 << 20
    #: The address of the model that it has to reach before it belongs to anybody: that of the readiness probe.
    reachable: str = ""


class RuntimeProcess(Protocol):
    """A started runtime that listens."""

    @property
    def pid(self) -> int: ...

    @property
    def workspace(self) -> Path:
        """Where its sessions work, as the runtime sees it."""
        ...

    @property
    def copilot_home(self) -> Path:
        """`COPILOT_HOME`, as the runtime sees it."""
        ...

    @property
    def ended_by(self) -> str | None:
        """Why it was ended by what it runs in, if it was: it has used too much of something."""
        ...

    async def connect(self) -> socket.socket:
        """A new connection to where it listens; does not block. Raises `OSError`."""
        ...

    async def claim(self, owner: RuntimeKey) -> None:
        """It is given to a user or tenant, once: give it their workspace, and let it reach their models.

        Raises:
            RuntimeUnavailable: That cannot be done; it is of no use to them.
        """
        ...

    @property
    def exit_code(self) -> int | None:
        """``None`` while it runs."""
        ...

    async def wait(self) -> int:
        """The exit code. Cancelling the wait does not touch the process."""
        ...

    def terminate(self) -> None:
        """SIGTERM. Nothing happens when it has ended."""
        ...

    def kill(self) -> None:
        """SIGKILL to the process and everything it has started."""
        ...

    def output_tail(self) -> str:
        """The last lines it has written, for error messages."""
        ...

    async def cleanup(self) -> None:
        """Free what belongs to the ended process (pipes, log files). Call it once `wait` has returned."""
        ...


class Launcher(Protocol):
    async def launch(self, spec: LaunchSpec, *, timeout: float) -> RuntimeProcess:
        """Start a runtime and wait until it listens.

        Raises:
            RuntimeUnavailable: It could not be started, ended by itself, or did not listen within `timeout`
                seconds; the detail has the last lines of its output. No process is left behind. The same holds
                when the call is cancelled.
        """
        ...


async def connected(host: str, port: int) -> socket.socket:
    """A connection that does not block. Raises `OSError`."""
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
    except BaseException:
        connection.close()
        raise
    return connection
