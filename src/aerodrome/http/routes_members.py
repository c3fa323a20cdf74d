"""Whom a session is shared with."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from aerodrome.http import schemas
from aerodrome.http.door import caller_of, door_of
from aerodrome.http.encoding import JsonResponse
from aerodrome.http.objects import session_object
from aerodrome.http.openapi import body_codes, responses
from aerodrome.http.routing import ApiRoute, SessionId

router = APIRouter(prefix="/api/v1/sessions/{session_id}/members", tags=["members"], route_class=ApiRoute)

User = Annotated[str, Path(description="A user of your tenant, by the name that its keys are issued for")]


@router.put(
    "/{user}",
    responses=responses(
        {200: {"model": schemas.Session, "description": "The session, with its members"}},
        *body_codes("forbidden", "not_found"),
    ),
)
async def set_member(request: Request, session_id: SessionId, user: User, body: schemas.MemberBody) -> Response:
    """Share a session with a user, or change what the user may do in it; only its owner may. It holds at once.

    A `reader` sees the session, its history and its events, and may copy it. A `writer` also sends prompts, aborts
    turns, answers requests and sets the title.
    """
    row = await door_of(request).sessions.set_member(caller_of(request), session_id, user, body.role)
    return JsonResponse(session_object(row))


@router.delete(
    "/{user}",
    status_code=204,
    response_class=Response,
    responses=responses(
        {204: {"description": "The user is no member any more"}},
        "invalid",
        "forbidden",
        "not_found",
        "store_unavailable",
    ),
)
async def remove_member(request: Request, session_id: SessionId, user: User) -> Response:
    """Share a session with a user no more; its owner may, and members may remove themselves.

    It holds at once: the user's streams of the session end with event `error` and code `not_found`. Prompts that were
    accepted before are still answered.
    """
    await door_of(request).sessions.remove_member(caller_of(request), session_id, user)
    return Response(status_code=204)
