"""What the routes work with, and what they take from every request.

Plain functions of the request and not FastAPI dependencies: resolving four of those took a third of the time
of a request.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request

from aerodrome.http.limits import HttpLimits
from aerodrome.http.ports import Administration, AttachedServers, Metrics, Readiness
from aerodrome.http.readers import Readers
from aerodrome.http.shutdown import Shutdown
from aerodrome.model import Principal
from aerodrome.sessions.api import Sessions


@dataclass(frozen=True, slots=True)
class Door:
    """What the routes work with; one a server."""

    sessions: Sessions
    readiness: Readiness
    administration: Administration
    limits: HttpLimits
    readers: Readers
    attached: AttachedServers | None = None
    metrics: Metrics | None = None
    shutdown: Shutdown = field(default_factory=Shutdown)


def door_of(request: Request) -> Door:
    found = request.app.state.door
    assert isinstance(found, Door)
    return found


def caller_of(request: Request) -> Principal:
    principal = request.state.principal
    assert isinstance(principal, Principal)
    return principal


def wants_stream(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return any(part.partition(";")[0].strip().lower() == "text/event-stream" for part in accept.split(","))
