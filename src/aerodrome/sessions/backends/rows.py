"""A turn as a row of a table: its columns, and the values in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aerodrome._util.surrogates import from_blob, to_blob
from aerodrome.model import SessionKey, TurnRow, TurnStatus

COLUMNS = (
    *("tenant", "session", "id", "author", "status", "prompt", "incarnation", "attachments", "idempotency_key"),
    *("digest", "message_id", "answer", "usage", "error", "retried", "tool_ran", "created_at", "started_at"),
    "ended_at",
)


def values_of(row: TurnRow) -> tuple[Any, ...]:
    """In the order of `COLUMNS`. Text of users is a blob, which may hold half characters."""
    return (
        *row.key,
        row.id,
        row.author,
        row.status.value,
        to_blob(row.prompt),
        row.incarnation,
        json.dumps(row.attachments),
        None if row.idempotency_key is None else to_blob(row.idempotency_key),
        row.digest,
        row.message_id,
        to_json(row.answer),
        to_json(row.usage),
        to_json(row.error),
        row.retried,
        row.tool_ran,
        row.created_at,
        row.started_at,
        row.ended_at,
    )


def row_of(values: Sequence[Any]) -> TurnRow:
    """The inverse of `values_of`."""
    tenant, session, *values = values
    (id_, author, status, prompt, incarnation, attachments, idempotency_key, digest, message_id, *rest) = values
    (answer, usage, error, retried, tool_ran, created_at, started_at, ended_at) = rest
    return TurnRow(
        key=SessionKey(tenant, session),
        id=id_,
        author=author,
        status=TurnStatus(status),
        prompt=from_blob(prompt),
        incarnation=incarnation,
        attachments=json.loads(attachments),
        idempotency_key=None if idempotency_key is None else from_blob(idempotency_key),
        digest=digest,
        message_id=message_id,
        answer=None if answer is None else json.loads(answer),
        usage=None if usage is None else json.loads(usage),
        error=None if error is None else json.loads(error),
        retried=bool(retried),
        tool_ran=bool(tool_ran),
        created_at=created_at,
        started_at=started_at,
        ended_at=ended_at,
    )


def to_json(value: dict[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value)
