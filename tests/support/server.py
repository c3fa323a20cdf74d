"""`aerodrome serve` as a process of its own, for what must be killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from support.command_line import Result
from support.host import User


def write_config(directory: Path, model_url: str, extra: str = "", *, ttl: str = "2s") -> Path:
    """A configuration file for one data directory; `extra` is TOML behind it.

    Args:
        ttl: A node that stands still for two thirds of it gives up its sessions. Where no node is to be missed, it
            costs nothing to have it longer than a slow machine can need.
    """
    config = directory / "aerodrome.toml"
    config.write_text(
        f"""
[server]
http = "127.0.0.1:0"
gateway = "127.0.0.1:0"
data_dir = {json.dumps(str(directory / "data"))}
drain_timeout = "60s"
[provider]
type = "openai"
base_url = {json.dumps(model_url)}
api_key = "test-key"
model = "gpt-4.1"
[coordination]
heartbeat = "200ms"
ttl = "{ttl}"
{extra}
"""
    )
    return config


async def aerodrome(*arguments: str, json_output: bool = True) -> Any:
    """Run a command that must succeed; returns what it printed, decoded if it is JSON."""
    done = await run_aerodrome(*arguments)
    assert done.code == 0, done.err
    return done.json if json_output else done.out


async def run_aerodrome(*arguments: str) -> Result:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "aerodrome", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


class Server:
    def __init__(self, process: asyncio.subprocess.Process, config: Path, url: str, log: Path, gateway: str) -> None:
        self.process = process
        self.config = config
        self.url = url
        #: Address of the native gateway, HOST:PORT.
        self.gateway = gateway
        self.log = log

    def runtimes(self) -> list[psutil.Process]:
        """The Copilot CLI processes it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def pause_between_writes(self) -> None:
        """SIGSTOP. A process that stands still in the midst of a write to SQLite keeps everybody else from writing."""
        for _ in range(100):
            self.send_signal(signal.SIGSTOP)
            if all(_may_write(path) for path in (self.config.parent / "data").glob("*.sqlite3")):
                return
            self.send_signal(signal.SIGCONT)
        raise AssertionError("always in the midst of a write")


def _may_write(path: Path) -> bool:
    connection = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


@asynccontextmanager
async def serve(config: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Server]:
    """A running server. Killed at the end if it still runs. `environment` goes over this process's."""
    log = config.with_name(f"serve-{os.urandom(4).hex()}.log")
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "aerodrome",
            "serve",
            "--config",
            str(config),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
        )
    assert process.stdout is not None
    try:
        try:
            async with asyncio.timeout(60):
                line = (await process.stdout.readline()).decode()
        except TimeoutError:
            line = "nothing within 60 s"
        assert line.startswith("ready http="), (line, log.read_text()[-2000:])
        doors = dict(word.split("=", 1) for word in line.split()[1:])
        yield Server(process, config, f"http://{doors['http']}", log, doors["gateway"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def user_of(server: Server, key: str) -> AsyncIterator[User]:
    async with httpx.AsyncClient(
        base_url=f"{server.url}/api/v1", headers={"Authorization": f"Bearer {key}"}, timeout=240
    ) as client:
        yield User(client)


async def new_key(config: Path, user: str = "alice", tenant: str = "acme") -> str:
    made = await aerodrome("keys", "create", "--config", str(config), "--tenant", tenant, "--user", user, "--json")
    return str(made["key"])
