"""The ASGI application: routes, middleware and error handlers put together."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from aerodrome.http import (
    openapi,
    routes_admin,
    routes_attached,
    routes_events,
    routes_health,
    routes_members,
    routes_messages,
    routes_sessions,
)
from aerodrome.http.door import Door
from aerodrome.http.encoding import encode
from aerodrome.http.limits import HttpLimits
from aerodrome.http.middleware import Authentication, BodyLimit, RequestContext
from aerodrome.http.ports import Administration, AttachedServers, Authenticator, Metrics, Readiness
from aerodrome.http.problems import on_http_exception, on_validation_error
from aerodrome.http.readers import Readers
from aerodrome.http.shortcut import PromptShortcut
from aerodrome.sessions.api import Sessions
from aerodrome.telemetry import SILENT, Telemetry


class _Api(FastAPI):
    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi.document(self.routes)

    @cached_property
    def _encoded(self) -> bytes:
        return encode(self._document)

    def openapi(self) -> dict[str, Any]:
        return self._document

    async def answer_openapi(self, request: Request) -> Response:
        """The document, which anybody may ask for; it is long, and made once."""
        return Response(self._encoded, media_type="application/json")


def routes_only() -> FastAPI:
    """The routes and their documentation, without anything behind them."""
    # FastAPI's pages load their scripts from a public CDN, which is not there for many who run this.
    app = _Api(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # `RequestContext` does them
    )
    app.add_route("/openapi.json", app.answer_openapi, include_in_schema=False)
    for routes in (
        routes_sessions,
        routes_messages,
        routes_events,
        routes_members,
        routes_admin,
        routes_attached,
        routes_health,
    ):
        app.include_router(routes.router)
    return app


def create_app(
    sessions: Sessions,
    auth: Authenticator,
    readiness: Readiness,
    administration: Administration,
    limits: HttpLimits | None = None,
    attached: AttachedServers | None = None,
    *,
    metrics: Metrics | None = None,
    telemetry: Telemetry = SILENT,
) -> FastAPI:
    """The HTTP API over these sessions. `app.state.door` is the `Door` the routes work with."""
    app = routes_only()
    limits = limits or HttpLimits()
    readers = Readers(auth, limits)
    app.state.door = door = Door(sessions, readiness, administration, limits, readers, attached, metrics)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    # The last one added is the outermost.
    app.add_middleware(PromptShortcut)
    app.add_middleware(BodyLimit, limits=door.limits)
    app.add_middleware(Authentication, auth=auth)
    app.add_middleware(RequestContext, telemetry=telemetry)
    return app
