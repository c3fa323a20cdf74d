"""uvicorn inside our own event loop, started and stopped by the application and not by signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import structlog
import uvicorn
from fastapi import FastAPI

from aerodrome.errors import ConfigError
from aerodrome.http.door import Door
from aerodrome.http.protocol import protocol_class

log = structlog.get_logger(__name__)

#: Seconds that responses get to be written out after the grace period, before their connections are cut.
_LAST_WORDS = 1.0
_BACKLOG = 2048


class HttpServer:
    """Serves an application of `create_app` on one address.

    Args:
        app: The application; its `state.door` is told about the shutdown.
        host: Address or name to listen on.
        port: 0 for any free one.
    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        door = app.state.door
        assert isinstance(door, Door)
        self._door = door
        self._host = host
        self._port = port
        config = uvicorn.Config(
            app,
            http=protocol_class(door.limits),
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
        listener = await self._listen()
        host, port = listener.getsockname()[:2]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http:server")
        await self._server.listening.wait()
        log.info("http.listening", host=host, port=port)
        return str(host), int(port)

    async def stop(self, grace: float) -> None:
        """Take no more connections, end the event streams, give requests in flight `grace` seconds to finish.

        Those that have not are answered `draining`. Safe to call twice.
        """
        if self._task is None:
            return
        self._server.stop_listening()
        self._door.shutdown.draining.set()
        self._server.should_exit = True
        if not await self._finished(grace):
            self._door.shutdown.expired.set()
            if not await self._finished(_LAST_WORDS):
                self._server.cut_connections()
                await self._finished(_LAST_WORDS)
        # What still runs now waits for something that is not its client.
        self._server.force_exit = True
        await self._task
        self._task = None

    async def _finished(self, seconds: float) -> bool:
        assert self._task is not None
        done, _ = await asyncio.wait({self._task}, timeout=seconds)
        return bool(done)

    async def _listen(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        address = f"{self._host}:{self._port}"
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ConfigError(f"server.http = {address!r}: there is no such address ({error.strerror})") from error
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
            raise ConfigError(f"server.http = {address!r}: {error.strerror}{hint}") from error
        return listener


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The application owns the signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    def stop_listening(self) -> None:
        """At once; uvicorn itself looks every tenth of a second."""
        for server in self.servers:
            server.close()

    def cut_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
