"""What the benchmarks start: the scripted model, nodes and bare Copilot CLIs, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from aerodrome._util.xdg import runtime_packages
from aerodrome.config.settings import Settings
from aerodrome.errors import RuntimeUnavailable
from aerodrome.model import ISOLATED_TOOLS
from aerodrome.runtime.binary import Binary, resolve
from aerodrome.runtime.launchers.process import ProcessLauncher
from aerodrome.runtime.ports import LaunchSpec

MODEL = "gpt-4.1"
#: The allocator setting of every runtime (docs/facts.md, "Memory and wear").
TRIM_VARIABLE = "MALLOC_TRIM_THRESHOLD_"
#: Seconds for a process to be there, and for a pool to settle.
START_TIMEOUT = 60.0
_STOP_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class BareCli:
    """A Copilot CLI that listens, started as a node would start it, and that nobody has connected to."""

    host: str
    port: int
    token: str
    pid: int


class Lab:
    """A directory, a model and the CLI; use `Lab.open`."""

    def __init__(self, directory: Path, cli: Binary, model_url: str) -> None:
        self.directory = directory
        self.cli = cli
        self.model_url = model_url
        #: The environment of every CLI started here without a node; as that of a node's runtimes.
        self.cli_env = {
            "COPILOT_OFFLINE": "true",
            "COPILOT_PROVIDER_BASE_URL": model_url,
            "COPILOT_MODEL": MODEL,
        }
        self.tools = [f"builtin:{tool}" for tool in ISOLATED_TOOLS]

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Lab]:
        """Raises `RuntimeUnavailable` when there is no CLI, or the model does not start."""
        cli = await asyncio.to_thread(resolve)
        with tempfile.TemporaryDirectory(prefix="aerodrome-bench-", ignore_cleanup_errors=True) as directory:
            async with _model() as url:
                yield cls(Path(directory), cli, url)

    def new_directory(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory))

    @asynccontextmanager
    async def node(self, **sections: dict[str, Any]) -> AsyncIterator[NodeProcess]:
        """A node that listens and whose warm pool is full; each keyword is a section that goes over the settings."""
        data = self.new_directory("node")
        values: dict[str, dict[str, Any]] = {
            "server": {"http": "127.0.0.1:0", "gateway": "127.0.0.1:0", "data_dir": str(data), "drain_timeout": "5s"},
            "provider": {"type": "openai", "base_url": self.model_url, "api_key": "bench", "model": MODEL},
            "runtime": {"command": str(self.cli.path)},
        }
        for name, keys in sections.items():
            values[name] = {**values.get(name, {}), **keys}
        # As many as were asked for, so that it can be waited for.
        values["runtime"].setdefault("max_warm", values["runtime"].get("warm", 1))
        settings = Settings.model_validate(values)
        with (data / "node.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aerodrome.bench.host"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        async with _ending(process), httpx.AsyncClient(timeout=60) as http:
            node = NodeProcess(process, http, settings)
            await node.start(json.dumps(values))
            await node.settled(warm=settings.runtime.warm)
            yield node

    @asynccontextmanager
    async def bare_cli(self, **env: str) -> AsyncIterator[BareCli]:
        launcher = ProcessLauncher(runtime_packages())
        home, token = self.new_directory("cli"), secrets.token_urlsafe(32)
        spec = LaunchSpec("bench", self.cli.path, home, token, home / "logs", {**self.cli_env, **env})
        process = await launcher.launch(spec, timeout=START_TIMEOUT)
        try:
            yield BareCli(*process.address, token, process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_TIMEOUT):
                    await process.wait()
            process.kill()
            await process.wait()
            await process.cleanup()

    def untrimmed_cli(self) -> Path:
        """A program that is the CLI without our allocator setting, for `runtime.command`."""
        path = self.new_directory("untrimmed") / "copilot"
        path.write_text(f'#!/bin/sh\nunset {TRIM_VARIABLE}\nexec "{self.cli.path}" "$@"\n')
        path.chmod(0o700)
        return path


class NodeProcess:
    """A node in a process of its own, its control channel (`aerodrome.bench.host`), and its users."""

    def __init__(self, process: asyncio.subprocess.Process, http: httpx.AsyncClient, settings: Settings) -> None:
        self.settings = settings
        self._process = process
        self._http = http
        self.url = ""
        #: Where Copilot SDKs connect, HOST:PORT.
        self.gateway = ""
        self.stats = psutil.Process(process.pid)

    async def start(self, settings: str) -> None:
        doors = await self._say(settings)
        self.url, self.gateway = f"http://{doors['http']}", doors["gateway"]

    async def key(self, name: str = "alice", tenant: str = "acme") -> str:
        """A new API key of this user."""
        return str((await self.command("key", tenant=tenant, user=name))["key"])

    async def user(self, name: str = "alice", tenant: str = "acme") -> User:
        return User(self._http, f"{self.url}/api/v1", await self.key(name, tenant))

    async def runtimes(self) -> list[dict[str, Any]]:
        return list(await self.command("runtimes"))

    async def runtime(self, tenant: str = "acme") -> psutil.Process:
        """The process of the tenant's one runtime."""
        (found,) = [runtime for runtime in await self.runtimes() if runtime["tenant"] == tenant]
        return psutil.Process(found["pid"])

    async def settled(self, *, warm: int, claimed: int = 0) -> None:
        """Wait until exactly so many runtimes are there and none is starting or ending."""
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                states = sorted(runtime["state"] for runtime in await self.runtimes())
                if states == ["claimed"] * claimed + ["warm"] * warm:
                    return
                await asyncio.sleep(0.1)

    async def hibernate(self, tenant: str = "acme", session: str | None = None, *, count: int = 1) -> None:
        """Put `count` sessions to sleep. One whose turn has just been answered may be busy for another moment."""
        async with asyncio.timeout(START_TIMEOUT):
            while (count := count - (await self.command("hibernate", tenant=tenant, id=session))["count"]) > 0:
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        await self._process.wait()

    async def command(self, do: str, **values: Any) -> Any:
        return await self._say(json.dumps({"do": do, **values}))

    async def _say(self, line: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeUnavailable(f"the node under test ended; its last words: {self._last_words()}")
        return json.loads(answer)

    def _last_words(self) -> str:
        log = self.settings.server.data_dir / "node.log"
        return log.read_text(errors="replace")[-600:].strip() or "none"


class User:
    """What one user does over HTTP."""

    def __init__(self, http: httpx.AsyncClient, url: str, key: str) -> None:
        self._http = http
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}

    async def open(self, session: str, *, streaming: bool = False) -> None:
        await self._call("POST", "/sessions", json={"id": session, "streaming": streaming})

    async def turn(self, session: str, prompt: str) -> str:
        """The answer, when it is done."""
        answer = await self._call("POST", f"/sessions/{session}/messages", json={"prompt": prompt})
        return str(answer["message"]["content"])

    async def stream(self, session: str, prompt: str) -> int:
        """Read the turn as server-sent events to its end; how many events came."""
        url, headers = f"{self._url}/sessions/{session}/messages", {**self._headers, "Accept": "text/event-stream"}
        events = 0
        async with self._http.stream("POST", url, json={"prompt": prompt}, headers=headers) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                events += line.startswith("event:")
        return events

    async def list(self) -> int:
        """Read the whole listing of the user's sessions; how many there are."""
        count, cursor = 0, None
        while True:
            page = await self._call("GET", "/sessions", params={"limit": 200, **({"cursor": cursor} if cursor else {})})
            count += len(page["sessions"])
            if (cursor := page["next"]) is None:
                return count

    async def _call(self, method: str, path: str, **options: Any) -> Any:
        response = await self._http.request(method, self._url + path, headers=self._headers, **options)
        response.raise_for_status()
        return response.json()


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of this process alone, user and system."""
    times = process.cpu_times()
    return float(times.user + times.system)


@asynccontextmanager
async def _model() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aerodrome.demo.model"), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode().split()
        if not line:
            raise RuntimeUnavailable("the scripted model does not start")
        yield line[-1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


@asynccontextmanager
async def _ending(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Close the node's control channel at the end, which makes it drain; kill it when it does not."""
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
