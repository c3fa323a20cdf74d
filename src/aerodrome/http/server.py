"""uvicorn inside our own event loop, started and stopped by the application and not by signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from aerodrome.errors import ConfigError
from aerodrome.http.door import Door
from aerodrome.http.limits import HttpLimits
from aerodrome.http.protocol import protocol_class
from aerodrome.http.shutdown import Shutdown

log = structlog.get_logger(__name__)

#: Seconds that responses get to be written out after the grace period, before their connections are cut.
_LAST_WORDS = 1.0
#: Seconds between two looks at what is still in flight while the server stops.
_POLL = 0.01
_BACKLOG = 2048


class HttpServer:
    """Serves an application on one address.

    Args:
        app: The application. The `state.door` of one of `create_app` is told about the shutdown.
        host: Address or name to listen on.
        port: 0 for any free one.
        listener: A socket that listens already, in place of that address.
        setting: Whose address it is, for messages.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        listener: socket.socket | None = None,
        setting: str = "server.http",
    ) -> None:
        door = app.state.door if isinstance(app, FastAPI) else None
        assert isinstance(door, Door | None)
        self._shutdown = door.shutdown if door is not None else Shutdown()
        self._setting = setting
        self._host = host
        self._port = port
        self._listener = listener
        config = uvicorn.Config(
            app,
            http=protocol_class(door.limits if door is not None else HttpLimits()),
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> tuple[str, int]:
        """Listen and serve; returns the address really in use.

        Raises:
            ConfigError: The address is taken, forbidden or unknown.
        """
        listener = self._listener or await self._listen()
        host, port = listener.getsockname()[:2]
        await self._server.startup(sockets=[listener])
        self._task = asyncio.create_task(self._server.run_until_stopped(), name="http:server")
        log.info("http.listening", host=host, port=port)
        return str(host), int(port)

    async def stop(self, grace: float) -> None:
        """Take no more connections, end the event streams, give requests in flight `grace` seconds to finish.

        Those that have not are answered `draining`. A second call returns at once.
        """
        task, self._task = self._task, None
        if task is None:
            return
        self._server.stop_listening()
        self._shutdown.draining.set()
        if not await _finished(task, grace):
            self._shutdown.expired.set()
            if not await _finished(task, _LAST_WORDS):
                self._server.cut()
        await task

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._server.server_state.connections)

    @property
    def unsent_bytes(self) -> int:
        """What waits in the transports of all connections for clients to fetch it."""
        return sum(each.transport.get_write_buffer_size() for each in self._server.server_state.connections)

    async def _listen(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        address = f"{self._host}:{self._port}"
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ConfigError(f"{self._setting} = {address!r}: there is no such address ({error.strerror})") from error
        family, kind, protocol, _, sockaddr = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(sockaddr)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            hint = "; is another aerodrome running? Choose another port" if error.errno == errno.EADDRINUSE else ""
            raise ConfigError(f"{self._setting} = {address!r}: {error.strerror}{hint}") from error
        return listener


async def _finished(task: asyncio.Task[None], seconds: float) -> bool:
    done, _ = await asyncio.wait({task}, timeout=seconds)
    return bool(done)


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers and polling; only `startup` and `on_tick` are its own."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        config.load()
        self.lifespan = config.lifespan_class(config)
        self._stopping = asyncio.Event()

    async def run_until_stopped(self) -> None:
        while not self._stopping.is_set():
            # Keeps the `Date` header right.
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stopping.wait()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        # These sets tell nobody when they are empty.
        while (self.server_state.connections or self.server_state.tasks) and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(_POLL)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_WORDS)

    def stop_listening(self) -> None:
        """At once, and begin to shut down."""
        for server in self.servers:
            server.close()
        self._stopping.set()

    def cut(self) -> None:
        """Give up on clients that do not fetch their answers, and on requests that wait for something else."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in self.server_state.tasks:
            task.cancel()
