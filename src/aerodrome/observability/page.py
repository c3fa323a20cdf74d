"""The ASGI application behind `telemetry.metrics_address`: `/metrics` and nothing else."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from aerodrome.observability.prometheus import Exposition


class MetricsPage:
    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, body, media_type = 404, b"/metrics is what there is\n", "text/plain; charset=utf-8"
        if scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD"):
            accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
            status, (body, media_type) = 200, self._exposition.exposition(accept)
        headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
