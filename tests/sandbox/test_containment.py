"""What a hostile user's shell commands see and reach: each test runs them inside, as a tool call.

Every attack has a control beside it: the same thing done where it is allowed, so that a test cannot pass because its
attack does not work anywhere.
"""

from __future__ import annotations

import json
import os
import platform
import socket
from pathlib import Path

import psutil
import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.runtime.launchers.sandbox.bubblewrap import HOME
from support.host import Host
from support.sandbox import Shell, sandboxed

pytestmark = pytest.mark.cli

#: In the environment of the node, and nowhere else.
SECRET = "a-secret-of-the-host"


async def two_users(running: Host) -> tuple[Shell, Shell]:
    """Each with a runtime that runs."""
    alice, bob = await Shell.of(running, "alice"), await Shell.of(running, "bob")
    await bob.run("echo bobs > bobs-secret")
    await alice.run("true")
    return alice, bob


async def test_no_process_file_or_environment_of_anybody_else_is_seen(
    tmp_path: Path, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_NODE", SECRET)
    (tmp_path / "host-file").write_text(SECRET)
    async with sandboxed(tmp_path / "data", model) as running:
        alice, bob = await two_users(running)
        tokens = [runtime.token for runtime in running.node.pool.runtimes]
        assert len({*tokens}) >= 2
        own = running.runtime(user="alice").token
        paths = [tmp_path, tmp_path / "host-file", Path.home() / ".cache", "/etc/shadow", "/var", "/run", "/sys"]
        seen = await alice.python(
            f"""
programs, environments = set(), b""
for name in os.listdir("/proc"):
    if name.isdigit():
        programs.add(open(f"/proc/{{name}}/comm").read().strip())
        if tried(lambda: open(f"/proc/{{name}}/environ")) == "done":
            environments += open(f"/proc/{{name}}/environ", "rb").read()
print(json.dumps({{
    "programs": sorted(programs),
    "secret": {SECRET!r}.encode() in environments,
    "own": {own!r}.encode() in environments,
    "others": [token.encode() in environments for token in {[t for t in tokens if t != own]!r}].count(True),
    "paths": [os.path.exists(path) for path in {[str(path) for path in paths]!r}],
}}))"""
        )
        # What is one's own can be read: the test sees what there is to see.
        assert seen["own"]
        assert not seen["secret"]
        assert seen["others"] == 0
        assert not any(seen["paths"])
        assert len(seen["programs"]) < 10
        assert "pytest" not in seen["programs"]
        assert "bobs-secret" in await bob.run("find / -name bobs-secret 2>/dev/null")
        assert "bobs-secret" not in await alice.run("find / -name bobs-secret 2>/dev/null")
        assert "state.sqlite3" not in await alice.run("find / -name '*.sqlite3*' 2>/dev/null")


async def test_no_port_of_the_host_is_reached_directly_or_by_the_proxy(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model) as running:
        alice, _ = await two_users(running)
        bobs = running.runtime(user="bob")
        with await bobs.connect() as connection:  # the node reaches it
            bobs_port = connection.getpeername()[1]
        ports = [running.node.http_address[1], running.node.gateway_address[1], bobs_port]
        own_address = address_of_this_machine()
        names = [
            *("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "127.1", "0x7f000001", "2130706433", "017700000001"),
            *("[::ffff:127.0.0.1]", "[::]", "foo.localhost", own_address, "169.254.169.254", "10.0.0.1"),
        ]
        result = await alice.python(
            f"""
def by_proxy(where):
    with socket.create_connection(("127.0.0.1", 3128), 10) as proxy:
        proxy.sendall(f"CONNECT {{where}} HTTP/1.1\\r\\n\\r\\n".encode())
        return int(proxy.recv(100).split()[1])
direct = [(host, port) for host in ("127.0.0.1", {own_address!r}) for port in {[*ports, model.port]!r}]
print(json.dumps({{
    "direct": sorted({{tried(lambda: socket.create_connection(where, 5)) for where in direct}}),
    "by_proxy": sorted({{by_proxy(f"{{name}}:{{port}}") for name in {names!r} for port in {ports!r}}}),
    "model": by_proxy("127.0.0.1:{model.port}"),
}}))"""
        )
        assert "done" not in result["direct"]
        assert result["by_proxy"] == [403]
        assert result["model"] == 200


def address_of_this_machine() -> str:
    """Not of loopback, if it has another one."""
    addresses = [each.address for of_one in psutil.net_if_addrs().values() for each in of_one]
    ours = [each for each in addresses if each.count(".") == 3 and not each.startswith("127.")]
    return ours[0] if ours else "127.0.1.1"


async def test_an_open_network_is_the_public_one(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model, sandbox={"network": "open"}) as running:
        alice, _ = await two_users(running)
        port = running.node.http_address[1]
        names = ["127.0.0.1", "localhost", "[::1]", "127.1", "2130706433", "169.254.169.254", socket.gethostname()]
        result = await alice.python(
            f"""
def by_proxy(where):
    with socket.create_connection(("127.0.0.1", 3128), 20) as proxy:
        proxy.sendall(f"CONNECT {{where}} HTTP/1.1\\r\\n\\r\\n".encode())
        return int(proxy.recv(100).split()[1])
print(json.dumps([by_proxy(f"{{name}}:{port}") for name in {names!r}]))"""
        )
        assert set(result) <= {403, 502}
        assert result[:6] == [403] * 6


async def test_no_socket_of_the_host_is_reached(tmp_path: Path, model: ModelServer) -> None:
    path, abstract = str(tmp_path / "s"), f"\0aerodrome-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as nameless:
        for server, address in ((named, path), (nameless, abstract)):
            server.bind(address)
            server.listen()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(address)
        async with sandboxed(tmp_path / "data", model) as running:
            alice = await Shell.of(running, "alice")
            result = await alice.python(
                f"""
def connect(address):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
print(json.dumps([tried(lambda: connect(address)) for address in {[path, abstract]!r}]))"""
            )
            assert result == ["FileNotFoundError", "ConnectionRefusedError"]


async def test_no_process_of_the_host_is_killed_or_traced(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model) as running:
        alice, bob = await two_users(running)
        bobs = running.process(user="bob")
        targets = [os.getpid(), bobs.pid, *(parent.pid for parent in bobs.parents())]
        result = await alice.python(
            f"""
import ctypes
def attach(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "")
# Ids below a hundred may be processes of its own.
targets = [pid for pid in {targets!r} if pid > 100]
def kill(pid):
    os.kill(pid, 9)
results = [tried(lambda: attack(pid)) for pid in targets for attack in (kill, attach)]
print(json.dumps([len(results), sorted(set(results))]))"""
        )
        assert result[0] >= 4
        assert result[1] == ["ProcessLookupError"]
        # All that it can kill is itself.
        response = await alice.send_python("os.kill(-1, 9)")
        assert response.json()["code"] == "turn_interrupted", response.text
        assert bobs.is_running()
        assert "bobs" in await bob.run("cat bobs-secret")
        assert "back" in await alice.run("echo back")


async def test_nothing_is_written_outside_the_workspace_and_no_right_is_gained(
    tmp_path: Path, model: ModelServer
) -> None:
    async with sandboxed(tmp_path, model) as running:
        alice = await Shell.of(running, "alice")
        keyctl = {"x86_64": 250, "aarch64": 219}[platform.machine()]
        places = ["/x", "/usr/x", "/etc/x", "/etc/passwd", "/dev/x", "/opt/x", "/opt/copilot/packages/x", "/home/x"]
        places += ["/opt/copilot/bin/copilot", "/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern"]
        places += ["/proc/sysrq-trigger", "/proc/sys/user/max_user_namespaces"]
        result = await alice.python(
            f"""
import ctypes, stat, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), "")
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
os.close(os.open("allowed", os.O_CREAT | os.O_WRONLY))
os.chmod("allowed", 0o6755)
def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
print(json.dumps({{
    "written": [path for path in {places!r} if tried(lambda: write(path)) == "done"],
    "allowed": [tried(lambda: write(path)) for path in ("/workspace/x", "/tmp/x", "{HOME}/x")],
    "caps": status["CapEff"].strip("0 ") + status["CapBnd"].strip("0 "), "no_new_privs": status["NoNewPrivs"],
    "setuid": tried(lambda: os.setuid(0)),
    "namespace": tried(lambda: call("unshare", 0x10000000)),
    "mount": tried(lambda: call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None)),
    "device": tried(lambda: os.mknod("disk", stat.S_IFBLK | 0o600, os.makedev(254, 0))),
    "hardlink": tried(lambda: os.link("/usr/bin/env", "env")), "chroot": tried(lambda: os.chroot("/workspace")),
    "vsock": tried(lambda: socket.socket(40, socket.SOCK_STREAM)), "packet": tried(lambda: socket.socket(17, 3)),
    "keys": tried(lambda: call("syscall", {keyctl}, 0, -3, 0)), "uring": tried(lambda: call("syscall", 425, 1, 0)),
    "sockets": [tried(lambda: socket.socket(family)) for family in (1, 2)],
}}))"""
        )
        assert result["written"] == []
        assert result["allowed"] == ["done"] * 3
        assert (result["caps"], result["no_new_privs"]) == ("", "1")
        assert result["sockets"] == ["done"] * 2
        for attempt in (
            "vsock",
            "packet",
            "keys",
            "uring",
            "setuid",
            "namespace",
            "mount",
            "device",
            "hardlink",
            "chroot",
        ):
            assert result[attempt] in ("PermissionError", "OSError"), (attempt, result)


async def test_links_lead_nowhere_else(tmp_path: Path, model: ModelServer) -> None:
    """A link in the workspace is the sandbox's own path, for its programs; the node follows none when it removes it."""
    (outside := tmp_path / "outside").mkdir()
    (outside / "precious").write_text("x")
    async with sandboxed(tmp_path / "data", model) as running:
        alice = await Shell.of(running, "alice")
        said = await alice.run(
            f"ln -s {outside} dir; ln -s {outside}/precious file; ln -s / root; cat file; ls dir/; echo x >> file; "
            "mkdir -p a/b; cd a/b; ln -s ../../../../../../.. up; mkdir locked; touch locked/x; chmod 0 locked; "
            "echo end"
        )
        assert "end" in said
        assert said.count("No such file or directory") == 3
        workspaces = list((tmp_path / "data/workspaces").iterdir())
        assert [path.is_symlink() for path in workspaces[0].glob("files/*") if path.name != "a"] == [True] * 3
        await alice.user.http.delete(f"/sessions/{alice.session}")
        await gone(running, workspaces[0])
    assert (outside / "precious").read_text() == "x"


async def gone(running: Host, path: Path) -> None:
    from support.host import until

    await until(lambda: not path.exists(), timeout=60)


async def test_the_runtime_that_is_listed_is_the_copilot_cli(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model) as running:
        await (await Shell.of(running, "alice")).run("true")
        described = running.runtime(user="alice").describe()
        assert "--headless" in running.process(user="alice").cmdline()
        assert described["rss_bytes"] > 100 << 20
        assert json.dumps(described)
