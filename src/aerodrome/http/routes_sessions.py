"""Sessions: open, list, read, retitle, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from aerodrome.http import schemas
from aerodrome.http.door import caller_of, door_of
from aerodrome.http.encoding import JsonResponse
from aerodrome.http.objects import session_object
from aerodrome.http.openapi import body_codes, responses
from aerodrome.http.routing import ApiRoute, Cursor, SessionId
from aerodrome.sessions.api import OpenSession

router = APIRouter(prefix="/api/v1", tags=["sessions"], route_class=ApiRoute)


@router.post(
    "/sessions",
    status_code=201,
    responses=responses(
        {
            201: {"model": schemas.Session, "description": "A new session"},
            200: {
                "model": schemas.Session,
                "description": "The session of that id that is yours or shared with you, unchanged",
            },
        },
        *body_codes("forbidden", "not_found", "capacity", "runtime_unavailable"),
    ),
)
async def open_session(request: Request, body: schemas.OpenSessionBody | None = None) -> Response:
    """Open a session: create it, or come back to the one of that id. Repeating it is safe."""
    wanted = body or schemas.OpenSessionBody()
    row, created = await door_of(request).sessions.open_session(
        caller_of(request),
        OpenSession(
            id=wanted.id,
            model=wanted.model,
            kind=wanted.kind,
            title=wanted.title,
            system_message=wanted.system_message,
            tools=wanted.tools,
            streaming=wanted.streaming,
        ),
    )
    return JsonResponse(session_object(row), 201 if created else 200)


@router.get(
    "/sessions",
    responses=responses(
        {
            200: {
                "model": schemas.SessionList,
                "description": "A page of the sessions that are yours or shared with you, last used first",
            }
        },
        "invalid",
        "store_unavailable",
    ),
)
async def list_sessions(
    request: Request, cursor: Cursor = None, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> Response:
    """List the sessions you may read."""
    page = await door_of(request).sessions.list(caller_of(request), cursor=cursor, limit=limit)
    return JsonResponse({"sessions": [session_object(row) for row in page.rows], "next": page.next})


@router.get(
    "/sessions/{session_id}",
    responses=responses(
        {200: {"model": schemas.Session, "description": "The session"}}, "not_found", "store_unavailable"
    ),
)
async def read_session(request: Request, session_id: SessionId) -> Response:
    """Read a session."""
    return JsonResponse(session_object(await door_of(request).sessions.get(caller_of(request), session_id)))


@router.patch(
    "/sessions/{session_id}",
    responses=responses(
        {200: {"model": schemas.Session, "description": "The session with its new title"}},
        *body_codes("forbidden", "not_found"),
    ),
)
async def retitle_session(request: Request, session_id: SessionId, body: schemas.RetitleBody) -> Response:
    """Give a session another title."""
    return JsonResponse(
        session_object(await door_of(request).sessions.retitle(caller_of(request), session_id, body.title))
    )


@router.delete(
    "/sessions/{session_id}",
    status_code=204,
    response_class=Response,
    responses=responses(
        {204: {"description": "The session, its files and its history are gone"}},
        "forbidden",
        "not_found",
        "session_busy",
        "store_unavailable",
    ),
)
async def delete_session(request: Request, session_id: SessionId) -> Response:
    """Delete a session and everything of it."""
    await door_of(request).sessions.delete(caller_of(request), session_id)
    return Response(status_code=204)
