"""Starts of runtimes: so many at a time, after failures with growing pauses, and in the end not at all for a while."""

from __future__ import annotations

import asyncio
import time

import structlog

from aerodrome.errors import AerodromeError, RuntimeUnavailable
from aerodrome.runtime.circuit import StartCircuit
from aerodrome.runtime.ports import Launcher
from aerodrome.runtime.probe import ProbeModel
from aerodrome.runtime.supervisor import ManagedRuntime

log = structlog.get_logger(__name__)


class Starts:
    def __init__(self, launcher: Launcher, at_once: int) -> None:
        self.circuit = StartCircuit()
        #: Those that have a slot.
        self.under_way = 0
        self._launcher = launcher
        self._slots = asyncio.Semaphore(at_once)
        self._probe = ProbeModel()

    async def open(self) -> None:
        await self._probe.start()

    async def aclose(self) -> None:
        await self._probe.aclose()

    @property
    def pause(self) -> float:
        """Seconds until the next one may be tried, after some that have failed."""
        return self.circuit.wait(time.monotonic())

    def admit(self) -> float:
        """One is about to be tried. Returns the seconds that it has to wait first.

        Raises:
            RuntimeUnavailable: So many have failed that this one would as well.
        """
        wait = self.pause
        if self.circuit.is_open and wait:
            raise RuntimeUnavailable(f"the Copilot CLI does not start: {self.circuit.reason}", retry_after=wait)
        self.circuit.trying(time.monotonic())
        return wait

    async def start(self, runtime: ManagedRuntime, wait: float) -> float:
        """Start the runtime; it is warm afterwards.

        Args:
            wait: What `admit` has said.

        Returns:
            The seconds that it took, without the waiting.

        Raises:
            RuntimeUnavailable: It could not be started; nothing of it is left. Or so many of those before it have
                failed meanwhile that it was not tried.
        """
        on_trial = self.circuit.is_open
        await asyncio.sleep(wait)
        async with self._slots:
            if not on_trial:
                self.admit()
            began = time.monotonic()
            await self._try(runtime)
        self.circuit.succeeded()
        took = time.monotonic() - began
        log.info("runtime.warm", runtime=runtime.id, pid=runtime.pid, seconds=round(took, 3))
        return took

    async def _try(self, runtime: ManagedRuntime) -> None:
        self.under_way += 1
        try:
            await runtime.start(self._launcher, self._probe)
        except Exception as error:
            reason = error.detail if isinstance(error, AerodromeError) else f"{type(error).__name__}: {error}"
            self.circuit.failed(time.monotonic(), reason)
            log.warning("runtime.start_failed", runtime=runtime.id, reason=reason)
            if isinstance(error, AerodromeError):
                raise
            raise RuntimeUnavailable(f"the Copilot CLI could not be started: {reason}") from error
        finally:
            self.under_way -= 1
