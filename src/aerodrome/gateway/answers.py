"""The methods that are answered here and not by a runtime, with the CLI's own shapes (docs/facts.md, "Wire").

Identity, ownership and the directory are ours, so whatever names, lists, opens or deletes sessions is; and so is what
sends prompts, because each is recorded before a runtime gets it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from msgspec import UNSET

from aerodrome.errors import (
    AerodromeError,
    Forbidden,
    Invalid,
    NotFound,
    StoreUnavailable,
    TurnFailed,
    TurnInterrupted,
    all_codes,
)
from aerodrome.gateway.client import GatewayClient
from aerodrome.gateway.commands import Request
from aerodrome.gateway.problems import refusal_frame
from aerodrome.gateway.sessions import open_session, resume_behind
from aerodrome.model import Role, SessionRow
from aerodrome.peers.liveness import Liveness
from aerodrome.peers.shapes import KNOWN, principal_of
from aerodrome.policy.methods import checked_params, needs_check
from aerodrome.policy.shapes import Refusal
from aerodrome.runtime.control import PROTOCOL_VERSION
from aerodrome.wire import envelope
from aerodrome.wire.framing import encode_frame

if TYPE_CHECKING:
    from aerodrome.gateway.server import Gateway

log = structlog.get_logger(__name__)

Params = dict[str, Any]
#: A value to encode, bytes of JSON that are a result already, why it is refused, or ``None``: the answer comes another
#: way.
Answer = Mapping[str, Any] | bytes | Refusal | None

#: Sessions that `session.list` names at most; the protocol has no pages.
MAX_LISTED = 1000
_MOST_KNOWN = 64
#: Of `connect`, what is said to runtimes in the client's name.
_HELLO = ("supportedTaskKinds", "clientInfo")


class Answers:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._methods: dict[str, Callable[[GatewayClient, Request, Params], Awaitable[Answer]]] = {
            "connect": self._connect,
            "auth.getStatus": self._auth_status,
            "models.list": self._models,
            "session.create": self._create,
            "session.resume": self._resume,
            "session.send": self._send,
            "session.abort": self._abort,
            "session.detach": self._detach,
            "session.destroy": self._detach,
            "session.delete": self._delete,
            "session.list": self._list,
            "session.getMetadata": self._metadata,
            "session.getLastId": self._last_id,
            "session.getForeground": self._foreground,
            "sessions.fork": self._fork,
        }

    @property
    def methods(self) -> frozenset[str]:
        """What is answered here, for the test that compares it with the policy's table."""
        return frozenset(self._methods) | {"ping", "status.get"}

    def at_once(self, client: GatewayClient, request: Request) -> bytes | None:
        """The answer to what needs nothing but this process; ``None``: ask `answer`."""
        if request.method == "ping":
            message = _read(request).get("message")
            pong = "pong" if message is None else f"pong: {message}"
            return envelope.result_frame(
                request.id, {"message": pong, "timestamp": _timestamp(None), "protocolVersion": PROTOCOL_VERSION}
            )
        if request.method == "status.get":
            return envelope.result_frame(
                request.id, {"version": self._gateway.cli_version, "protocolVersion": PROTOCOL_VERSION}
            )
        return None

    async def answer(self, client: GatewayClient, request: Request) -> bytes | None:
        """The answer's frame. Raises `AerodromeError` for what becomes an error answer."""
        method = self._methods.get(request.method)
        if method is None:
            raise Forbidden(f"{request.method} is not offered by this host")
        params: Mapping[str, Any] = _read(request)
        if client.relayed and isinstance(known := dict(params).pop(KNOWN, None), list):
            request.known = [event_id for event_id in known[:_MOST_KNOWN] if isinstance(event_id, str) and event_id]
            params = {name: value for name, value in params.items() if name != KNOWN}
        if needs_check(request.method) and client.router.profile is not None:
            checked = checked_params(request.method, client.router.profile, params)
            if isinstance(checked, Refusal):
                return refusal_frame(request.id, request.method, checked.reason, checked.code)
            params = checked
        result = await method(client, request, dict(params))
        if result is None:
            return None
        if isinstance(result, bytes):
            return encode_frame(b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (msgspec.json.encode(request.id), result))
        if isinstance(result, Refusal):
            return refusal_frame(request.id, request.method, result.reason, result.code)
        return envelope.result_frame(request.id, result)

    # --- the connection ---

    async def _connect(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        token = params.get("token")
        token = token if isinstance(token, str) else ""
        if self._gateway.is_node(token):
            return self._connect_node(client, params)
        principal = await self._gateway.authenticate(token)
        self._gateway.admit(client, principal, token)
        return self._hello(client, params)

    def _connect_node(self, client: GatewayClient, params: Params) -> Answer:
        """Another node: with its own work (`gateway.peering`), or in the name of one of its clients."""
        if isinstance(node := params.get("node"), str):
            client.is_node = node
            return {"ok": True}
        principal = principal_of(params.get("onBehalfOf"))
        client.relayed = True
        Liveness(client.connection, self._gateway.peer_silence)
        self._gateway.admit(client, principal, "")
        return self._hello(client, params)

    def _hello(self, client: GatewayClient, params: Params) -> Answer:
        client.hello = {name: params[name] for name in _HELLO if name in params}
        kinds = ["agent", "shell", "client"]
        version = self._gateway.cli_version
        return {"ok": True, "protocolVersion": PROTOCOL_VERSION, "version": version, "taskKinds": kinds}

    async def _auth_status(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        who = client.who
        said = f"Authenticated as {who.user} of {who.tenant}"
        return {"isAuthenticated": True, "authType": "api-key", "login": who.user, "statusMessage": said}

    async def _models(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        """Those of the tenant's GitHub account, or the configured one: what an endpoint of one's own has beside it,
        nobody can say."""
        credentials = self._gateway.credentials_of(client.who.tenant)
        if credentials.github_token is not None:
            asked = {"gitHubToken": credentials.github_token}
            models: Answer = await self._gateway.ask_any_runtime(client.who, "models.list", asked)
            return models
        if (model := credentials.model) is None:
            return {"models": []}
        limits = {"max_context_window_tokens": 128_000}
        capabilities = {"supports": {"vision": False, "reasoningEffort": False}, "limits": limits}
        return {"models": [{"id": model, "name": model, "capabilities": capabilities}]}

    # --- sessions ---

    async def _create(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        return await open_session(self._gateway, client, params, resume=False)

    async def _resume(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        if request.known is None:
            return await open_session(self._gateway, client, params, resume=True)
        return await resume_behind(self._gateway, client, params, request.known)

    async def _detach(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        session_id = _session_id(params)
        if session_id in client.attachments:
            await client.detach(session_id)
        return {"success": True}

    async def _delete(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        session_id = _session_id(params)
        try:
            row = await self._gateway.sessions.get(client.who, session_id)
            # Whoever takes part in it is told as it ends.
            told = {each for each in self._gateway.clients if session_id in each.attachments}
            await self._gateway.sessions.delete(client.who, session_id)
        except NotFound:
            return {"success": False, "error": f"Session file not found for {session_id}"}
        self._gateway.tell_lifecycle(row, "session.deleted", besides=told)
        return {"success": True}

    async def _list(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        rows: list[SessionRow] = []
        cursor: str | None = None
        while len(rows) < MAX_LISTED:
            page = await self._gateway.sessions.list(client.who, cursor=cursor, limit=200)
            rows += page.rows
            if (cursor := page.next) is None:
                break
        return {"sessions": [metadata(row) for row in rows[:MAX_LISTED]]}

    async def _metadata(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        try:
            return {"session": metadata(await self._gateway.sessions.get(client.who, _session_id(params)))}
        except NotFound:
            return {}

    async def _last_id(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        page = await self._gateway.sessions.list(client.who, limit=1)
        return {"sessionId": page.rows[0].key.id} if page.rows else {}

    async def _foreground(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        return {}

    async def _fork(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        name = params.get("name")
        to_event = params.get("toEventId")
        row = await self._gateway.sessions.fork(
            client.who,
            _session_id(params),
            to_event_id=to_event if isinstance(to_event, str) else None,
            title=name if isinstance(name, str) else None,
        )
        self._gateway.tell_lifecycle(row, "session.created")
        return {"sessionId": row.key.id, "name": row.title} if row.title else {"sessionId": row.key.id}

    # --- turns ---

    async def _send(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        session_id = _session_id(params)
        wait = params.pop("wait", False)
        if not isinstance(params.get("prompt"), str):
            raise Invalid("session.send needs a `prompt`")
        run = await self._gateway.sessions.native.send(client.who, session_id, params)
        if request.on_taken_up is not None:
            request.on_taken_up()
        client.note_run(run)
        message_id = await run.taken()
        if message_id is None:
            raise _error_of(run.row.error)
        try:
            await self._gateway.sessions.native.keep(run)
        except StoreUnavailable as error:
            # It is at work. Sent again, it would be done twice.
            raise TurnInterrupted(f"the prompt was taken, and perhaps will not last: {error.detail}") from error
        if wait:
            await run.over()
        return {"messageId": message_id}

    async def _abort(self, client: GatewayClient, request: Request, params: Params) -> Answer:
        sessions = self._gateway.sessions.native
        live = await sessions.session(client.who, _session_id(params), Role.WRITER, leaving=True)
        if not sessions.stop(live) and (activation := live.loaded) is not None:
            # Perhaps the runtime is at work on something that no prompt of ours began.
            await activation.abort()
        sessions.let_go(live)
        return {"success": True}


def metadata(row: SessionRow) -> dict[str, Any]:
    """A session as the CLI describes it."""
    described: dict[str, Any] = {
        "sessionId": row.key.id,
        "startTime": _timestamp(row.created_at),
        "modifiedTime": _timestamp(row.last_used_at),
        "isRemote": False,
        "isDetached": False,
        "context": {},
    }
    if row.title is not None:
        described |= {"summary": row.title, "name": row.title}
    return described


def _read(request: Request) -> Params:
    if request.params is UNSET:
        return {}
    try:
        params = envelope.decode_value(request.params)
    except envelope.EnvelopeError as error:
        raise Invalid(f"the parameters of {request.method} cannot be read: {error}") from None
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise Invalid(f"{request.method} takes an object of parameters")
    return params


def _session_id(params: Params) -> str:
    session_id = params.get("sessionId")
    if not isinstance(session_id, str):
        raise Invalid("`sessionId` is missing")
    return session_id


def _error_of(stored: dict[str, Any] | None) -> AerodromeError:
    """The error that a turn has ended with, from its row."""
    stored = stored or {}
    kind = all_codes().get(str(stored.get("code")), TurnFailed)
    return kind(str(stored.get("detail") or "the turn ended before a runtime took the prompt"))


def _timestamp(seconds: float | None) -> str:
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
