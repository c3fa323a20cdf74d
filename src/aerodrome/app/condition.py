"""How a node stands: what it says to whoever asks whether it is ready, and to the other nodes with each heartbeat."""

from __future__ import annotations

from typing import Any

import psutil

import aerodrome
from aerodrome._util.clock import Clock
from aerodrome.app.drain import Drain
from aerodrome.app.secret_keeper import SecretKeeper
from aerodrome.coordination.heartbeat import Heartbeat
from aerodrome.errors import Draining
from aerodrome.operators.requests import OPERATIONS, RequestDesk
from aerodrome.operators.view import busiest
from aerodrome.runtime.attached.fleet import RELEASED
from aerodrome.runtime.attached.pool import AttachedPool
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.pool import RuntimePool
from aerodrome.runtime.sources import AttachedOrLaunched
from aerodrome.sessions.recovery import EARLIER
from aerodrome.sessions.service import SessionService


class Condition:
    """Implements `http.ports.Readiness`.

    Args:
        pool, attached, runtimes: Runtimes of our own, those of others, and both.
    """

    def __init__(
        self,
        name: str,
        *,
        heartbeat: Heartbeat,
        sessions: SessionService,
        pool: RuntimePool,
        attached: AttachedPool,
        runtimes: AttachedOrLaunched,
        desk: RequestDesk,
        secrets: SecretKeeper,
        drain: Drain,
        clock: Clock,
    ) -> None:
        self._name = name
        self._heartbeat = heartbeat
        self._sessions = sessions
        self._pool = pool
        self._attached = attached
        self._runtimes = runtimes
        self._desk = desk
        self._secrets = secrets
        self._drain = drain
        self._clock = clock
        self._started_at = clock.time()
        self._process = psutil.Process()

    def ready(self) -> tuple[bool, str]:
        if self._drain.begun or self._sessions.draining:
            raise Draining("this node is shutting down")
        if not self._heartbeat.may_serve:
            return False, "the coordination store cannot be reached"
        if self._attached.runtimes:
            return True, "accepting work"
        if (reason := self._pool.unavailable_reason) is not None:
            return False, f"the Copilot CLI does not start: {reason}"
        # Where none is kept warm, the first is started for a session, and none comes to a node that is not ready.
        if self._pool.keeps_warm and not any(
            r.state is RuntimeState.WARM or r.state.serves for r in self._pool.runtimes
        ):
            return False, "the first runtime is being started"
        return True, "accepting work"

    @property
    def accepting(self) -> bool:
        """What `ready` says, in a word."""
        return not self._drain.begun and not self._sessions.draining and self.ready()[0]

    @property
    def heartbeat_age(self) -> float:
        """Seconds (see `Heartbeat.age`)."""
        return self._heartbeat.age

    def load(self) -> dict[str, Any]:
        """What the others, and operators, learn of this node; as JSON values."""
        runtimes = [{**row, "node": self._name} for row in self._runtimes.describe()]
        return {
            "runtimes": runtimes,
            "recycles": dict(self._pool.retirements.recycled),
            "sessions": len(self._sessions.live),
            "tenants": busiest(self._sessions.tenants),
            "wait": round(self._sessions.wait, 3),
            "rss_bytes": self._process.memory_info().rss,
            OPERATIONS: self._desk.describe(),
            "draining": self._drain.begun,
            "started_at": self._started_at,
            "version": aerodrome.__version__,
            "beat_at": self._clock.time(),
            "secrets": self._secrets.problems,
            RELEASED: self._attached.released,
            EARLIER: list(self._heartbeat.earlier),
        }
