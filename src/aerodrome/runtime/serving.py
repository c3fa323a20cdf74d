"""What every runtime is while it serves, whoever has started it: a control link, the sessions that it is asked to let
go of, and an end that everybody who holds it is told of once.

How it is started, watched and ended is the business of those that derive from it: `supervisor.ManagedRuntime` for a
process of our own, `attached.runtime.AttachedRuntime` for somebody else's server.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from aerodrome._util.tasks import TaskOwner
from aerodrome.model import RuntimeKey, SessionKey
from aerodrome.runtime.control import ControlLink
from aerodrome.runtime.deaths import Death
from aerodrome.runtime.link import LinkClosed, RemoteError
from aerodrome.runtime.wear import Latency

#: Seconds that others wait for a runtime to let go of a session: they may need its place.
LET_GO = 10.0
#: Seconds that an answer to `session.detach` is waited for in the background.
_PATIENCE = 86400.0


class ServingRuntime:
    """Args:
    request_timeout, ping_timeout: Seconds.
    max_frame: Largest message from the runtime, in bytes.
    """

    def __init__(self, runtime_id: str, *, request_timeout: float, ping_timeout: float, max_frame: int) -> None:
        self.id = runtime_id
        self.key: RuntimeKey | None = None
        #: Sessions that have, or are about to get, a place in it. Counted before the first await (trap 11).
        self.reserved = 0
        self.turns = 0
        self.started_at = time.time()
        #: Monotonic time of the last moment in which it held a session; for the idle time-out.
        self.last_held = time.monotonic()
        #: Set once, when the runtime has gone without being asked to; `lost_reason` says why.
        self.lost = asyncio.Event()
        self.lost_reason = ""
        #: Called when a session that it was asked to let go of is gone.
        self.on_let_go: Callable[[], None] | None = None
        #: Sessions that it was asked to let go of and has not yet: a session of that name must not come here.
        self.letting_go: dict[str, asyncio.Task[bool]] = {}
        #: Its connection token; whoever has it may do everything in the runtime.
        self.token = ""
        #: How long it takes to answer what sessions ask of it.
        self.latency = Latency()
        #: Sessions that are being loaded in it, or have just failed to be.
        self.loading: Counter[SessionKey] = Counter()
        #: Somebody else's process (see `ports.Runtime`).
        self.foreign = False
        #: Kept for one session alone, because of what it has done, or may have done, to other runtimes.
        self.alone = False
        #: How it came to its end, once that is known.
        self.death: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
        self.control = ControlLink(self._link_closed, request_timeout, max_frame)
        self._ping_timeout = ping_timeout
        self._tasks = TaskOwner(f"runtime {runtime_id}")

    async def answers(self, unanswered: str) -> bool:
        """A request about one session was not answered in time. That may be the session's own trouble, or that of a
        client that the runtime waits for, and no reason to take the runtime from all others: it is, if it does not
        answer a ping either.

        Args:
            unanswered: The request's method.
        """
        if self.lost.is_set():
            return False
        try:
            await self.control.request("ping", {}, timeout=self._ping_timeout)
        except (LinkClosed, RemoteError):
            self._lose(f"no answer to {unanswered}, nor to a ping")
            return False
        except TimeoutError:
            self._lose_hung(f"no answer to {unanswered}, nor to a ping")
            return False
        return True

    async def takes_prompts(self) -> bool:
        """A process of our own is killed before its sessions go elsewhere, and what it was handed and has not read goes
        with it: nothing need be asked."""
        return not self.lost.is_set()

    def note_load(self, session_id: str, *, taken: bool) -> None:
        """All processes of our own are alike, and are tried before they get a session: nothing follows from it."""

    async def let_go(self, session_id: str) -> bool:
        """Have it unload a session. ``False``: it refuses, or has not done it in time; in the latter case it is still
        expected to, and the session is in `letting_go` until then."""
        if self.lost.is_set() or self._tasks.closed:
            return False
        task = self.letting_go.get(session_id)
        if task is None:
            task = self.letting_go[session_id] = self._tasks.start(self._detach(session_id), f"detach {session_id}")
        done, _ = await asyncio.wait({task}, timeout=min(LET_GO, self.control.request_timeout))
        if done:
            return not task.cancelled() and task.result()
        await self.answers("session.detach")
        return False

    async def _detach(self, session_id: str) -> bool:
        try:
            answer = await self.control.request("session.detach", {"sessionId": session_id}, timeout=_PATIENCE)
            return isinstance(answer, dict) and bool(answer.get("success"))
        except (LinkClosed, RemoteError, TimeoutError):
            return False
        finally:
            self.letting_go.pop(session_id, None)
            if self.on_let_go is not None:
                self.on_let_go()

    def kill(self, reason: str) -> None:
        """End it now, as far as it is ours; whoever holds it learns that it is lost."""
        self._lose(reason)

    def _link_closed(self, reason: str) -> None:
        self._lose(reason)

    def _lose_hung(self, reason: str) -> None:
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What all of them have of the row of `aerodrome runtimes ls`."""
        return {
            "id": self.id,
            "tenant": self.key.tenant if self.key else None,
            "user": self.key.user if self.key else None,
            "sessions": self.reserved,
            "turns": self.turns,
            "started_at": self.started_at,
        }
