"""The node inside a program: its settings, its clients, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from copilot import CopilotClient, RuntimeConnection

from aerodrome import Fleet
from aerodrome.config import Settings
from aerodrome.demo.model import ModelServer
from aerodrome.errors import ConfigError, Invalid, RuntimeUnavailable
from support.cli import has_ended, processes_at_home
from support.host import until


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


def sections(data_dir: Path, model: ModelServer, **changes: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "server": {"data_dir": str(data_dir), "http": "127.0.0.1:0", "drain_timeout": "5s"},
        "provider": {"type": "openai", "base_url": model.base_url, "api_key": "test-key", "model": "gpt-4.1"},
        "runtime": {"warm": 0},
    }
    return {**values, **changes}


async def text(session: Any, prompt: str) -> str:
    answer = await session.send_and_wait(prompt)
    return str(answer.data.content)


# --- without a runtime ---


def test_importing_the_package_loads_neither_a_node_nor_the_sdk() -> None:
    program = (
        "import sys, aerodrome; aerodrome.__version__; "
        "print(*{'copilot', 'fastapi', 'aerodrome.app', 'aerodrome.fleet'} & set(sys.modules)); "
        "print(aerodrome.Fleet.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\nFleet\n"


def test_the_package_has_no_other_late_names() -> None:
    import aerodrome

    with pytest.raises(AttributeError, match="Feet"):
        _ = aerodrome.Feet


async def test_without_the_sdk_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copilot", None)
    with pytest.raises(ImportError, match=r"pip install 'aerodrome\[sdk\]'"):
        await Fleet({}).client(user="alice")


def test_settings_may_be_settings_a_mapping_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[runtime]\nmax_sessions = 7\n")
    values = {"runtime": {"max_sessions": 7}}
    for given in (values, Settings.model_validate(values), file, str(file)):
        assert Fleet(given).settings.runtime.max_sessions == 7


def test_without_settings_it_is_what_the_command_would_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aerodrome.toml").write_text("[runtime]\nmax_sessions = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AERODROME_RUNTIME__WARM", "2")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    settings = Fleet().settings
    assert (settings.runtime.max_sessions, settings.runtime.warm) == (7, 2)
    assert settings.server.data_dir == tmp_path / "data" / "aerodrome"


def test_a_mapping_is_the_whole_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aerodrome.toml").write_text("[runtime]\nmax_sessions = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AERODROME_RUNTIME__WARM", "2")
    settings = Fleet({}).settings
    assert (settings.runtime.max_sessions, settings.runtime.warm) == (50, 1)


def test_wrong_settings_are_told_as_the_command_tells_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_session"):
        Fleet({"runtime": {"max_session": 7}})
    with pytest.raises(ConfigError, match="no such file"):
        Fleet(tmp_path / "missing.toml")


def test_the_gateway_is_for_this_program_and_nodes_are_told_apart() -> None:
    settings = Fleet({"server": {"gateway": "0.0.0.0:4321"}}).settings
    assert str(settings.server.gateway) == "127.0.0.1:0"
    assert settings.server.node_name != Settings().server.node_name
    assert Fleet({"server": {"node_name": "mine"}}).settings.server.node_name == "mine"


@pytest.mark.parametrize(("user", "tenant"), [("", None), ("a/b", None), ("alice", "no tenant"), ("x" * 101, None)])
def test_users_and_tenants_have_names(user: str, tenant: str | None) -> None:
    with pytest.raises(Invalid, match="no valid"):
        Fleet({}).credential(user, tenant=tenant)


async def test_a_fleet_that_does_not_run_says_so() -> None:
    fleet = Fleet({})
    with pytest.raises(RuntimeError, match="async with"):
        await fleet.client(user="alice")
    with pytest.raises(RuntimeError, match="http=True"):
        _ = fleet.http_url


async def test_what_a_node_cannot_start_with_is_raised_and_nothing_is_left(tmp_path: Path) -> None:
    fleet = Fleet({"server": {"data_dir": str(tmp_path)}, "runtime": {"command": str(tmp_path / "nowhere")}})
    with pytest.raises(RuntimeUnavailable, match="nowhere"):
        await fleet.__aenter__()
    await until(lambda: all(thread.name != "aerodrome" for thread in threading.enumerate()))
    with pytest.raises(RuntimeError, match="async with"):
        fleet.gateway_address  # noqa: B018


# --- with real runtimes ---


@pytest.mark.cli
async def test_clients_of_two_users_talk_and_see_their_own_sessions_only(tmp_path: Path, model: ModelServer) -> None:
    async with Fleet(sections(tmp_path, model), tenant="acme") as fleet:
        alice, bob = await fleet.client(user="alice"), await fleet.client(user="bob", mode="empty")
        assert isinstance(alice, CopilotClient)
        hers = await alice.create_session(session_id="hers")
        his = await bob.create_session(session_id="his", available_tools=[])
        assert await text(hers, "My name is Ada") == "Nice to meet you, Ada."
        assert await text(his, "What is my name?") != "Your name is Ada."
        assert [session.session_id for session in await alice.list_sessions()] == ["hers"]
        with pytest.raises(Exception, match="Session not found"):
            await bob.resume_session("hers", available_tools=[])
        elsewhere = await fleet.client(user="alice", tenant="bank")
        assert await elsewhere.list_sessions() == []
        assert {(s["tenant"], s["id"], s["owner"]) for s in await fleet.sessions()} == {
            ("acme", "hers", "alice"),
            ("acme", "his", "bob"),
        }
        assert await fleet.sessions("bank") == []
        assert [(r["tenant"], r["sessions"]) for r in await fleet.runtimes()] == [("acme", 2)]


@pytest.mark.cli
async def test_sessions_are_there_again_in_the_next_fleet_of_these_settings(tmp_path: Path, model: ModelServer) -> None:
    async with Fleet(sections(tmp_path, model)) as fleet:
        session = await (await fleet.client(user="alice")).create_session(session_id="s1")
        await text(session, "My name is Ada")
        processes = [psutil.Process(runtime["pid"]) for runtime in await fleet.runtimes()]
        assert processes
    assert not any(process.is_running() for process in processes)
    assert processes_at_home(tmp_path) == []
    async with Fleet(sections(tmp_path, model)) as fleet:
        session = await (await fleet.client(user="alice")).resume_session("s1")
        assert await text(session, "What is my name?") == "Your name is Ada."


@pytest.mark.cli
async def test_credentials_are_in_memory_only_and_end_with_the_fleet(tmp_path: Path, model: ModelServer) -> None:
    async with Fleet(sections(tmp_path, model)) as fleet:
        client = await fleet.client(user="alice")
        await text(await client.create_session(), "Hello")
        credential = fleet.credential("alice")
        assert (await client.get_auth_status()).login == "alice"
        assert await fleet._on_node(fleet._running_node().stores.keys.list()) == []
        with pytest.raises(Exception, match="AUTHENTICATION_FAILED"):
            await _connect(fleet.gateway_address, "guessed")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and credential.encode() in path.read_bytes()]
    assert written == []
    async with Fleet(sections(tmp_path, model)) as fleet:
        with pytest.raises(Exception, match="AUTHENTICATION_FAILED"):
            await _connect(fleet.gateway_address, credential)


async def _connect(address: str, token: str) -> None:
    client = CopilotClient(connection=RuntimeConnection.for_uri(address, connection_token=token))
    try:
        await client.start()
    finally:
        await client.force_stop()


@pytest.mark.cli
async def test_no_http_door_unless_it_is_asked_for(tmp_path: Path, model: ModelServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        values = sections(tmp_path, model)
        values["server"]["http"] = f"127.0.0.1:{taken.getsockname()[1]}"
        async with Fleet(values) as fleet:
            with pytest.raises(RuntimeError, match="http=True"):
                _ = fleet.http_url
        with pytest.raises(ConfigError, match=r"server\.http"):
            async with Fleet(values, http=True):
                pass


@pytest.mark.cli
async def test_the_http_door_takes_the_credentials_of_the_program_and_issued_keys(
    tmp_path: Path, model: ModelServer
) -> None:
    async with Fleet(sections(tmp_path, model), tenant="acme", http=True) as fleet:
        client = await fleet.client(user="alice")
        await text(await client.create_session(session_id="s1"), "My name is Ada")
        _, key = await fleet._on_node(fleet._running_node().stores.keys.create("acme", "alice"))
        async with httpx.AsyncClient(base_url=f"{fleet.http_url}/api/v1") as http:
            for credential in (fleet.credential("alice"), key):
                listed = await http.get("/sessions", headers={"Authorization": f"Bearer {credential}"})
                assert [session["id"] for session in listed.json()["sessions"]] == ["s1"]
            assert (await http.get("/sessions")).status_code == 401


@pytest.mark.cli
async def test_clients_that_were_given_out_are_stopped_with_the_fleet(tmp_path: Path, model: ModelServer) -> None:
    async with Fleet(sections(tmp_path, model)) as fleet:
        stopped, left = await fleet.client(user="alice"), await fleet.client(user="bob")
        await stopped.stop()
        await left.ping()
    with pytest.raises(Exception, match=r"(?i)not connected|closed"):
        await left.ping()


@pytest.mark.cli
async def test_a_client_whose_start_is_given_up_leaves_no_connection(tmp_path: Path, model: ModelServer) -> None:
    async with Fleet(sections(tmp_path, model)) as fleet:
        starting = asyncio.create_task(fleet.client(user="alice"))
        await asyncio.sleep(0)  # it has connected, and waits for the first answer
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        # Connections are accepted in order, so hers has been by now.
        await fleet.client(user="bob")
        gateway = fleet._running_node().gateway
        await until(lambda: [client.who.user for client in gateway.clients] == ["bob"])


@pytest.mark.cli
async def test_a_program_that_stands_still_does_not_cost_the_node_its_sessions(
    tmp_path: Path, model: ModelServer
) -> None:
    values = sections(tmp_path, model, coordination={"heartbeat": "100ms", "ttl": "600ms"})
    async with Fleet(values) as fleet:
        session = await (await fleet.client(user="alice")).create_session()
        await text(session, "My name is Ada")
        [node] = await fleet._on_node(fleet._running_node().stores.coordination.nodes())
        time.sleep(1.5)  # what is tested: longer than the node may be silent
        [still] = await fleet._on_node(fleet._running_node().stores.coordination.nodes())
        assert still.incarnation == node.incarnation
        assert await text(session, "What is my name?") == "Your name is Ada."


PROGRAM = """
import asyncio, json, sys
from aerodrome import Fleet

async def main():
    async with Fleet(json.loads(sys.argv[1])) as fleet:
        session = await (await fleet.client(user="alice")).create_session()
        await session.send_and_wait("Hello")
        print(*[runtime["pid"] for runtime in await fleet.runtimes()], flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.cli
@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal")
async def test_a_program_that_is_killed_leaves_no_process(tmp_path: Path, model: ModelServer) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, json.dumps(sections(tmp_path, model)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert program.stdout is not None
        async with asyncio.timeout(60):
            line = await program.stdout.readline()
        processes = [psutil.Process(int(pid)) for pid in line.split()]
        assert processes
        assert not any(has_ended(process) for process in processes)
    finally:
        program.kill()
        await program.wait()
    await until(lambda: all(has_ended(process) for process in processes))


@pytest.mark.cli
async def test_a_program_that_is_interrupted_ends_its_fleet(tmp_path: Path, model: ModelServer) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        json.dumps(sections(tmp_path, model)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert program.stdout is not None
    async with asyncio.timeout(60):
        await program.stdout.readline()
    program.send_signal(signal.SIGINT)
    _, errors = await program.communicate()
    assert errors.decode().rstrip().endswith("KeyboardInterrupt")
    assert processes_at_home(tmp_path) == []
    async with Fleet(sections(tmp_path, model)) as fleet:
        assert [session["state"] for session in await fleet.sessions()] == ["hibernated"]


@pytest.mark.cli
async def test_an_error_in_the_program_ends_the_fleet_and_passes(tmp_path: Path, model: ModelServer) -> None:
    async def program() -> None:
        async with Fleet(sections(tmp_path, model)) as fleet:
            await text(await (await fleet.client(user="alice")).create_session(), "Hello")
            raise KeyError("the program's own")

    with pytest.raises(KeyError, match="the program's own"):
        await program()
    assert processes_at_home(tmp_path) == []
