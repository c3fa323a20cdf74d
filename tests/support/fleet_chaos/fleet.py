"""Three `aerodrome serve` processes on a Valkey and a PostgreSQL of their own, each with a disk of its own, under a
service manager that starts them again."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from aerodrome.app.stores import open_stores
from aerodrome.config import load_settings
from support.fleet_chaos.options import HEARTBEAT, NODES, STORE_PATIENCE, TTL
from support.fleet_chaos.transcript import Transcript
from support.fleet_chaos.watch import Watch
from support.ports import free_port
from support.postgres import PostgresServer, fresh_schema
from support.postgres import server as postgresql
from support.server import Server, serve, write_config
from support.stores import ValkeyServer, valkey

#: Seconds in which a node has to be up, whatever happens to the stores meanwhile.
_START = 60.0

_SETTINGS = f"""
url = "{{valkey}}"
patience = "{STORE_PATIENCE}s"
[state]
url = "{{postgres}}"
database_schema = "{{schema}}"
patience = "{STORE_PATIENCE}s"
[isolation.tenants]
solo = "user"
[runtime]
warm = 1
max_runtimes = 10
max_sessions = 6
ping_interval = "500ms"
ping_timeout = "3s"
[sessions]
# Sessions fall asleep and wake up; and this is how often nodes look for what others have left.
idle_timeout = "12s"
[limits]
max_turns_per_user = 8
"""


@dataclass(slots=True)
class Node:
    name: str
    http: str
    gateway: str
    data: Path
    #: ``None`` while it is down.
    server: Server | None = None
    paused: bool = False
    stack: AsyncExitStack | None = None

    @property
    def up(self) -> bool:
        return self.server is not None and not self.paused

    def runtimes(self) -> list[psutil.Process]:
        try:
            return [] if self.server is None else [p for p in self.server.runtimes() if _serves(p)]
        except psutil.NoSuchProcess:
            return []


class ChaosFleet:
    def __init__(
        self,
        directory: Path,
        config: Path,
        schema: str,
        valkey: ValkeyServer,
        postgres: PostgresServer,
        transcript: Transcript,
        watch: Watch,
    ) -> None:
        self.directory = directory
        self.valkey, self.postgres = valkey, postgres
        self._config, self._schema = config, schema
        self._transcript, self._watch = transcript, watch
        self.nodes = {
            name: Node(name, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", directory / name) for name in NODES
        }

    # --- nodes ---

    async def start(self, name: str) -> None:
        """As a service manager does: again, when it ends by itself because a store is away."""
        node = self.nodes[name]
        environment = {
            "AERODROME_SERVER__NODE_NAME": name,
            "AERODROME_SERVER__HTTP": node.http,
            "AERODROME_SERVER__GATEWAY": node.gateway,
            "AERODROME_SERVER__DATA_DIR": str(node.data),
        }
        async with self._watch.waiting(f"node {name} to start", _START):
            while True:
                stack = AsyncExitStack()
                try:
                    node.server = await stack.enter_async_context(serve(self._config, environment=environment))
                    node.stack = stack
                    return
                except AssertionError as error:
                    self._transcript.counts["node starts that failed"] += 1
                    self._transcript.say(f"node {name} did not start: {str(error).strip()[-300:]}")
                    await asyncio.sleep(0.3)

    async def kill(self, name: str) -> None:
        node = self.nodes[name]
        server, node.server = node.server, None
        assert server is not None
        server.process.kill()
        await self._closed(node)

    async def stop(self, name: str) -> int | None:
        """SIGTERM, as at the end of a day; returns the exit code."""
        node = self.nodes[name]
        assert node.server is not None
        node.server.send_signal(signal.SIGTERM)
        async with self._watch.waiting(f"node {name} to stop", 40):
            code = await node.server.process.wait()
        node.server = None
        await self._closed(node)
        return code

    async def _closed(self, node: Node) -> None:
        stack, node.stack = node.stack, None
        if stack is not None:
            await stack.aclose()

    async def aclose(self) -> None:
        for node in self.nodes.values():
            if node.server is not None and node.paused:
                node.server.send_signal(signal.SIGCONT)
            await self._closed(node)

    # --- what is stored ---

    async def keys(self, users: Mapping[str, str]) -> dict[str, str]:
        """A new API key for each user, given with its tenant."""
        settings = load_settings(self._config)
        async with open_stores(settings) as stores:
            return {user: (await stores.keys.create(tenant, user, ()))[1] for user, tenant in users.items()}

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.postgres.url, options=f"-c search_path={self._schema}") as connection:
            return connection.execute(sql, values or None).fetchall()

    def history(self, tenant: str, session: str) -> str:
        """The stored `events.jsonl`."""
        rows = self.query(
            "SELECT string_agg(c.content, ''::bytea ORDER BY c.id) FROM file_chunk c JOIN file f ON f.id = c.file_id "
            "JOIN file_session s ON s.id = f.session_id "
            "WHERE s.tenant = %s AND s.session = %s AND f.name = 'events.jsonl'::bytea",
            tenant,
            session,
        )
        return bytes(rows[0][0] or b"").decode()

    def living(self) -> dict[str, Any]:
        """What Valkey knows: nodes by incarnation, leases by session, places in use."""
        with redis.Redis(port=self.valkey.port, socket_timeout=5) as client:
            nodes, leases, places = (client.hgetall(f"{{aerodrome}}:{name}") for name in ("node", "leases", "places"))
            caps = {key.decode(): client.hlen(key) for key in client.scan_iter("{aerodrome}:cap:*")}
            seconds, micro = client.time()
            # The rest of what is known of the dead goes when the next node joins.
            living = client.zrangebyscore("{aerodrome}:nodes", f"({seconds * 1_000_000 + micro}", "+inf")
        return {
            "nodes": {key.decode(): json.loads(value).get("name") for key, value in nodes.items() if key in living},
            "leases": {tuple(json.loads(key)): value.decode().split(" ", 1)[1] for key, value in leases.items()},
            "places": [key.decode() for key in places],
            "caps": {name: count for name, count in caps.items() if count},
        }

    def loaded_at(self, name: str) -> tuple[str, ...]:
        """Sessions that this node has a lease of; none when Valkey does not say."""
        try:
            living = self.living()
        except (redis.RedisError, OSError):
            return ()
        return tuple(
            key[1]
            for key, incarnation in living["leases"].items()
            if living["nodes"].get(incarnation) == name and not key[0].startswith("@")
        )

    # --- processes ---

    def strays(self) -> list[str]:
        """Processes of runtimes, and homes of theirs, that are left."""
        found = []
        for process in psutil.process_iter():
            try:
                home = process.environ().get("COPILOT_HOME", "")
                if home.startswith(f"{self.directory}/"):
                    found.append(f"process {process.pid} {' '.join(process.cmdline())[:100]}")
            except (psutil.Error, OSError):
                continue
        found += [str(part) for node in self.nodes.values() for part in node.data.glob("runtimes/node-*")]
        return found

    def complaints(self) -> list[str]:
        """Errors and tracebacks in the logs of all nodes."""
        found = []
        for log in self.directory.glob("serve-*.log"):
            lines = log.read_text(errors="replace").splitlines()
            found += [f"{log.name}: {line[:3000]}" for line in lines if _complains(line)]
        return found


def _complains(line: str) -> bool:
    """Whether it is an error that is no store's being away."""
    if line.startswith("Traceback"):
        return True
    return '"level": "error"' in line and '.unavailable"' not in line


def _serves(process: psutil.Process) -> bool:
    """Whether it is a runtime, and not what one has started or a zombie."""
    try:
        return "COPILOT_HOME" in process.environ() and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


@asynccontextmanager
async def fleet(directory: Path, model_url: str, transcript: Transcript, watch: Watch) -> AsyncIterator[ChaosFleet]:
    schema = fresh_schema()
    with valkey() as coordination, postgresql() as state:
        config = write_config(directory, model_url)
        values = _SETTINGS.format(valkey=coordination.url, postgres=state.url, schema=schema)
        times = f'heartbeat = "{round(HEARTBEAT * 1000)}ms"\nttl = "{TTL}s"'
        config.write_text(config.read_text().replace('heartbeat = "200ms"\nttl = "2s"\n', f"{times}{values}"))
        running = ChaosFleet(directory, config, schema, coordination, state, transcript, watch)
        try:
            await asyncio.gather(*(running.start(name) for name in NODES))
            yield running
        finally:
            await running.aclose()


async def resume(process: psutil.Process) -> None:
    """Let it go on, if it is still there."""
    try:
        process.resume()
    except psutil.NoSuchProcess:
        return
