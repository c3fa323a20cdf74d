"""The HTTP front door over a double, on a real port; every answer is held against the served OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from aerodrome.http.api import create_app, routes_only
from aerodrome.http.limits import HttpLimits
from aerodrome.http.readers import Readers
from aerodrome.http.server import HttpServer
from aerodrome.model import Principal, SessionKey, SessionRow
from support.scripted_sessions import Keys, Probe, ScriptedAdministration, ScriptedSessions

#: Opens `s1`, which belongs to alice.
ALICE = {"Authorization": "Bearer aero_alice"}
BOB = {"Authorization": "Bearer aero_bob"}
MESSAGES = "/api/v1/sessions/s1/messages"
EVENTS = "/api/v1/sessions/s1/events"
#: Seconds in which the server must do what a test waits for.
PATIENCE = 20
STREAM = {"Accept": "text/event-stream"}


class Contract:
    """The OpenAPI document as a judge of responses."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._paths = {
            re.compile(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(path))): operations
            for path, operations in document["paths"].items()
        }

    def validate(self, schema: dict[str, Any], value: Any) -> None:
        whole = {**schema, "components": self.document["components"]}
        Draft202012Validator(whole).validate(value)

    def check(self, method: str, path: str, status: int, media_type: str, body: bytes) -> None:
        """Fail unless this answer is one the document promises."""
        operation = self._operation(method, path)
        if operation is None or status == 405:
            assert status in (401, 404, 405), f"{method} {path} is answered {status} and not documented"
            assert media_type == "application/problem+json"
            self.validate({"$ref": "#/components/schemas/Problem"}, json.loads(body or b"{}"))
            return
        promised = operation["responses"].get(str(status))
        assert promised is not None, f"{method} {path} does not document {status}: {body[:300]!r}"
        if "content" not in promised:
            assert body == b""
            return
        assert media_type in promised["content"], f"{method} {path} {status} does not document {media_type}"
        if media_type.endswith("json"):
            self.validate(promised["content"][media_type]["schema"], json.loads(body))
        if media_type == "application/problem+json":
            code = json.loads(body)["code"]
            assert code in promised["content"][media_type]["examples"], f"{method} {path} does not document {code}"

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for pattern, operations in self._paths.items():
            if pattern.fullmatch(path):
                found = operations.get(method.lower())
                return found if found is None else dict(found)
        return None


@dataclass
class Front:
    server: HttpServer
    sessions: ScriptedSessions
    keys: Keys
    probe: Probe
    administration: ScriptedAdministration
    readers: Readers
    contract: Contract
    host: str
    port: int
    client: httpx.AsyncClient
    raw_clients: list[RawClient] = field(default_factory=list)

    async def raw(self, data: bytes = b"") -> RawClient:
        """A connection of its own, without a library in between."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        client = RawClient(reader, writer)
        self.raw_clients.append(client)
        await client.send(data)
        return client


@dataclass
class RawClient:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    _stopped: bool = False

    async def send(self, data: bytes) -> None:
        if self.writer.is_closing():  # on which uvloop raises something else
            raise ConnectionResetError("the connection was cut")
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of the next response."""
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), headers

    async def response(self) -> tuple[int, dict[str, str], Any]:
        """A whole response with a JSON body of declared length."""
        status, headers = await self.head()
        body = await self.reader.readexactly(int(headers["content-length"]))
        return status, headers, json.loads(body)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(PATIENCE):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def events(self) -> list[tuple[str | None, str, Any]]:
        """The events of the rest of the stream."""
        text = b""
        while chunk := await self.chunk():
            text += chunk
        return parse_events(text.decode())

    async def event(self) -> tuple[str | None, str, Any]:
        """The next chunk's event, which must be alone in it."""
        found = parse_events((await self.chunk()).decode())
        while not found:
            found = parse_events((await self.chunk()).decode())
        [event] = found
        return event

    def stop_reading(self) -> None:
        """What the server sends stays where it is, until `is_closed`."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]
        self._stopped = True

    async def is_closed(self) -> bool:
        """Wait until the server has closed the connection."""
        if self._stopped:
            self.writer.transport.resume_reading()  # type: ignore[attr-defined]
        try:
            async with asyncio.timeout(PATIENCE):
                while await self.reader.read(65536):
                    pass
        except ConnectionResetError:
            pass
        return True

    def abort(self) -> None:
        self.writer.transport.abort()


def request(method: str, path: str, *headers: str, body: bytes = b"", key: str | None = "aero_alice") -> bytes:
    """A request as bytes; `Content-Length` is added if there is a body and no header speaks of its length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body and not any(name.lower().startswith(("content-length", "transfer-encoding")) for name in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@cache
def _contract() -> Contract:
    return Contract(routes_only().openapi())


@asynccontextmanager
async def serving(limits: HttpLimits | None = None) -> AsyncIterator[Front]:
    sessions, keys, probe, administration = ScriptedSessions(), Keys(), Probe(), ScriptedAdministration()
    row = SessionRow(SessionKey("acme", "s1"), Principal("acme", "alice").user, created_at=1.0, last_used_at=2.0)
    sessions.rows[row.key] = row
    app = create_app(sessions, keys, probe, administration, limits)
    server = HttpServer(app, "127.0.0.1", 0)
    host, port = await server.start()
    contract = _contract()

    async def check(response: httpx.Response) -> None:
        media_type = response.headers.get("content-type", "").partition(";")[0]
        if media_type == "text/event-stream":
            contract.check(response.request.method, response.request.url.path, response.status_code, media_type, b"")
        elif response.request.method != "HEAD" and response.request.url.path != "/openapi.json":
            body = await response.aread()
            contract.check(response.request.method, response.request.url.path, response.status_code, media_type, body)

    client = httpx.AsyncClient(
        base_url=f"http://{host}:{port}",
        headers=ALICE,
        event_hooks={"response": [check]},
        timeout=PATIENCE,
        trust_env=False,
        # The default loads every certificate authority there is, for each client anew.
        verify=False,
    )
    front = Front(server, sessions, keys, probe, administration, app.state.door.readers, contract, host, port, client)
    try:
        async with client:
            yield front
    finally:
        for raw in front.raw_clients:
            raw.abort()
        await server.stop(0)


def parse_events(text: str) -> list[tuple[str | None, str, Any]]:
    """(id, event, data) of each event in a stream, as a browser would read them; comments are left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            events.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return events
