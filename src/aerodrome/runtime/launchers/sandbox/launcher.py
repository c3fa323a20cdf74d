"""The `sandbox` launcher: keeper, bubblewrap, CLI, each the child of the one before; the node's side of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import signal
import socket
import stat
import sys
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from aerodrome._util.threads import Threads
from aerodrome.errors import RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.homes import erase
from aerodrome.runtime.launchers.output import LogFile, RuntimeOutput, read_output
from aerodrome.runtime.launchers.process import ChildProcess, cli_arguments
from aerodrome.runtime.launchers.sandbox import bubblewrap
from aerodrome.runtime.launchers.sandbox.bubblewrap import SandboxLimits, Scratch
from aerodrome.runtime.launchers.sandbox.channel import IN_IT, KeeperChannel
from aerodrome.runtime.launchers.sandbox.egress import Egress, Network, Target, target_of
from aerodrome.runtime.launchers.sandbox.host import advice, look
from aerodrome.runtime.launchers.sandbox.proxy import CONNECTIONS, EgressProxy
from aerodrome.runtime.launchers.sandbox.syscalls import seccomp_filter
from aerodrome.runtime.ports import LaunchSpec
from aerodrome.runtime.workspaces import Workspace, Workspaces

log = structlog.get_logger(__name__)

_KEEPER = Path(__file__).with_name("_keeper.py")
#: Of our own environment; all else that it names is not there inside.
_PASSED_ON = ("LANG", "LC_ALL", "TZ")
#: Seconds to make a sandbox and to leave it.
_CHECK_TIMEOUT = 20.0
#: Seconds to open a user's workspace, and threads that do so: its file system may be a network away. (How long it takes
#: to measure what is in it is the user's own affair.)
_WORKSPACE_TIMEOUT = 30.0
_THREADS, _OF_ONE_TENANT = 16, 8
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    bubblewrap: Path
    packages: Path
    limits: SandboxLimits = field(default_factory=SandboxLimits)
    #: A network of its own; without, that of the host, and no rule for it.
    own_network: bool = True
    egress: Egress = field(default_factory=lambda: Egress(Network.NONE))
    #: The operator's own proxy.
    proxy: Target | None = None
    read_only: tuple[Path, ...] = ()
    #: Outwards, at a time: each turn that runs takes at least one.
    connections: int = CONNECTIONS


class SandboxLauncher:
    """Args:
    targets: What the runtime of a user or tenant reaches from its claim on: the addresses of their models.
    released: Called when a runtime has let go of its user's workspace.
    """

    def __init__(
        self,
        options: SandboxOptions,
        workspaces: Workspaces,
        *,
        targets: Callable[[RuntimeKey], Iterable[Target]],
        released: Callable[[RuntimeKey], None] = lambda owner: None,
    ) -> None:
        self._options = options
        self._workspaces = workspaces
        self._targets = targets
        self._released = released
        self._threads = Threads("workspaces", _THREADS, _OF_ONE_TENANT)
        weakref.finalize(self, self._threads.close)

    async def launch(self, spec: LaunchSpec, *, timeout: float) -> SandboxedProcess:
        scratch = Scratch.below(spec.home)
        try:
            self._make_directories(spec, scratch)
            process = await self._start(spec)
        except OSError as error:
            raise RuntimeUnavailable(f"the sandbox could not be started: {error}") from error
        try:
            async with asyncio.timeout(timeout):
                await process.begin(self._plan(spec, scratch), spec, self._options)
            await process.listening(timeout)
        except BaseException as error:
            process.kill()
            # The child is dead or dying: reap it also when we are being cancelled, or it stays a zombie.
            await asyncio.shield(process.reap())
            if isinstance(error, TimeoutError):
                raise RuntimeUnavailable(f"the sandbox was not made within {timeout:g} s") from None
            said = process.output_tail()[-600:]
            if isinstance(error, RuntimeUnavailable) and said and said not in error.detail:
                raise RuntimeUnavailable(f"{error.detail}; it said: {said}") from error
            raise
        return process

    async def check(self, homes: Path) -> None:
        """Make a sandbox, with nothing in it that lasts.

        Raises:
            RuntimeUnavailable: This machine does not allow one, and how to mend that.
        """
        home = homes / f"check-{secrets.token_hex(4)}"
        spec = LaunchSpec(id=home.name, command=Path("/usr/bin/true"), home=home, token="", log_dir=home / "log")
        process: SandboxedProcess | None = None
        try:
            self._make_directories(spec, Scratch.below(home))
            process = await self._start(spec)
            async with asyncio.timeout(_CHECK_TIMEOUT):
                await process.begin(self._plan(spec, Scratch.below(home)), spec, self._options)
                code = await process.wait()
            if code:
                raise RuntimeUnavailable(f"a program in it ends with code {code}")
        except (OSError, RuntimeUnavailable) as error:  # a time-out is the first
            said = process.output_tail() if process is not None else ""
            reason = (
                error.detail.removeprefix(IN_IT) if isinstance(error, RuntimeUnavailable) else str(error) or "time-out"
            )
            raise RuntimeUnavailable(advice(f"{reason}; {said}" if said else reason, look())) from error
        finally:
            if process is not None:
                process.kill()
                await asyncio.shield(process.reap())
            await asyncio.to_thread(erase, home)

    def _make_directories(self, spec: LaunchSpec, scratch: Scratch) -> None:
        # The home comes first: it is what tells that the log directory belongs to a living runtime.
        for directory in (
            spec.home,
            *scratch.in_memory,
            scratch.stage,
            scratch.etc,
            spec.log_dir,
            self._options.packages,
        ):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _let_others_read(self._options.packages)
        for name, text in bubblewrap.MADE_FILES.items():
            (scratch.etc / name).write_text(text)
            (scratch.etc / name).chmod(0o644)

    async def _start(self, spec: LaunchSpec) -> SandboxedProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        try:
            transport, output = await read_output(reading, LogFile(spec.log_dir, spec.log_bytes))
            try:
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", str(_KEEPER), str(os.getpid())),
                    stdin=theirs.fileno(),
                    stdout=writing,
                    stderr=writing,
                    # By it the processes of a node that has died are found (`runtime.homes.kill_leftovers`).
                    env={"COPILOT_HOME": str(spec.home / "copilot")},
                    start_new_session=True,
                )
            except BaseException:
                transport.close()
                raise
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(writing)
            theirs.close()
        return SandboxedProcess(
            child,
            spec.home,
            output,
            transport,
            KeeperChannel(ours),
            lambda owner: self._threads.run(owner.tenant, lambda: self._workspaces.open(owner)),
            self._targets,
            self._released,
        )

    def _plan(self, spec: LaunchSpec, scratch: Scratch) -> dict[str, object]:
        limits, root = self._options.limits, os.geteuid() == 0
        logs = bubblewrap.HOME / ".copilot-logs"
        return {
            "do": "start",
            "network": self._options.own_network,
            "proxy_port": bubblewrap.PROXY_PORT,
            "user": bubblewrap.USER_ID if root else None,
            "tmpfs": [(str(path), limits.scratch(bubblewrap.USER_ID if root else None)) for path in scratch.in_memory],
            "slot": str(scratch.slot),
            "stage": str(scratch.stage),
            "limits": limits.resources(),
            "memory": limits.memory,
            "processes": limits.processes,
            "quota": limits.workspace_quota,
            "filter": seccomp_filter(platform.machine()).hex(),
            "env": dict(self._environment(spec)),
            "argv": bubblewrap.arguments(
                self._options.bubblewrap,
                scratch,
                command=spec.command,
                packages=self._options.packages,
                read_only=self._options.read_only,
                root=root,
                usr_links=bubblewrap.usr_links(),
                inner=cli_arguments(str(logs)),
                own_network=self._options.own_network,
            ),
        }

    def _environment(self, spec: LaunchSpec) -> Mapping[str, str]:
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        env |= {
            "PATH": _PATH,
            "HOME": str(bubblewrap.HOME),
            "USER": "user",
            "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
            "COPILOT_HOME": str(bubblewrap.COPILOT_HOME),
            "COPILOT_PKG_CACHE_HOME": str(bubblewrap.PACKAGES),
            "COPILOT_CONNECTION_TOKEN": spec.token,
            "COPILOT_DISABLE_KEYTAR": "1",
            # Gives the memory of closed sessions back to the system (docs/facts.md, "Memory and wear").
            "MALLOC_TRIM_THRESHOLD_": "131072",
        }
        env |= spec.env
        if self._options.own_network:
            for name in _PROXY_VARIABLES:
                env[name] = f"http://127.0.0.1:{bubblewrap.PROXY_PORT}"
            for name in ("NO_PROXY", "no_proxy"):
                env.pop(name, None)
        return env


class SandboxedProcess(ChildProcess):
    """A runtime in a sandbox. Our child is its keeper; `pid` is the Copilot CLI's, as the host counts."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        home: Path,
        output: RuntimeOutput,
        pipe: asyncio.ReadTransport,
        keeper: KeeperChannel,
        open_workspace: Callable[[RuntimeKey], Coroutine[Any, Any, Workspace]],
        targets: Callable[[RuntimeKey], Iterable[Target]],
        released: Callable[[RuntimeKey], None],
    ) -> None:
        super().__init__(child, home, output, pipe)
        self._keeper = keeper
        self._open_workspace = open_workspace
        self._targets = targets
        self._released = released
        self._proxy: EgressProxy | None = None
        self._egress: Egress | None = None
        self._owner: RuntimeKey | None = None
        self._workspace: Workspace | None = None
        self._runtime = 0
        #: Of the sandbox's first process, with which all others end.
        self._init: int | None = None

    async def begin(self, plan: dict[str, object], spec: LaunchSpec, options: SandboxOptions) -> None:
        """Have the sandbox made. Raises `RuntimeUnavailable`."""
        answer, descriptors = await self._keeper.ask(plan)
        with contextlib.suppress(ProcessLookupError):
            self._init = os.pidfd_open(answer["init"])
        if descriptors:
            listener = socket.socket(fileno=descriptors[0])
            self._egress = options.egress
            reachable = [target_of(spec.reachable)] if spec.reachable else []
            self._proxy = EgressProxy(
                spec.id, options.egress.with_named(reachable), options.proxy, connections=options.connections
            )
            await self._proxy.start(listener)

    @property
    def pid(self) -> int:
        return self._runtime or super().pid

    @property
    def workspace(self) -> Path:
        return Path(bubblewrap.WORKSPACE)

    @property
    def copilot_home(self) -> Path:
        return Path(bubblewrap.COPILOT_HOME)

    @property
    def ended_by(self) -> str | None:
        over = self._keeper.over()
        return f"the sandbox ended it: {over}" if over else None

    async def connect(self) -> socket.socket:
        try:
            answer, (descriptor,) = await self._keeper.ask({"do": "connect", "port": self._output.port.result()})
        except RuntimeUnavailable as error:
            raise ConnectionError(error.detail) from error
        self._runtime = answer["pid"] or self._runtime
        return socket.socket(fileno=descriptor)

    async def claim(self, owner: RuntimeKey) -> None:
        if self._proxy is not None and self._egress is not None:
            self._proxy.egress = self._egress.with_named(self._targets(owner))
        if owner.user is None:
            return
        self._owner = owner
        opening = asyncio.ensure_future(self._open_workspace(owner))
        try:
            async with asyncio.timeout(_WORKSPACE_TIMEOUT) as limit:
                workspace = await asyncio.shield(opening)
        except BaseException as error:
            opening.add_done_callback(_release)  # the thread may go on, and what it has locked would stay so
            if not isinstance(error, OSError):
                raise
            reason = f"it takes longer than {_WORKSPACE_TIMEOUT:g} s" if limit.expired() else str(error)
            raise RuntimeUnavailable(f"the workspace of {owner} cannot be opened: {reason}") from error
        if self._cleaned:
            workspace.release()
            raise RuntimeUnavailable("the sandbox has ended")
        self._workspace = workspace
        answer, _ = await self._keeper.ask({"do": "mount", "path": str(self._workspace.files)})
        log.info("workspace.mounted", owner=str(owner), bytes=answer["bytes"])

    def terminate(self) -> None:
        self._keeper.tell({"do": "terminate"})

    def kill(self) -> None:
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
        super().kill()

    async def cleanup(self) -> None:
        self.kill()
        self._keeper.close()
        if self._proxy is not None:
            await self._proxy.aclose()
        if self._init is not None:
            # Gone when all of the sandbox have: nobody writes to the workspace any more.
            await _ended(self._init)
            os.close(self._init)
            self._init = None
        try:
            await super().cleanup()
        finally:
            if self._workspace is not None:
                self._workspace.release()
                self._workspace = None
            if self._owner is not None:
                self._released(self._owner)


def _let_others_read(packages: Path) -> None:
    """Nothing of it is secret, and what a sandbox runs may be another user. In an image it is so already, and on a file
    system that cannot be written, where even a change to the same is refused."""
    mode = stat.S_IMODE(packages.stat().st_mode)
    if mode & 0o555 != 0o555:
        packages.chmod(mode | 0o755)


def _release(opening: asyncio.Future[Workspace]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().release()


async def _ended(process: int) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(process, lambda: None if ended.done() else ended.set_result(None))
    try:
        await ended
    finally:
        loop.remove_reader(process)
