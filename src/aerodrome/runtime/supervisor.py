"""One runtime from start to end: launch, prove ready, watch, stop.

Liveness and readiness are different questions. *Ready* is asked once, with a session that takes a turn
(`aerodrome.runtime.probe`). *Alive* is asked for ever: the process runs, the control link stands, and a ping is
answered within its deadline; a hung CLI never answers, so a probe without a deadline would hang with it (trap 16).
Whatever is not alive is killed, and everybody who holds the runtime is told once, through `lost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from aerodrome.errors import RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.deaths import Death, death_of
from aerodrome.runtime.homes import erase, has_home
from aerodrome.runtime.link import LinkClosed, RemoteError
from aerodrome.runtime.machine import RuntimeMachine, RuntimeState, Stimulus
from aerodrome.runtime.measure import cpu_seconds, oom_kills, rss_of
from aerodrome.runtime.ports import Cuttable, Launcher, LaunchSpec, RuntimeProcess
from aerodrome.runtime.probe import ProbeModel, prove_ready
from aerodrome.runtime.serving import ServingRuntime
from aerodrome.wire.framing import DEFAULT_MAX_FRAME

log = structlog.get_logger(__name__)

#: Seconds that a process gets to end by itself when its connection is gone.
_LAST_MOMENTS = 1.0
#: Part of the time without an answer in which a runtime that hangs has to have been at work to be `Death.STUCK`. One
#: that was stopped, or waits for something, is not at all; and on a busy machine nobody gets much.
_AT_WORK = 0.05
#: Reasons of earlier recyclings that a listing tells.
_TOLD = 10


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What every runtime of this node is started and watched with. Times in seconds."""

    command: Path
    #: Homes of the runtimes; each is erased when its runtime ends.
    homes: Path
    #: Output and logs of the runtimes, the latest `kept_logs` of them.
    logs: Path
    env: Mapping[str, str] = field(default_factory=dict)
    #: What else is in it, unless `env` says otherwise: asked anew for each runtime, because there are secrets in it.
    env_at_start: Callable[[], Mapping[str, str]] = dict
    start_timeout: float = 30.0
    ping_interval: float = 5.0
    ping_timeout: float = 5.0
    stop_timeout: float = 5.0
    request_timeout: float = 30.0
    #: Largest message from a runtime, in bytes.
    max_frame: int = DEFAULT_MAX_FRAME
    log_bytes: int = 1 << 20
    kept_logs: int = 20


class ManagedRuntime(ServingRuntime):
    """A runtime and what we know of it. Made by `start`; afterwards `claim`, `control`, `stop`."""

    def __init__(self, runtime_id: str, options: RuntimeOptions) -> None:
        super().__init__(
            runtime_id,
            request_timeout=options.request_timeout,
            ping_timeout=options.ping_timeout,
            max_frame=options.max_frame,
        )
        #: Why runtimes that this one is the latest replacement of were recycled, the first first.
        self.replaces: tuple[str, ...] = ()
        #: Why it is being recycled or drained, while it is.
        self.retiring = ""
        self.started = time.monotonic()
        #: Proportional set size with its children, in bytes, when it was last looked at.
        self.memory = 0
        self.on_lost: Callable[[ManagedRuntime], None] | None = None
        self._options = options
        self._machine = RuntimeMachine()
        self._process: RuntimeProcess | None = None
        self._discarding = False
        self._furnishing: asyncio.Task[str | None] | None = None
        #: We know that it is not by itself that it ends.
        self._death: Death | None = None
        #: Processor time and monotonic time of the latest sign of life.
        self._alive_at = (0.0, time.monotonic())
        #: What the kernel had killed for want of memory by then.
        self._oom_kills = oom_kills()
        #: Nothing of it is left.
        self._ended = asyncio.Event()

    # --- what it is ---

    @property
    def state(self) -> RuntimeState:
        return self._machine.state

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def connect(self) -> socket.socket:
        """A new connection to it. Raises `RuntimeUnavailable` when it has no process, and `OSError`."""
        if self._process is None:
            raise RuntimeUnavailable("the runtime has not been started")
        return await self._process.connect()

    @property
    def home(self) -> Path:
        return self._options.homes / self.id

    @property
    def copilot_home(self) -> Path:
        """As the runtime sees it."""
        return self._process.copilot_home if self._process else self.home / "copilot"

    @property
    def workspace(self) -> Path:
        """Where its sessions work, as the runtime sees it."""
        return self._process.workspace if self._process else self.home / "workspace"

    def describe(self) -> dict[str, Any]:
        """The row of `aerodrome runtimes ls`."""
        rss = rss_of(self.pid) if self.pid is not None and not self.state.is_final else 0
        return {
            **super().describe(),
            "pid": self.pid,
            "state": self.state.value,
            "rss_bytes": rss,
            "pss_bytes": self.memory or None,
            "recycles": len(self.replaces),
            "reasons": list(self.replaces[-_TOLD:]),
            "retiring": self.retiring or None,
            "alone": self.alone,
        }

    # --- its life ---

    async def start(self, launcher: Launcher, probe: ProbeModel) -> None:
        """Launch, connect and prove ready: then it is `warm`.

        Raises:
            RuntimeUnavailable: With the reason; nothing of the runtime is left but its logs.
        """
        token = self.token = secrets.token_urlsafe(32)
        spec = LaunchSpec(
            id=self.id,
            command=self._options.command,
            home=self.home,
            token=token,
            log_dir=self._options.logs / self.id,
            env={**self._options.env_at_start(), **self._options.env},
            log_bytes=self._options.log_bytes,
            reachable=probe.base_url,
        )
        try:
            self._process = await launcher.launch(spec, timeout=self._options.start_timeout)
            self._tasks.start(self._watch_process(self._process), "watch")
            await self.control.open(self._process.connect, token, str(self.workspace))
            await prove_ready(self.control, probe, str(self.workspace), timeout=self._options.start_timeout)
            if self.state is not RuntimeState.STARTING:
                raise RuntimeUnavailable(f"the Copilot CLI ended while it was started: {self.lost_reason or 'stopped'}")
        except BaseException as error:
            await asyncio.shield(self._discard(str(error) or type(error).__name__))
            raise
        self._machine.apply(Stimulus.READY)
        self.last_held = time.monotonic()  # nobody could hold it before: a start that took long was no idleness
        self._is_alive()
        self._tasks.start(self._watch_health(), "health")

    def claim(self, key: RuntimeKey) -> None:
        """Give it to one user or tenant, for the rest of its life."""
        self._machine.apply(Stimulus.CLAIM)
        self.key = key
        self.last_held = time.monotonic()
        assert self._process is not None
        self._furnishing = self._tasks.start(self._furnish(self._process, key), "furnish")

    async def furnished(self) -> None:
        """Wait until it has what its user's sessions need.

        Raises:
            RuntimeUnavailable: It cannot have it, and is lost.
        """
        if self._furnishing is not None:
            await asyncio.wait({self._furnishing})
            if not self._furnishing.cancelled() and (refused := self._furnishing.result()) is not None:
                raise RuntimeUnavailable(refused)

    async def _furnish(self, process: RuntimeProcess, key: RuntimeKey) -> str | None:
        try:
            await process.claim(key)
        except RuntimeUnavailable as error:
            self._lose(error.detail)
            return error.detail
        return None

    def retire(self, reason: str) -> None:
        """No session comes to it any more; what it has, it keeps until `stop`."""
        self._machine.apply(Stimulus.RETIRE)
        self.retiring = reason

    async def stop(self) -> None:
        """End it gracefully, then by SIGTERM, then by SIGKILL; returns when it is gone. Safe to call twice."""
        if self.state.is_final:
            await self._ended.wait()
            return
        # Before the first await: from here on nobody can claim it or take a place in it.
        self._machine.apply(Stimulus.STOP)
        try:
            await self._end_gracefully()
        finally:
            await asyncio.shield(self._discard("stopped"))

    def adopt(self, connection: Cuttable) -> None:
        """See `ports.Runtime`. Its connections end with its process."""

    def kill(self, reason: str) -> None:
        """End it now; whoever holds it learns that it is lost."""
        self._lose(reason, Death.OUTSIDE)

    def abort(self) -> None:
        """Kill its processes, in whatever state it is. For the end of our own process: nothing is cleared up."""
        if self._process is not None:
            self._process.kill()

    # --- watching ---

    async def _watch_process(self, process: RuntimeProcess) -> None:
        code = await process.wait()
        said = process.output_tail()[-300:]
        self._lose(f"the process ended with code {code}" + (f"; it said: {said}" if code and said else ""))

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(self._options.ping_interval)
            try:
                await self.control.request("ping", {}, timeout=self._options.ping_timeout)
            except TimeoutError:
                self._lose(f"no answer to a ping within {self._options.ping_timeout:g} s: it hangs", self._hung())
                return
            except (LinkClosed, RemoteError) as error:
                self._lose(f"the ping failed: {error}")
                return
            self._is_alive()

    def _is_alive(self) -> None:
        self._alive_at = (self._cpu(), time.monotonic())
        self._oom_kills = oom_kills()

    def _cpu(self) -> float:
        return 0.0 if self.pid is None else cpu_seconds(self.pid)

    def _hung(self) -> Death:
        """What an end is for which it has not answered: one that was not at work was stopped by somebody."""
        cpu, moment = self._alive_at
        return Death.STUCK if self._cpu() - cpu >= _AT_WORK * (time.monotonic() - moment) else Death.OUTSIDE

    def _lose_hung(self, reason: str) -> None:
        self._lose(reason, self._hung())

    def _lose(self, reason: str, death: Death | None = None) -> None:
        """The first of process watcher, health check and link to notice the end comes here first.

        Args:
            death: What it is, if we know; else it shows in the process, which gets a moment to end by itself.
        """
        if self.state.is_final or self.lost.is_set() or self.state is RuntimeState.DRAINING:
            return
        if self._process is not None and (limit := self._process.ended_by) is not None:
            # What a user's own tools have used up is no fault of the session, which has to be there to clear it away.
            alone = self.key is not None and self.key.user is not None
            reason, death = limit, Death.OUTSIDE if alone else Death.MEMORY
        self.lost_reason = reason
        starting = self.state is RuntimeState.STARTING
        self._machine.apply(Stimulus.ENDED)
        self.lost.set()
        self._death = death
        if self._process is not None and death is not None:
            self._process.kill()
        self.control.abort(reason)
        if starting:
            return  # `start` is under way, sees the link close and cleans up
        log.warning("runtime.lost", runtime=self.id, pid=self.pid, key=str(self.key), reason=reason)
        self._tasks.start(self._discard(reason), "discard")
        if self.on_lost is not None:
            self.on_lost(self)

    # --- ending ---

    async def _end_gracefully(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(LinkClosed, RemoteError, TimeoutError):
            async with asyncio.timeout(self._options.stop_timeout):
                await self.control.request("runtime.shutdown", {})
                await process.wait()
        if process.exit_code is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.stop_timeout):
                    await process.wait()
        # `_discard` kills what is left.

    async def _discard(self, reason: str) -> None:
        """Nothing of an ended runtime stays but its logs. Whoever comes second waits for the first."""
        if self._discarding:
            await self._ended.wait()
            return
        self._discarding = True
        self.lost_reason = self.lost_reason or reason
        self._machine.apply(Stimulus.ENDED)
        try:
            if self._process is not None:
                await self._clear(self._end(self._process))
            await self._clear(self.control.aclose())
            await self._clear(asyncio.to_thread(erase, self.home))
            await self._clear(asyncio.to_thread(_forget_old_logs, self._options))
        finally:
            self._died(Death.OUTSIDE)
            self._ended.set()
        await self._tasks.aclose()

    async def _clear(self, step: Coroutine[Any, Any, None]) -> None:
        """What cannot be done, for too many files are open or the disk fails, keeps nothing else from being done."""
        try:
            await step
        except Exception:
            log.exception("runtime.not_cleared", runtime=self.id, pid=self.pid)

    async def _end(self, process: RuntimeProcess) -> None:
        if self.lost.is_set() and self._death is None:
            # Its connection may be gone before its process is, and killed now it would not say what it died of.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_MOMENTS):
                    await process.wait()
        code = process.exit_code
        process.kill()
        await process.wait()
        await process.cleanup()  # all that it has said has come in now
        self._died(self._death or death_of(code, process.output_tail(), oom_kills=oom_kills() - self._oom_kills))

    def _died(self, death: Death) -> None:
        if not self.death.done():
            self.death.set_result(death)


def _forget_old_logs(options: RuntimeOptions) -> None:
    """Keep the logs of the runtimes that have a home, which are the living ones, and of the latest ended ones."""

    def age(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0  # erased by another process at this moment

    if options.logs.is_dir():
        # Other aerodrome processes keep the logs of their runtimes here too.
        ended = [path for path in options.logs.iterdir() if not has_home(options.homes, path.name)]
        for path in sorted(ended, key=age, reverse=True)[options.kept_logs :]:
            erase(path)
