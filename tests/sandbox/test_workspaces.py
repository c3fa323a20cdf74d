"""A workspace outlives runtimes and nodes, and ends with the last session of its user."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import psutil
import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.model import RuntimeKey
from support.host import until
from support.sandbox import Shell, sandboxed
from support.server import aerodrome, new_key, serve, user_of, write_config

pytestmark = pytest.mark.cli

#: The sections of `support.sandbox`, for a file.
SANDBOX = """
[runtime]
launcher = "sandbox"
[isolation]
default = "user"
[policy]
host_tools = ["bash"]
"""


async def test_it_survives_hibernation_and_the_loss_of_its_runtime(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model) as running:
        alice = await Shell.of(running, "alice")
        await alice.run("echo mine > file; pwd > where")
        assert await running.node.sessions.hibernate(running.node.sessions.live[0])
        await until(lambda: not [r for r in running.node.pool.runtimes if r.key], timeout=60)
        assert "mine" in await alice.run("cat file")
        running.process(user="alice").kill()
        assert "/workspace" in await alice.run("cat where")
    async with sandboxed(tmp_path, model) as running:
        assert "mine" in await Shell(await running.user("alice"), "shell-of-alice").run("cat file")


async def test_it_ends_with_the_last_session_of_its_user(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model) as running:
        alice, bob = await Shell.of(running, "alice"), await Shell.of(running, "bob")
        for shell in (alice, bob):
            await shell.run("echo mine > file")
        second = await Shell.of(running, "alice", session="second")
        workspaces = running.node._workspaces._workspaces
        hers, his = (workspaces.directory(RuntimeKey("acme", name)) for name in ("alice", "bob"))
        await alice.user.http.delete("/sessions/shell-of-alice")
        assert "mine" in await second.run("cat file")
        await alice.user.http.delete("/sessions/second")
        await until(lambda: [path.name for path in workspaces.root.iterdir()] == [his.name], timeout=60)
        assert not hers.exists()
        assert (his / "files/file").read_text() == "mine\n"
        # Who comes again begins with nothing.
        again = await Shell.of(running, "alice")
        assert "No such file" in await again.run("cat file")


async def test_users_who_share_a_runtime_have_none(tmp_path: Path, model: ModelServer) -> None:
    isolation = {"default": "user", "tenants": {"shared": "tenant"}}
    async with sandboxed(tmp_path, model, isolation=isolation) as running:
        carol = await running.user("carol", "shared")
        refused = await carol.http.post("/sessions", json={"id": "s1", "tools": ["bash"]})
        assert refused.status_code == 400
        await carol.open("s1")
        assert "hello" in await carol.text("s1", "hello")
        assert not (tmp_path / "workspaces").exists()


async def test_kill_9_of_the_node_leaves_no_process_and_an_operator_erases_what_is_left(
    tmp_path: Path, model: ModelServer
) -> None:
    config = write_config(tmp_path, model.base_url, SANDBOX)
    key = await new_key(config)
    async with serve(config) as server, user_of(server, key) as user:
        await user.open("s1", tools=["bash"])
        await Shell(user, "s1").run("echo mine > file; (setsid sleep 1000 &)")

        def asleep() -> list[psutil.Process]:
            found = []
            for process in server.runtimes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name() == "sleep":
                        found.append(process)
            return found

        await until(lambda: len(asleep()) == 1)  # the shell has not waited for it
        runtimes = server.runtimes()
        server.send_signal(signal.SIGKILL)
        await server.process.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, runtimes, 60)
    assert not alive
    (workspace,) = (tmp_path / "data/workspaces").iterdir()
    assert (workspace / "files/file").read_text() == "mine\n"
    await aerodrome(
        *("sessions", "rm", "--config", str(config), "--tenant", "acme", "--user", "alice"),
        *("--all", "--yes", "--wait", "1m", "--json"),
    )
    assert list((tmp_path / "data/workspaces").iterdir()) == []


async def test_what_others_have_deleted_is_noticed_at_the_next_start(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model) as running:
        workspaces = running.node._workspaces._workspaces
        for name in ("gone", "gone-too"):
            workspaces.open(RuntimeKey("acme", name)).release()
        await Shell.of(running, "alice")
        workspaces.open(RuntimeKey("acme", "alice")).release()
        (workspaces.root / ".gone-1234/files").mkdir(parents=True)
    async with sandboxed(tmp_path, model) as running:
        await until(lambda: len(list(workspaces.root.iterdir())) == 1, timeout=60)
        assert workspaces.directory(RuntimeKey("acme", "alice")).exists()
