"""`aerodrome top`: on a terminal, once, and as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aerodrome.app.stores import open_stores
from aerodrome.cli.top_view import screen
from aerodrome.config import load_settings
from aerodrome.coordination.ports import Node
from aerodrome.operators.view import snapshot

pytestmark = pytest.mark.timeout(120)

RUNTIME = {
    "id": "rt-1",
    "node": "n1",
    "state": "claimed",
    "tenant": "acme",
    "user": None,
    "sessions": 3,
    "turns": 77,
    "rss_bytes": 300 << 20,
}


def load(waiting: int) -> dict[str, Any]:
    return {
        "runtimes": [RUNTIME],
        "sessions": 3,
        "tenants": [{"tenant": "acme", "sessions": 3, "turns": 2, "waiting": waiting}],
        "wait": 1.25,
        "rss_bytes": 100 << 20,
        "started_at": time.time() - 60,
    }


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "aerodrome.toml"
    path.write_text(f"[server]\ndata_dir = {json.dumps(str(tmp_path / 'data'))}\n")
    tell(path, 17)
    return path


def tell(config: Path, waiting: int) -> None:
    """A node says what it does."""

    async def say() -> None:
        async with open_stores(load_settings(config, resolve_secrets=False)) as stores:
            node = Node("n1", "n1-1", "127.0.0.1:1", load(waiting))
            await stores.coordination.join(node, 3600)

    asyncio.run(say())


class Terminal:
    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self.said = b""
        self._fd = fd

    def shows(self, text: bytes, seconds: float = 60) -> None:
        """Read until the text has been seen after what was seen before."""
        deadline = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < deadline, self.said[-2000:]
            self.said += self._read()

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def ends(self) -> int:
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(self._fd, 65536):
                self.said += more
        return self.process.wait(60)

    def _read(self) -> bytes:
        return os.read(self._fd, 65536)


@contextmanager
def on_a_terminal(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-m", "aerodrome", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda terminal: terminal.press(b"q"), id="q"),
        pytest.param(lambda terminal: terminal.process.send_signal(signal.SIGINT), id="ctrl-c"),
    ],
)
def test_on_a_terminal_it_is_live_until_told_to_end(config: Path, leave: Callable[[Terminal], None]) -> None:
    with on_a_terminal("top", "--config", str(config), "--interval", "0.2") as terminal:
        for text in (b"n1", b"17 waiting", b"acme", b"rt-1"):
            terminal.shows(text)
        tell(config, 4242)
        terminal.shows(b"4242 waiting")
        terminal.press(b"x")  # another key does nothing
        tell(config, 5151)
        terminal.shows(b"5151 waiting")
        leave(terminal)
        assert terminal.ends() == 0
        assert b"Traceback" not in terminal.said
        assert b"\x1b[?1049l" in terminal.said  # the screen of before
        assert terminal.said.rfind(b"\x1b[?25h") > terminal.said.rfind(b"\x1b[?25l")  # and its cursor


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aerodrome", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_without_a_terminal_and_with_once_it_is_printed_once(config: Path) -> None:
    for arguments in ((), ("--once",)):
        done = run("top", "--config", str(config), *arguments)
        assert done.returncode == 0, done.stderr
        assert "17 waiting" in done.stdout
        assert "rt-1" in done.stdout
        assert "\x1b" not in done.stdout


def test_json_is_one_snapshot(config: Path) -> None:
    seen = json.loads(run("top", "--json", "--config", str(config)).stdout)
    assert seen["totals"] == {
        "nodes": 1,
        "sessions": 3,
        "runtimes": 1,
        "turns": 2,
        "waiting": 17,
        "rss_bytes": 400 << 20,
    }
    assert seen["tenants"][0]["tenant"] == "acme"


def test_json_to_watch_is_a_line_each_time(config: Path) -> None:
    arguments = ("top", "--json", "--watch", "--interval", "0.1", "--config", str(config))
    process = subprocess.Popen([sys.executable, "-m", "aerodrome", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["totals"]["waiting"] == 17
        tell(config, 18)
        while json.loads(process.stdout.readline())["totals"]["waiting"] != 18:
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stdout.close()


def test_watch_is_for_json(config: Path) -> None:
    done = run("top", "--watch", "--config", str(config))
    assert done.returncode == 2
    assert "--json" in done.stderr


def test_a_screen_shows_as_much_as_fits() -> None:
    runtimes = [{**RUNTIME, "id": f"rt-{number}", "sessions": number} for number in range(200)]
    tenants = [{"tenant": f"t{number}", "sessions": 1, "turns": 1, "waiting": 0} for number in range(100)]
    nodes = [
        Node(f"n{number}", f"n{number}-1", load={"runtimes": runtimes[number::50], "tenants": tenants})
        for number in range(50)
    ]
    seen = snapshot(nodes, time.time())
    console = Console(width=150, height=40, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(screen(seen, rows=40))
    lines = console.export_text().splitlines()
    assert len(lines) <= 40
    assert "rt-199" in "".join(lines)  # the busiest
    assert sum("more" in line for line in lines) == 3
