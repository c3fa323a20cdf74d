"""Probes: is the process alive, does it take work. They need no credential and say nothing about tenants."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from aerodrome.errors import Draining, RuntimeUnavailable
from aerodrome.http import schemas
from aerodrome.http.door import door_of
from aerodrome.http.encoding import JsonResponse
from aerodrome.http.openapi import responses

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health", responses={200: {"model": schemas.Alive, "description": "The process answers"}})
async def health() -> Response:
    """Alive: restart the process when this fails."""
    return JsonResponse({"status": "alive"})


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    responses=responses(
        {200: {"model": schemas.Ready, "description": "This node accepts work"}}, "draining", "runtime_unavailable"
    ),
)
async def ready(request: Request) -> Response:
    """Accepting work: send no requests here while this fails."""
    door = door_of(request)
    if door.shutdown.draining.is_set:
        raise Draining("this node is shutting down")
    accepting, detail = door.readiness.ready()
    if not accepting:
        raise RuntimeUnavailable(detail)
    return JsonResponse({"status": "ready", "detail": detail})
