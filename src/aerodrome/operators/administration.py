"""What operators can ask for, from anywhere that reaches the coordination store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aerodrome._util.clock import Clock, SystemClock
from aerodrome.coordination.ports import ClusterEvents, Membership, Node
from aerodrome.errors import AerodromeError, Conflict, NotFound, RuntimeUnavailable, all_codes
from aerodrome.operators.requests import Operation, Request, State, Verb, operation_in
from aerodrome.operators.view import Row, node_rows, runtime_rows, snapshot

#: Seconds between two looks at what a node says, between two times that it is told, and until it is given up.
_LOOK = 0.2
_AGAIN = 1.0
_ACKNOWLEDGED_WITHIN = 15.0


class _Store(Membership, ClusterEvents, Protocol):
    pass


@dataclass(frozen=True, slots=True)
class Retirement:
    """A runtime that was asked to go, and how that stands."""

    runtime: str
    #: The name of the node.
    node: str
    operation: Operation

    def describe(self) -> dict[str, Any]:
        operation = self.operation
        ended_at = operation.ended_at
        return {
            "id": operation.id,
            "verb": operation.verb.value,
            "runtime": self.runtime,
            "node": self.node,
            "state": operation.state.value,
            "started_at": operation.started_at,
            "seconds": None if ended_at is None else round(ended_at - operation.started_at, 3),
        }


class Administration:
    """Args:
    store: Of the coordination.
    """

    def __init__(self, store: _Store, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()

    async def nodes(self) -> list[Row]:
        return node_rows(await self._store.nodes(), self._clock.time())

    async def runtimes(self) -> list[Row]:
        return runtime_rows(await self._store.nodes())

    async def snapshot(self) -> Row:
        return snapshot(await self._store.nodes(), self._clock.time())

    async def retire(
        self,
        runtime_id: str,
        verb: Verb,
        *,
        reason: str = "operator",
        wait: float | None = None,
        on_accepted: Callable[[str], None] = lambda node: None,
    ) -> Retirement:
        """Recycle or drain a runtime of any node, and wait for the end of that.

        Args:
            reason: For logs and counters.
            wait: Seconds; afterwards what is returned is still running. ``None``: as long as it takes.
            on_accepted: Called with the node's name when it has begun.

        Raises:
            NotFound: No living node has such a runtime.
            Conflict: Somebody else has asked for something else, or it is being started.
            RuntimeUnavailable: Its node has gone meanwhile, or does not answer; or there is no replacement.
            Draining: The node is being stopped.
            StoreUnavailable: The coordination store is away.
        """
        node = await self._node_of(runtime_id)
        request = Request(f"op-{secrets.token_hex(8)}", verb, runtime_id, node.incarnation, reason)
        asked_at = told_at = self._clock.monotonic()
        await self._store.publish(request.event())
        accepted_at: float | None = None
        while True:
            operation = operation_in(node, request.id)
            now = self._clock.monotonic()
            if operation is None:
                if now - asked_at > _ACKNOWLEDGED_WITHIN:
                    raise RuntimeUnavailable(f"the node {node.name} does not say that it has begun")
                if now - told_at >= _AGAIN:
                    told_at = now
                    await self._store.publish(request.event())
            elif operation.state is State.FAILED:
                raise _error_of(operation)
            else:
                if accepted_at is None:
                    accepted_at = now
                    on_accepted(node.name)
                if operation.state is State.DONE or (wait is not None and now - asked_at >= wait):
                    return Retirement(runtime_id, node.name, operation)
            await asyncio.sleep(_LOOK)
            node = await self._again(node, runtime_id)

    async def drain_node(self, wanted: str) -> Node:
        """Ask a node to drain.

        Args:
            wanted: Its name or its incarnation.

        Raises:
            NotFound: There is none.
            Conflict: Two have that name.
        """
        living = await self._store.nodes()
        # An incarnation is unique. Two nodes may have one name by mistake, or while one follows the other.
        found = [node for node in living if node.incarnation == wanted]
        found = found or [node for node in living if node.name == wanted]
        if len(found) > 1:
            incarnations = ", ".join(node.incarnation for node in found)
            raise Conflict(f"{len(found)} nodes are named {wanted}; name one by its incarnation: {incarnations}")
        if not found or not await self._store.ask_to_drain(found[0].incarnation):
            raise NotFound(f"there is no node {wanted}; `aerodrome nodes ls` lists them")
        return found[0]

    async def wait_until_gone(self, incarnation: str) -> None:
        # Another process: it tells nobody but the store.
        while any(node.incarnation == incarnation for node in await self._store.nodes()):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)

    async def _node_of(self, runtime_id: str) -> Node:
        for node in await self._store.nodes():
            # An attached server has an id at each node, and one name.
            if any(runtime_id in (row.get("id"), row.get("server")) for row in node.load.get("runtimes", [])):
                return node
        raise NotFound(f"no living node has a runtime {runtime_id}; `aerodrome runtimes ls` lists them")

    async def _again(self, node: Node, runtime_id: str) -> Node:
        for living in await self._store.nodes():
            if living.incarnation == node.incarnation:
                return living
        raise RuntimeUnavailable(f"the node {node.name} has gone, and its runtime {runtime_id} with it")


def _error_of(operation: Operation) -> AerodromeError:
    kind = all_codes().get(operation.code or "", AerodromeError)
    return kind(operation.detail or "the node did not say why")
