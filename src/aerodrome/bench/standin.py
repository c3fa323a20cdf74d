"""The gateway alone: its own code, with the least that can stand in for what it is put together with.

`python -m aerodrome.bench.standin` (see `children`): ``{"host", "port"}`` is where a peer listens that is taken for the
only runtime; the answer is the gateway's address. Any key is good, and every session is its client's own.
"""

from __future__ import annotations

import socket
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

from aerodrome.bench.children import serve
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.gateway.server import Gateway, GatewayOptions
from aerodrome.model import Isolation, Principal, Role, SessionKey, SessionRow
from aerodrome.observability.logging import configure_logging
from aerodrome.peers.cluster import Cluster
from aerodrome.policy.profiles import Profile
from aerodrome.policy.session_params import Credentials
from aerodrome.runtime.ports import Runtime, connected
from aerodrome.sessions.api import OpenSession
from aerodrome.sessions.attachments import Attachment
from aerodrome.sessions.service import SessionService


@dataclass(frozen=True, slots=True)
class _Runtime:
    """Of `Runtime`, what the gateway asks for."""

    address: tuple[str, int]
    id: str = "rt-standin"
    token: str = "standin"
    workspace: Path = Path("/nowhere")

    async def connect(self) -> socket.socket:
        return await connected(*self.address)

    def adopt(self, connection: object) -> None:
        pass


@dataclass(slots=True)
class _Live:
    """Of `LiveSession`, the same."""

    row: SessionRow
    runtime: _Runtime
    attachments: list[Attachment] = field(default_factory=list)

    async def attach(self, attachment: Attachment) -> None:
        await attachment.open(cast("Runtime", self.runtime), resume=False)
        attachment.ready()
        self.attachments.append(attachment)

    async def detach(self, attachment: Attachment) -> None:
        self.attachments.remove(attachment)

    def hold(self) -> None:
        pass

    def release(self, *, used: bool = True) -> None:
        pass


class _Members:
    """Of `sessions.members.Members`, the same."""

    def listen(self, listener: object) -> None:
        pass


class _Sessions:
    """Of `SessionService`, the same."""

    draining = False

    def __init__(self, runtime: _Runtime) -> None:
        self.members_here = _Members()
        self.native = self
        self._runtime = runtime
        self._live: dict[SessionKey, _Live] = {}

    async def open_session(self, who: Principal, wanted: OpenSession) -> tuple[SessionRow, bool]:
        row = SessionRow(SessionKey(who.tenant, wanted.id or str(uuid.uuid4())), who.user)
        self._live[row.key] = _Live(row, self._runtime)
        return row, True

    async def session(
        self, who: Principal, session_id: str, least: Role = Role.READER, *, leaving: bool = False
    ) -> _Live:
        return self._live[SessionKey(who.tenant, session_id)]

    def is_own(self, who: Principal, session_id: str) -> bool:
        return SessionKey(who.tenant, session_id) in self._live

    def let_go(self, live: _Live) -> None:
        pass


class _Keys:
    async def authenticate(self, key: str) -> Principal:
        return Principal("acme", "alice")


async def main() -> None:
    configure_logging("warning", "json")
    gateways: list[Gateway] = []

    async def start(command: dict[str, Any]) -> dict[str, Any]:
        sessions = _Sessions(_Runtime((command["host"], command["port"])))
        options = GatewayOptions(
            cli_version="standin",
            isolation_of=lambda tenant: Isolation.TENANT,
            profile_of=lambda tenant: Profile.ISOLATED,
            credentials_of=lambda tenant: Credentials(),
        )
        nobody = MemoryCoordination()
        cluster = Cluster(nobody, nobody, nobody, incarnation=lambda: "standin", loaded=lambda key: True, interval=1.0)
        gateway = Gateway(cast("SessionService", sessions), _Keys(), options, cluster, peer_token=lambda: "")
        gateways.append(gateway)
        host, port = await gateway.start("127.0.0.1", 0)
        return {"host": host, "port": port}

    await serve(start)
    for gateway in gateways:
        await gateway.aclose()


if __name__ == "__main__":
    uvloop.run(main())
