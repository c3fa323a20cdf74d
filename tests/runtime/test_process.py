"""The process launcher, over the real CLI and over scripts that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
from pathlib import Path

import psutil
import pytest
import uvloop

from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime.launchers.output import LogFile, RuntimeOutput, read_output
from aerodrome.runtime.launchers.process import PASSED_ON, ChildProcess
from aerodrome.runtime.link import Link, RemoteError
from support.cli import OFFLINE, TOKEN, fake, has_ended, launch_spec, launcher, processes_at_home
from support.peer import Owner
from support.waiting import until


@pytest.mark.cli
async def test_the_cli_listens_on_a_port_of_its_choice_with_nothing_of_ours_in_its_environment(
    cli: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"OPENAI_API_KEY": "secret-1", "GITHUB_TOKEN": "secret-2", "AERODROME_PROVIDER__API_KEY": "secret-3"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    spec = launch_spec(tmp_path, cli)
    process = await launcher().launch(spec, timeout=30)
    try:
        host, port = process.address
        assert host == "127.0.0.1"
        seen = psutil.Process(process.pid)
        assert {(c.laddr.ip, c.laddr.port) for c in seen.net_connections() if c.status == psutil.CONN_LISTEN} == {
            (host, port)
        }
        environ = seen.environ()
        assert not any("secret" in value for value in environ.values())
        assert environ["NO_PROXY"] == "127.0.0.1"
        ours = {"HOME", "TMPDIR", "COPILOT_HOME", "COPILOT_PKG_CACHE_HOME", "COPILOT_CONNECTION_TOKEN"}
        ours |= {"COPILOT_DISABLE_KEYTAR", "MALLOC_TRIM_THRESHOLD_", *OFFLINE}
        assert set(environ) - set(PASSED_ON) == ours
        assert not any(TOKEN in argument for argument in seen.cmdline())
        assert Path(seen.cwd()) == spec.home / "workspace"
        assert spec.home.stat().st_mode & 0o777 == 0o700
        await check_token(host, port)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert process.exit_code == 0
        assert f"listening on port {port}" in process.output_tail()
        assert f"listening on port {port}" in (spec.log_dir / "output.log").read_text()
    finally:
        process.kill()
        await process.reap()
    process.kill()
    process.terminate()


async def check_token(host: str, port: int) -> None:
    link = await Link.connect(host, port, Owner(), timeout=30)
    try:
        with pytest.raises(RemoteError, match="AUTHENTICATION_FAILED") as refused:
            await link.request("connect", {"token": "wrong", "supportedTaskKinds": []}, timeout=30)
        assert refused.value.code == -32002
        hello = await link.request("connect", {"token": TOKEN, "supportedTaskKinds": []}, timeout=30)
        assert hello["protocolVersion"] == 3
    finally:
        await link.aclose()


def test_nothing_that_the_node_has_open_is_handed_on(tmp_path: Path) -> None:
    """On the loop of production, which hands on what is inheritable."""
    uvloop.run(_nothing_is_handed_on(tmp_path))


async def _nothing_is_handed_on(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        os.set_inheritable(reading, True)
        process = await launcher().launch(launch_spec(tmp_path, fake(tmp_path, "protocol")), timeout=50)
        # Its output and the socket on which it listens.
        theirs = set(os.listdir(f"/proc/{process.pid}/fd"))
        process.kill()
        await process.reap()
        assert theirs == {"0", "1", "2", "3"}
    finally:
        os.close(reading)
        os.close(writing)


# --- starts that fail ---


def zombies() -> set[psutil.Process]:
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.add(child)
    return found


async def launch_fails(tmp_path: Path, command: Path, *, timeout: float = 50) -> str:
    before = zombies()  # what earlier tests have left is no fault of this one
    with pytest.raises(RuntimeUnavailable) as caught:
        await launcher().launch(launch_spec(tmp_path, command), timeout=timeout)
    assert processes_at_home(tmp_path) == []
    assert zombies() <= before
    return caught.value.detail


async def test_a_command_that_is_missing(tmp_path: Path) -> None:
    detail = await launch_fails(tmp_path, tmp_path / "nowhere" / "copilot")
    assert f"{tmp_path}/nowhere/copilot: No such file or directory" in detail


async def test_a_command_that_is_not_executable(tmp_path: Path) -> None:
    command = fake(tmp_path, "protocol")
    command.chmod(0o600)
    assert f"{command}: Permission denied" in await launch_fails(tmp_path, command)


async def test_a_command_that_is_no_program(tmp_path: Path) -> None:
    command = tmp_path / "copilot"
    command.write_bytes(b"\x00\x01")
    command.chmod(0o700)
    assert f"{command}: Exec format error" in await launch_fails(tmp_path, command)


async def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "homes").write_text("a file is in the way")
    assert "could not be started" in await launch_fails(tmp_path, fake(tmp_path, "protocol"))


async def test_a_runtime_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    detail = await launch_fails(tmp_path, fake(tmp_path, "ends_at_once"))
    assert "ended with code 3 before it listened" in detail
    assert detail.endswith("it said: loading\nfatal: the machine has no such instruction")


async def test_a_runtime_that_never_listens_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    detail = await launch_fails(tmp_path, fake(tmp_path, "never_listens"), timeout=0.5)
    assert "did not listen within 0.5 s" in detail
    assert detail.endswith(("it said: warming up", "said nothing"))


async def test_a_launch_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    launching = asyncio.create_task(
        launcher().launch(launch_spec(tmp_path, fake(tmp_path, "never_listens")), timeout=30)
    )
    await until(lambda: processes_at_home(tmp_path) != [])
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert processes_at_home(tmp_path) == []


async def test_a_launch_that_is_cancelled_at_any_moment_leaves_no_process(tmp_path: Path) -> None:
    command = fake(tmp_path, "never_listens")
    for steps in range(12):
        spec = launch_spec(tmp_path, command, home=tmp_path / "homes" / f"rt-{steps}")
        launching = asyncio.create_task(launcher().launch(spec, timeout=30))
        for _ in range(steps):
            await asyncio.sleep(0)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching
        assert processes_at_home(spec.home) == []


# --- the end of a runtime ---


async def parent(tmp_path: Path) -> tuple[ChildProcess, list[psutil.Process]]:
    process = await launcher().launch(launch_spec(tmp_path, fake(tmp_path, "has_children")), timeout=50)
    found = re.search(r"children ([\d ]+)", process.output_tail())
    assert found is not None
    return process, [psutil.Process(int(pid)) for pid in found[1].split()]


async def test_killing_it_kills_all_that_it_has_started(tmp_path: Path) -> None:
    process, (in_group, outside, unknown) = await parent(tmp_path)
    try:
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        # The group goes at once; who has left it, when the process is cleaned up.
        await until(lambda: has_ended(in_group))
        assert not has_ended(outside)
        await asyncio.wait_for(process.cleanup(), 30)
        await until(lambda: has_ended(outside))
        # Somebody who has hidden well holds the pipe: we do not.
        assert not has_ended(unknown)
    finally:
        unknown.kill()


async def test_an_end_by_itself_is_cleaned_up_though_a_child_holds_its_output(tmp_path: Path) -> None:
    process, (*_, unknown) = await parent(tmp_path)
    try:
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait_for(process.reap(), 30)
        await until(lambda: processes_at_home(tmp_path) == [])
    finally:
        unknown.kill()


# --- output ---


async def spoken(tmp_path: Path, **changes: int) -> ChildProcess:
    process = await launcher().launch(launch_spec(tmp_path, fake(tmp_path, "talks_a_lot"), **changes), timeout=50)
    await until(lambda: process.output_tail().endswith("said everything"))
    return process


async def test_output_is_kept_up_to_its_limit(tmp_path: Path) -> None:
    process = await spoken(tmp_path, log_bytes=100_000)
    try:
        logs = {path.name: path.stat().st_size for path in (tmp_path / "logs" / "rt-1").iterdir()}
        assert set(logs) == {"output.log", "output.log.1"}
        assert sum(logs.values()) <= 100_000
        assert (tmp_path / "logs" / "rt-1" / "output.log").read_text().endswith("said everything\n")
        assert len(process.output_tail()) <= 40 * 1001
    finally:
        process.kill()
        await process.reap()


async def test_who_writes_without_end_does_not_keep_the_event_loop_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is run in a runtime can write to its output. However short the lines are, few are looked at; and after a
    large piece the pipe is left alone for a while, unless there are only the last words to be read."""
    looked_at: list[bytes] = []
    look = RuntimeOutput._complete_line

    def counted(self: RuntimeOutput, line: bytes) -> None:
        looked_at.append(line)
        look(self, line)

    monkeypatch.setattr(RuntimeOutput, "_complete_line", counted)
    monkeypatch.setattr("aerodrome.runtime.launchers.output._RATE", 1)
    output = RuntimeOutput(LogFile(tmp_path, 1 << 20))
    reading, writing = os.pipe()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: output, os.fdopen(reading, "rb", 0))
    try:
        os.write(writing, b"CLI server listening on port 7\n")
        assert await output.port == 7
        looked_at.clear()
        os.write(writing, b"\n" * 50_000 + b"the end of it\n")
        await until(lambda: output.tail().endswith("the end of it"))
        assert len(looked_at) <= 41
        os.write(writing, b"last words\n")
        for _ in range(5):
            await asyncio.sleep(0)
        assert output.tail().endswith("the end of it")
        output.expect_last_words()
        await until(lambda: output.tail().endswith("last words"))
    finally:
        os.close(writing)
        transport.close()
        await output.ended.wait()


def test_a_descriptor_is_closed_once_when_its_reader_is_given_up(tmp_path: Path) -> None:
    """On the loop of production: closed once more, later on, it would be somebody else's."""
    uvloop.run(_it_is_closed_once(tmp_path))


async def _it_is_closed_once(tmp_path: Path) -> None:
    gc.collect()  # what earlier tests have left to be closed has a lower number, which would be given out first
    for steps in (1, 2):
        reading, writing = os.pipe()
        opening = asyncio.create_task(read_output(reading, LogFile(tmp_path, 1000)))
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait({opening})
        assert opening.cancelled()
        await until(lambda number=reading: not os.path.exists(f"/proc/self/fd/{number}"))  # type: ignore[misc]
        somebody_elses = os.open(os.devnull, os.O_RDONLY)
        assert somebody_elses == reading
        del opening
        gc.collect()
        os.close(somebody_elses)
        os.close(writing)


async def test_a_log_that_cannot_be_written_does_not_stop_the_runtime(tmp_path: Path) -> None:
    (tmp_path / "logs" / "rt-1" / "output.log").mkdir(parents=True)
    process = await spoken(tmp_path)
    assert process.exit_code is None
    process.kill()
    await process.reap()


def test_a_log_goes_on_when_it_was_removed_under_it(tmp_path: Path) -> None:
    log = LogFile(tmp_path, max_bytes=100)
    log.write(b"a" * 50)
    (tmp_path / "output.log").unlink()
    for letter in (b"b", b"c", b"d"):
        log.write(letter * 50)
    log.close()
    assert (tmp_path / "output.log.1").read_bytes() == b"c" * 50
    assert (tmp_path / "output.log").read_bytes() == b"d" * 50


async def test_descriptors_do_not_pile_up(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    process, (*_, unknown) = await parent(tmp_path)
    try:
        process.kill()
        await process.reap()
        with pytest.raises(RuntimeUnavailable):
            await launcher().launch(launch_spec(tmp_path, fake(tmp_path, "ends_at_once")), timeout=50)
        process = await spoken(tmp_path)
        process.kill()
        await process.reap()
        await until(lambda: psutil.Process().num_fds() <= before)
    finally:
        unknown.kill()
