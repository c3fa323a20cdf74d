"""A session as a row of a table: its columns, and the values in them. Its members are in a table of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aerodrome._util.surrogates import from_blob, to_blob
from aerodrome.model import Isolation, LastTurn, Role, SessionKey, SessionKind, SessionRow, SessionState, TurnStatus

COLUMNS = (
    *("tenant", "id", "owner", "kind", "isolation", "state", "model", "title", "options", "created_at"),
    *("last_used_at", "last_turn_id", "last_turn_status"),
)


def values_of(row: SessionRow) -> tuple[Any, ...]:
    """In the order of `COLUMNS`. The title is a blob, which may hold half characters."""
    return (
        *row.key,
        row.owner,
        row.kind.value,
        row.isolation.value,
        row.state.value,
        row.model,
        None if row.title is None else to_blob(row.title),
        json.dumps(row.options),
        row.created_at,
        row.last_used_at,
        row.last_turn.id if row.last_turn else None,
        row.last_turn.status.value if row.last_turn else None,
    )


def row_of(values: Sequence[Any], members: str | None) -> SessionRow:
    """The inverse of `values_of`; a model may be a blob, too.

    Args:
        members: A JSON object of user and role.
    """
    tenant, id_, owner, kind, isolation, state, model, title, options, created, used, turn_id, turn_status = values
    return SessionRow(
        key=SessionKey(tenant, id_),
        owner=owner,
        kind=SessionKind(kind),
        isolation=Isolation(isolation),
        state=SessionState(state),
        model=from_blob(model) if isinstance(model, bytes) else model,
        title=None if title is None else from_blob(title),
        options=json.loads(options),
        created_at=created,
        last_used_at=used,
        last_turn=None if turn_id is None else LastTurn(turn_id, TurnStatus(turn_status)),
        members={user: Role(role) for user, role in sorted(json.loads(members or "{}").items())},
    )
