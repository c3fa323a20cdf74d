"""Prompts: send one into a session, ask one without, read what was said."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from aerodrome.http import schemas
from aerodrome.http.door import caller_of, door_of, wants_stream
from aerodrome.http.encoding import JsonResponse
from aerodrome.http.objects import message_object
from aerodrome.http.openapi import TURN_CODES, body_codes, responses, turn_docs
from aerodrome.http.routing import ApiRoute, Cursor, IdempotencyKey, SessionId, Trace
from aerodrome.http.turns import answer
from aerodrome.sessions.api import Ask, SendMessage

router = APIRouter(prefix="/api/v1", tags=["messages"], route_class=ApiRoute)


@router.post("/ask", responses=responses(turn_docs(), *body_codes("forbidden", *TURN_CODES)))
async def ask(request: Request, body: schemas.AskBody, trace: Trace = False) -> Response:
    """Ask one prompt in a session of its own, of which nothing remains."""
    turn = await door_of(request).sessions.ask(
        caller_of(request),
        Ask(
            prompt=body.prompt,
            model=body.model,
            system_message=body.system_message,
            attachments=body.attachments,
            # Pieces of an answer are of use to a stream only.
            streaming=wants_stream(request),
        ),
    )
    return await answer(request, turn, trace=trace)


@router.post(
    "/sessions/{session_id}/messages",
    responses=responses(
        turn_docs(), *body_codes("forbidden", "not_found", "session_busy", "conflict", "quarantined", *TURN_CODES)
    ),
)
async def send_message(
    request: Request,
    session_id: SessionId,
    body: schemas.SendBody,
    idempotency_key: IdempotencyKey = None,
    trace: Trace = False,
) -> Response:
    """Send a prompt; the answer comes when the turn is done, or as a stream with `Accept: text/event-stream`.

    A turn that was aborted is answered with 200 and `turn.status` `aborted`: somebody asked for it.
    """
    turn = await door_of(request).sessions.send(
        caller_of(request),
        session_id,
        SendMessage(
            prompt=body.prompt,
            attachments=body.attachments,
            on_busy=body.on_busy,
            idempotency_key=idempotency_key,
            told_at_end=not wants_stream(request),
        ),
    )
    return await answer(request, turn, trace=trace)


@router.get(
    "/sessions/{session_id}/messages",
    responses=responses(
        {200: {"model": schemas.History, "description": "A page of the history, the oldest message first"}},
        "invalid",
        "not_found",
        "store_unavailable",
    ),
)
async def read_messages(
    request: Request,
    session_id: SessionId,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> Response:
    """Read the session's history."""
    page = await door_of(request).sessions.history(caller_of(request), session_id, cursor=cursor, limit=limit)
    return JsonResponse({"messages": [message_object(message) for message in page.messages], "next": page.next})
