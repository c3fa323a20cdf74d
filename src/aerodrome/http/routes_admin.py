"""What operators see and do, over HTTP: nodes and runtimes of the whole fleet. Role `admin`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Path, Query, Request, Response

from aerodrome.errors import Forbidden, Invalid
from aerodrome.http import schemas
from aerodrome.http.door import caller_of, door_of
from aerodrome.http.encoding import JsonResponse
from aerodrome.http.openapi import responses
from aerodrome.http.ports import Administration
from aerodrome.http.routing import ApiRoute
from aerodrome.operators.requests import State, Verb

log = structlog.get_logger(__name__)


class AdminRoute(ApiRoute):
    """Whoever is no operator is told so before anything is looked up: a refusal says nothing of what there is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_operators(request: Request) -> Response:
            if not caller_of(request).is_admin:
                raise Forbidden("this needs a key with the role admin")
            return await handle(request)

        return handle_operators


router = APIRouter(prefix="/api/v1/admin", tags=["admin"], route_class=AdminRoute)

ServerAddress = Annotated[str, Path(description="`HOST:PORT` of the attached server", max_length=300)]
RuntimeId = Annotated[str, Path(description="The runtime's id, as the listing has it", max_length=200)]
NodeName = Annotated[str, Path(description="The node's name, or its incarnation", max_length=300)]
Wait = Annotated[float, Query(ge=0, le=300, description="Seconds to wait for the end")]
_READ_CODES = ("forbidden", "store_unavailable")
_RETIRE_CODES = (
    "invalid",
    "forbidden",
    "not_found",
    "conflict",
    "draining",
    "runtime_unavailable",
    "store_unavailable",
)
_RETIRED: dict[int | str, dict[str, Any]] = {
    200: {"model": schemas.RuntimeOperation, "description": "It has gone"},
    202: {"model": schemas.RuntimeOperation, "description": "It is under way, and goes on"},
}


@router.get(
    "/runtimes",
    responses=responses({200: {"model": schemas.RuntimeList, "description": "All runtimes"}}, *_READ_CODES),
)
async def list_runtimes(request: Request) -> Response:
    """The runtimes of all living nodes, as these told with their last heartbeat."""
    return JsonResponse({"runtimes": await _administration(request).runtimes()})


@router.post("/runtimes/{runtime_id}/recycle", responses=responses(_RETIRED, *_RETIRE_CODES))
async def recycle_runtime(request: Request, runtime_id: RuntimeId, wait: Wait = 30.0) -> Response:
    """Replace a runtime: its sessions move to another one, those in a turn when it has ended.

    An attached server is not replaced (`conflict`): drain it, and let whoever runs it restart it.
    """
    return await _retire(request, runtime_id, Verb.RECYCLE, wait)


@router.post("/runtimes/{runtime_id}/drain", responses=responses(_RETIRED, *_RETIRE_CODES))
async def drain_runtime(request: Request, runtime_id: RuntimeId, wait: Wait = 30.0) -> Response:
    """End a runtime without a replacement, once the turns in it have ended; its sessions hibernate.

    An attached server, named by its id or as `IP:PORT`, stays attached and is used by no node until it is undrained.
    """
    return await _retire(request, runtime_id, Verb.DRAIN, wait)


@router.post(
    "/runtimes/{address}/undrain",
    status_code=204,
    response_class=Response,
    responses=responses(
        {204: {"description": "All nodes use it again in a moment"}},
        *("invalid", "forbidden", "not_found", "store_unavailable"),
    ),
)
async def undrain_server(request: Request, address: ServerAddress) -> Response:
    """Have all nodes use an attached server again that was drained."""
    log.info("admin.asked", verb="undrain", server=address)
    servers = door_of(request).attached
    if servers is None:
        raise Invalid("no servers can be attached here")
    await servers.undrain(address)
    return Response(status_code=204)


@router.get("/nodes", responses=responses({200: {"model": schemas.NodeList, "description": "All nodes"}}, *_READ_CODES))
async def list_nodes(request: Request) -> Response:
    """The living nodes, as they told with their last heartbeat."""
    return JsonResponse({"nodes": await _administration(request).nodes()})


@router.post(
    "/nodes/{name}/drain",
    status_code=202,
    responses=responses(
        {202: {"model": schemas.NodeDrain, "description": "It begins with its next heartbeat"}},
        *("invalid", "forbidden", "not_found", "conflict", "store_unavailable"),
    ),
)
async def drain_node(request: Request, name: NodeName) -> Response:
    """Have a node finish its turns, hand its sessions over and end."""
    log.info("admin.asked", verb="drain", node=name)
    node = await _administration(request).drain_node(name)
    return JsonResponse({"name": node.name, "incarnation": node.incarnation}, 202)


async def _retire(request: Request, runtime_id: str, verb: Verb, wait: float) -> Response:
    log.info("admin.asked", verb=verb.value, runtime=runtime_id)  # who, is in the context
    retirement = await _administration(request).retire(runtime_id, verb, wait=wait)
    return JsonResponse(retirement.describe(), 200 if retirement.operation.state is State.DONE else 202)


def _administration(request: Request) -> Administration:
    return door_of(request).administration
