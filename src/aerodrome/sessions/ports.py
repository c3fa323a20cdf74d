"""What the sessions room needs from a durable store beside the files: the message ledger.

An accepted prompt is recorded before it is sent, because the CLI's answer to `session.send` is not durable
(docs/facts.md, "Durability"). A turn's status moves `queued -> running -> (completed | failed | aborted |
interrupted)` and never leaves a final one: whoever finishes it first is right.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from aerodrome.model import SessionKey, TurnRow, TurnStatus


class Ledger(Protocol):
    """All methods raise `StoreUnavailable` when the store can not be used."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def accept(self, row: TurnRow, *, durable: bool = True) -> TurnRow | None:
        """Record a turn (`queued` or `running`): ``None``.

        If its idempotency key is known in the session, nothing is recorded and the earlier row is returned.

        Args:
            durable: With ``False`` a power failure may take it back, until something durable is recorded after it.
        """
        ...

    async def start(self, key: SessionKey, turn_id: str, at: float) -> bool:
        """`queued -> running`. Idempotent for a running turn. ``False``: it is final or unknown."""
        ...

    async def note(
        self,
        key: SessionKey,
        turn_id: str,
        *,
        message_id: str | None = None,
        tool_ran: bool | None = None,
        retried: bool | None = None,
    ) -> None:
        """Record what happened in a turn that is not final."""
        ...

    async def finish(
        self,
        key: SessionKey,
        turn_id: str,
        status: TurnStatus,
        at: float,
        *,
        answer: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        message_id: str | None = None,
        free_key: bool = False,
    ) -> bool:
        """Make the turn final. ``False``: it was final before (nothing is changed), or is unknown.

        Args:
            message_id: ``None`` leaves what was noted.
            free_key: The prompt never reached a runtime: its idempotency key may be used for another try.
        """
        ...

    async def get(self, key: SessionKey, turn_id: str) -> TurnRow | None: ...

    async def by_idempotency_key(self, key: SessionKey, idempotency_key: str) -> TurnRow | None: ...

    async def unfinished(
        self, key: SessionKey | None = None, limit: int = 1000, *, except_of: Collection[str] = ()
    ) -> list[TurnRow]:
        """Turns that are not final, the oldest first: of one session, or of all; `except_of` these incarnations."""
        ...

    async def turns(self, key: SessionKey) -> list[TurnRow]:
        """All turns of a session, the oldest first."""
        ...

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        """Sessions of which anything is stored, in an order of the store's own, behind `after`: for the search for what
        a deletion that was cut short has left behind."""
        ...

    async def turn_ids(self, key: SessionKey) -> list[str]:
        """The ids of all turns of a session, the oldest first."""
        ...

    async def forget(self, key: SessionKey, turn_ids: Collection[str]) -> bool:
        """Remove these turns of the session, for deletion. ``False``: there is none of them."""
        ...
