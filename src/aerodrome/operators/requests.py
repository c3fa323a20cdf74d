"""How an operator's request reaches the node that it is for, and how its outcome comes back.

There is no connection to the node: whoever asks needs the configuration and nothing else. The request is a cluster
event, which may be lost, and is sent again until the node says in its heartbeat that it has it. The node takes a
request once, by its id, and says for a while how it ended. It beats at once when there is news.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

import structlog

from aerodrome._util.clock import Clock
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.ports import ClusterEvent, Node
from aerodrome.errors import AerodromeError, Conflict

log = structlog.get_logger(__name__)

#: The kind of the cluster event.
REQUESTED = "operator.request"
#: Key of a node's heartbeat under which its requests are.
OPERATIONS = "operations"
#: Seconds for which a node says how a request has ended, and how many of those it remembers.
_KEPT_FOR = 60.0
_KEPT = 50


class Verb(StrEnum):
    RECYCLE = "recycle"
    DRAIN = "drain"


class State(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Request:
    id: str
    verb: Verb
    runtime: str
    #: The incarnation of the node that has the runtime.
    node: str
    #: For logs and counters.
    reason: str

    def event(self) -> ClusterEvent:
        return ClusterEvent(REQUESTED, json.dumps(asdict(self)))

    @classmethod
    def of(cls, event: ClusterEvent) -> Request | None:
        """``None``: it is none, or one of another release that is not understood."""
        if event.kind != REQUESTED:
            return None
        try:
            fields = json.loads(event.subject)
            return cls(**{**fields, "verb": Verb(fields["verb"])})
        except (ValueError, TypeError, KeyError):
            log.warning("operator.request_not_understood")
            return None


@dataclass(frozen=True, slots=True)
class Operation:
    """What has become of a request."""

    id: str
    verb: Verb
    runtime: str
    state: State
    #: Unix times.
    started_at: float
    ended_at: float | None = None
    #: Of the error that it has failed with.
    code: str | None = None
    detail: str | None = None


def operation_in(node: Node, request_id: str) -> Operation | None:
    """What the node says of the request."""
    for told in node.load.get(OPERATIONS, []):
        if told["id"] == request_id:
            return Operation(**{**told, "verb": Verb(told["verb"]), "state": State(told["state"])})
    return None


class RuntimeVerbs(Protocol):
    """What a node does (`runtime.pool.RuntimePool`)."""

    async def recycle(self, runtime_id: str, reason: str) -> None: ...

    async def drain(self, runtime_id: str) -> None: ...


class RequestDesk:
    """The node's end.

    Args:
        own: The incarnation this node lives in now.
        on_news: Called when something has begun or ended.
    """

    def __init__(
        self,
        verbs: RuntimeVerbs,
        *,
        own: Callable[[], str],
        tasks: TaskOwner,
        clock: Clock,
        on_news: Callable[[], None],
    ) -> None:
        self._verbs = verbs
        self._own = own
        self._tasks = tasks
        self._clock = clock
        self._on_news = on_news
        self._operations: dict[str, Operation] = {}

    def hear(self, event: ClusterEvent) -> None:
        request = Request.of(event)
        if request is None or request.node != self._own() or request.id in self._operations or self._tasks.closed:
            return
        begun = Operation(request.id, request.verb, request.runtime, State.RUNNING, self._clock.time())
        if (other := self._other(request)) is not None:
            self._end(begun, Conflict(f"another operator has asked to {other} it, which is under way"))
            return
        self._operations[request.id] = begun
        self._tasks.start(self._perform(request, begun), f"{request.verb} {request.runtime}")
        self._on_news()

    def describe(self) -> list[dict[str, Any]]:
        """For the heartbeat: what is under way, and what has ended lately."""
        oldest = self._clock.time() - _KEPT_FOR
        ended = [operation for operation in self._operations.values() if operation.ended_at is not None]
        for number, operation in enumerate(ended):
            if (operation.ended_at or 0.0) < oldest or len(ended) - number > _KEPT:
                del self._operations[operation.id]
        return [asdict(operation) for operation in self._operations.values()]

    def _other(self, request: Request) -> Verb | None:
        """Whoever asks for the same waits for the same end; for two things at once there is none."""
        for operation in self._operations.values():
            if (
                operation.runtime == request.runtime
                and operation.state is State.RUNNING
                and operation.verb is not request.verb
            ):
                return operation.verb
        return None

    async def _perform(self, request: Request, begun: Operation) -> None:
        try:
            if request.verb is Verb.RECYCLE:
                await self._verbs.recycle(request.runtime, request.reason)
            else:
                await self._verbs.drain(request.runtime)
        except AerodromeError as error:
            self._end(begun, error)
        except Exception as error:
            log.exception("operator.request_crashed", verb=request.verb.value, runtime=request.runtime)
            self._end(begun, AerodromeError(f"internal error: {type(error).__name__}; the node's log has more"))
        else:
            self._end(begun, None)

    def _end(self, operation: Operation, error: AerodromeError | None) -> None:
        state = State.DONE if error is None else State.FAILED
        code, detail = (error.code, error.detail) if error is not None else (None, None)
        ended = replace(operation, state=state, ended_at=self._clock.time(), code=code, detail=detail)
        # Behind those that have ended before.
        self._operations.pop(operation.id, None)
        self._operations[operation.id] = ended
        log.info("operator.request_ended", verb=operation.verb.value, runtime=operation.runtime, state=state.value)
        self._on_news()
