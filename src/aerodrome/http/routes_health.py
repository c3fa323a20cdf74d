"""Probes, which need no credential and say nothing about tenants, and the metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from aerodrome.errors import Draining, NotFound, RuntimeUnavailable, Unauthenticated
from aerodrome.http import schemas
from aerodrome.http.door import door_of
from aerodrome.http.encoding import JsonResponse
from aerodrome.http.middleware import bearer
from aerodrome.http.openapi import responses

router = APIRouter(tags=["health"])

_EXAMPLE = (
    "# HELP aerodrome_turns_queued Accepted prompts that wait.\n"
    "# TYPE aerodrome_turns_queued gauge\n"
    "aerodrome_turns_queued 0.0\n"
)


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


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=responses(
        {
            200: {
                "description": "Prometheus text, or OpenMetrics as `Accept` asks",
                "content": {"text/plain": {"schema": {"type": "string"}, "example": _EXAMPLE}},
            }
        },
        "not_found",
    ),
)
async def metrics(request: Request) -> Response:
    """The node's metrics for Prometheus, with `telemetry.metrics_token` as the bearer token.

    Not found unless that is set. `telemetry.metrics_address` serves them at an address of their own instead.
    """
    served = door_of(request).metrics
    if served is None:
        raise NotFound("no metrics are served here: set telemetry.metrics_token, or telemetry.metrics_address")
    if not served.allows(bearer(request.headers.get("authorization"))):
        raise Unauthenticated("this is not the token of telemetry.metrics_token")
    body, media_type = served.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": media_type})
