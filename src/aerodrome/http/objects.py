"""The objects of the API, made from the model's rows."""

from __future__ import annotations

from typing import Any

from aerodrome.http.problems import PROBLEMS, problem
from aerodrome.model import SessionRow, TurnRow, TurnStatus
from aerodrome.sessions.api import Message

#: The problem of a turn that did not complete, when its row names none.
_ENDED_BADLY = {TurnStatus.FAILED: "turn_failed", TurnStatus.INTERRUPTED: "turn_interrupted"}


def session_object(row: SessionRow) -> dict[str, Any]:
    return {
        "id": row.key.id,
        "tenant": row.key.tenant,
        "owner": row.owner,
        "kind": row.kind,
        "state": row.state,
        "model": row.model,
        "title": row.title,
        "members": [{"user": user, "role": role} for user, role in row.people],
        "created_at": row.created_at,
        "last_used_at": row.last_used_at,
        "last_turn": {"id": row.last_turn.id, "status": row.last_turn.status} if row.last_turn else None,
    }


def message_object(message: Message) -> dict[str, Any]:
    value = {
        "id": message.id,
        "role": message.role,
        "content": message.content,
        "turn_id": message.turn_id,
        "created_at": message.created_at,
    }
    if message.author is not None:
        value["author"] = message.author
    return value


def turn_object(row: TurnRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "status": row.status,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "retried": row.retried,
    }


def turn_result(row: TurnRow) -> dict[str, Any]:
    """`{turn, message, usage}`."""
    message = {"id": row.answer["id"], "content": row.answer["content"]} if row.answer else None
    return {"turn": turn_object(row), "message": message, "usage": row.usage}


def turn_problem(row: TurnRow) -> dict[str, Any] | None:
    """The problem document of a final turn; ``None`` if it completed, or was aborted as somebody wished."""
    default = _ENDED_BADLY.get(row.status)
    if default is None:
        return None
    error = row.error or {}
    code = error.get("code", default)
    if code not in PROBLEMS:
        code = default
    detail = error.get("detail") or f"the turn ended as {row.status}"
    return problem(code, detail, retry_after=error.get("retry_after"), extra={"turn": turn_object(row)})
