"""What administrators of a tenant may do."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from aerodrome.errors import Forbidden, Invalid
from aerodrome.http import schemas
from aerodrome.http.door import caller_of, door_of
from aerodrome.http.encoding import JsonResponse
from aerodrome.http.openapi import body_codes, responses
from aerodrome.http.ports import AttachedServers
from aerodrome.http.routing import ApiRoute
from aerodrome.model import Principal
from aerodrome.runtime.attached.ports import StoredServer

router = APIRouter(prefix="/api/v1/admin", tags=["admin"], route_class=ApiRoute)

ServerAddress = Annotated[str, Path(description="`HOST:PORT` that it was attached with")]


def _administrator(request: Request) -> Principal:
    who = caller_of(request)
    if not who.is_admin:
        raise Forbidden("this is for keys with the role `admin`")
    return who


def _servers(request: Request) -> AttachedServers:
    servers = door_of(request).attached
    if servers is None:
        raise Invalid("no servers can be attached here")
    return servers


@router.get(
    "/servers",
    responses=responses(
        {200: {"model": schemas.AttachedServerList, "description": "The attached servers of your tenant"}},
        "forbidden",
        "store_unavailable",
    ),
)
async def list_servers(request: Request) -> Response:
    """The Copilot CLI servers that are attached for your tenant, or have been given to it, as this node sees them."""
    who = _administrator(request)
    rows = await _servers(request).servers(who.tenant)
    names = schemas.AttachedServer.model_fields
    return JsonResponse({"servers": [{name: row[name] for name in names} for row in rows]})


@router.post(
    "/runtimes",
    status_code=201,
    responses=responses(
        {201: {"model": schemas.Attached, "description": "It is attached; all nodes use it in a moment"}},
        *body_codes("forbidden", "conflict"),
    ),
)
async def attach_server(request: Request, body: schemas.AttachBody) -> Response:
    """Attach a Copilot CLI server that runs already. It serves your tenant alone, on all nodes, until it is detached.

    Its `session-state` has to be your tenant's directory on the volume. Whether it can be used is in the list.
    """
    who = _administrator(request)
    server = StoredServer(
        body.address,
        who.tenant,
        body.token,
        body.weight,
        body.max_sessions,
        body.workspace,
        attached_by=who.user,
    )
    attached = await _servers(request).attach(server)
    return JsonResponse({"address": attached.address, "tenant": attached.tenant}, status_code=201)


@router.delete(
    "/runtimes/{address}",
    status_code=204,
    response_class=Response,
    responses=responses(
        {204: {"description": "It is detached; its sessions leave it as they become idle"}},
        "invalid",
        "forbidden",
        "not_found",
        "store_unavailable",
    ),
)
async def detach_server(request: Request, address: ServerAddress) -> Response:
    """Detach a server of your tenant. It gets no more sessions, running turns end, and nothing is done to its process.

    Restart it before it is attached for another tenant: what yours has left in it is still there.
    """
    who = _administrator(request)
    await _servers(request).detach(address, who.tenant)
    return Response(status_code=204)
