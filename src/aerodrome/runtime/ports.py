"""What the supervisor needs from a way to start runtimes, and what sessions and front doors need of runtimes, whoever
has started them."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aerodrome.model import RuntimeKey, SessionKey
from aerodrome.runtime.control import ControlLink
from aerodrome.runtime.deaths import Death
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.wear import Latency


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


class Cuttable(Protocol):
    """A connection that can be cut."""

    def abort(self, reason: str) -> None: ...


class Runtime(Protocol):
    """A runtime that sessions live in."""

    id: str
    key: RuntimeKey | None
    #: Places that are taken; its source counts them.
    reserved: int
    turns: int
    #: Monotonic time of the last moment in which it held a session.
    last_held: float
    #: Set once, when it has gone without being asked to; `lost_reason` says why.
    lost: asyncio.Event
    lost_reason: str
    #: Whoever has it may do everything in the runtime.
    token: str
    control: ControlLink
    #: How long it takes to answer what sessions ask of it.
    latency: Latency
    #: Sessions that are being loaded in it, or have just failed to be.
    loading: Counter[SessionKey]
    #: Kept for one session alone, because of what it has done, or may have done, to other runtimes.
    alone: bool
    #: Somebody else's process: it may live on, with what it was handed, when it is given up.
    foreign: bool
    #: How it came to its end, once that is known.
    death: asyncio.Future[Death]

    @property
    def state(self) -> RuntimeState: ...

    @property
    def pid(self) -> int | None:
        """Its process, if it is ours."""
        ...

    @property
    def letting_go(self) -> Mapping[str, object]:
        """Sessions that it was asked to let go of and has not yet."""
        ...

    async def connect(self) -> socket.socket:
        """A new connection to it. Raises `RuntimeUnavailable` when it does not run, and `OSError`."""
        ...

    @property
    def copilot_home(self) -> Path: ...

    @property
    def workspace(self) -> Path:
        """The working directory of its sessions, as it knows it."""
        ...

    def adopt(self, connection: Cuttable) -> None:
        """A client's own connection to it: it is cut when the runtime is given up, because a session stays in a runtime
        that lives on as long as one connection is attached to it."""
        ...

    async def answers(self, unanswered: str) -> bool:
        """Whether it answers a ping, after a request of this method was not answered; it is lost if not."""
        ...

    async def takes_prompts(self) -> bool:
        """Whether it answers, so that a prompt may be handed to it; it is lost if not."""
        ...

    def note_load(self, session_id: str, *, taken: bool) -> None:
        """It was asked to load the session, and has done so, or has refused."""
        ...

    async def let_go(self, session_id: str) -> bool:
        """Have it unload a session. ``False``: it refuses, or has not done it in time."""
        ...

    def kill(self, reason: str) -> None:
        """End it, as far as it is ours; whoever holds it learns that it is lost."""
        ...

    def describe(self) -> dict[str, Any]:
        """The row of `aerodrome runtimes ls`."""
        ...


#: Makes room by hibernating the least recently used idle session of this key. ``False``: there is none.
MakeRoom = Callable[[RuntimeKey], Awaitable[bool]]

#: Hibernates all sessions of the least recently used runtime of this tenant (``None``: of any) that has only idle ones.
#: ``False``: there is none.
EmptyRuntime = Callable[[str | None], Awaitable[bool]]

#: Takes the sessions that are idle now out of a runtime, and, if the second argument is true, loads those that are in
#: use again elsewhere. ``False``: there was none.
MoveSessions = Callable[[Runtime, bool], Awaitable[bool]]


class Runtimes(Protocol):
    """Where runtimes come from."""

    make_room: MakeRoom | None
    empty_runtime: EmptyRuntime | None
    move_sessions: MoveSessions | None
    on_lost: Callable[[Runtime], None] | None

    @property
    def runtimes(self) -> Sequence[Runtime]:
        """All there are now."""
        ...

    async def reserve(
        self, key: RuntimeKey, session_id: str | None = None, user: str | None = None, *, alone: bool = False
    ) -> Runtime:
        """A runtime of this key with a place taken in it; give the place back with `release`.

        Args:
            session_id: The session that the place is for. It does not come to a runtime that has not let go of it yet.
            user: For whom: users of one key take turns when places are few, and each comes to the same runtime again
                under the placement `sticky`.
            alone: In a runtime that holds nothing else, and gets nothing else meanwhile.

        Raises:
            Capacity: No room within the time-out, with all runtimes and their sessions in use.
            RuntimeUnavailable: There is none to be had; the detail says why.
            Draining: This node is shutting down.
        """
        ...

    def release(self, runtime: Runtime) -> None: ...

    def notify(self) -> None:
        """Something has changed that somebody may wait for: a place, or a session that can be hibernated."""
        ...
