"""One runtime from start to end. The pool's tests have the rest: being lost, being replaced."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from aerodrome._util.transitions import ImpossibleTransition
from aerodrome.errors import RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.launchers.process import ChildProcess
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.measure import cpu_seconds
from aerodrome.runtime.ports import LaunchSpec
from aerodrome.runtime.probe import ProbeModel
from aerodrome.runtime.supervisor import ManagedRuntime, RuntimeOptions
from support.cli import fake, hang, has_ended, launcher, processes_at_home, runtime_options
from support.waiting import until

ALICE = RuntimeKey("acme", "alice")


@pytest.fixture
async def probe() -> AsyncIterator[ProbeModel]:
    model = ProbeModel()
    await model.start()
    yield model
    await model.aclose()


def fake_options(tmp_path: Path, **misbehaviour: Any) -> RuntimeOptions:
    return runtime_options(tmp_path, fake(tmp_path, "protocol"), misbehaviour=misbehaviour)


@pytest.mark.cli
async def test_the_life_of_a_real_runtime(cli: Path, tmp_path: Path, probe: ProbeModel) -> None:
    runtime = ManagedRuntime("rt-1", runtime_options(tmp_path, cli))
    assert (runtime.describe()["state"], runtime.describe()["pid"]) == ("starting", None)
    await runtime.start(launcher(), probe)
    assert runtime.control.version.count(".") == 2
    row = runtime.describe()
    assert row["rss_bytes"] > 50_000_000
    assert (row["id"], row["state"], row["tenant"], row["user"]) == ("rt-1", "warm", None, None)
    # The probe has left nothing that a user could meet.
    assert (await runtime.control.request("session.list", {}))["sessions"] == []
    runtime.claim(ALICE)
    with pytest.raises(ImpossibleTransition):
        runtime.claim(RuntimeKey("acme", "bob"))
    assert runtime.describe()["user"] == "alice"
    (runtime.workspace / "secret.txt").write_text("what a tool has written")
    (process,) = processes_at_home(tmp_path)
    await asyncio.gather(runtime.stop(), runtime.stop())
    await runtime.stop()
    assert runtime.state is RuntimeState.STOPPED
    assert has_ended(process)
    assert not runtime.lost.is_set()
    assert not runtime.home.exists()
    assert "listening on port" in (tmp_path / "logs" / "rt-1" / "output.log").read_text()


# --- starts that fail ---


class InTime:
    """A launcher for which a process may take as long to listen as it does here; the rest has the time that is set."""

    async def launch(self, spec: LaunchSpec, *, timeout: float) -> ChildProcess:
        return await launcher().launch(spec, timeout=50)


@pytest.mark.parametrize(
    ("misbehaviour", "reason"),
    [
        ({"protocol": 4}, "speaks protocol 4, we speak 3; install the paired version"),
        ({"dies_on": "connect"}, "refuses the control link: connect: "),
        ({"dies_on": "session.create"}, "no session can be created in the new Copilot CLI: session.create: "),
        ({"dies_on": "session.detach"}, "no session can be created in the new Copilot CLI: session.detach: "),
        ({"fails_turns": True}, "a session in the new Copilot CLI failed: no model today"),
        ({"silent_on": "session.send"}, "did not answer within 0.7 s"),
    ],
)
async def test_a_runtime_that_is_not_ready_is_not_kept(
    tmp_path: Path, probe: ProbeModel, misbehaviour: dict[str, Any], reason: str
) -> None:
    options = fake_options(tmp_path, **misbehaviour)
    if "silent_on" in misbehaviour:
        options = replace(options, start_timeout=0.7)
    runtime = ManagedRuntime("rt-1", options)
    with pytest.raises(RuntimeUnavailable) as caught:
        await runtime.start(InTime(), probe)
    assert reason in caught.value.detail
    assert runtime.state is RuntimeState.FAILED
    assert processes_at_home(tmp_path) == []
    assert not runtime.home.exists()
    await runtime.stop()
    with pytest.raises(ImpossibleTransition):
        runtime.claim(ALICE)


async def test_a_runtime_that_dies_while_its_first_turn_runs_is_noticed_at_once(
    tmp_path: Path, probe: ProbeModel
) -> None:
    """The probe waits for an event that never comes, and would do so for the whole start time-out."""
    options = fake_options(tmp_path, dies_after="session.send")
    runtime = ManagedRuntime("rt-1", options)
    began = time.monotonic()
    with pytest.raises(RuntimeUnavailable, match="no session can be created"):
        await runtime.start(launcher(), probe)
    assert time.monotonic() - began < options.start_timeout
    assert runtime.state is RuntimeState.FAILED


async def test_what_does_not_speak_the_protocol(tmp_path: Path, probe: ProbeModel) -> None:
    runtime = ManagedRuntime("rt-1", replace(fake_options(tmp_path, silent_on="connect"), request_timeout=0.2))
    with pytest.raises(RuntimeUnavailable, match="listens but refuses the control link"):
        await runtime.start(launcher(), probe)
    assert processes_at_home(tmp_path) == []


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path, probe: ProbeModel) -> None:
    runtime = ManagedRuntime("rt-1", fake_options(tmp_path, silent_on="session.send"))
    starting = asyncio.create_task(runtime.start(launcher(), probe))
    await until(lambda: processes_at_home(tmp_path) != [])
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert runtime.state is RuntimeState.FAILED
    assert processes_at_home(tmp_path) == []
    assert not runtime.home.exists()


async def test_a_start_that_is_stopped_leaves_nothing(tmp_path: Path, probe: ProbeModel) -> None:
    runtime = ManagedRuntime("rt-1", fake_options(tmp_path, silent_on="session.send"))
    starting = asyncio.create_task(runtime.start(launcher(), probe))
    await until(lambda: runtime.pid is not None)
    await runtime.stop()
    with pytest.raises(RuntimeUnavailable):
        await starting
    assert runtime.state is RuntimeState.STOPPED
    assert processes_at_home(tmp_path) == []


# --- ends ---


async def warm(options: RuntimeOptions, probe: ProbeModel) -> ManagedRuntime:
    runtime = ManagedRuntime("rt-1", options)
    await runtime.start(launcher(), probe)
    return runtime


async def test_a_stubborn_runtime_is_killed_in_the_end(tmp_path: Path, probe: ProbeModel) -> None:
    runtime = await warm(replace(fake_options(tmp_path, stubborn=True), stop_timeout=0.2), probe)
    assert runtime.pid is not None
    process = psutil.Process(runtime.pid)
    await runtime.stop()
    assert has_ended(process)
    assert runtime.state is RuntimeState.STOPPED
    assert runtime._process is not None
    assert runtime._process.exit_code == -signal.SIGKILL


async def test_a_runtime_that_ignores_shutdown_gets_a_signal(
    tmp_path: Path, probe: ProbeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(fake_options(tmp_path, silent_on="runtime.shutdown"), stop_timeout=0.2)
    runtime = await warm(options, probe)
    assert runtime._process is not None
    terminate = runtime._process.terminate

    def terminate_and_wait() -> None:
        runtime._options = replace(options, stop_timeout=30)
        terminate()

    monkeypatch.setattr(runtime._process, "terminate", terminate_and_wait)
    await runtime.stop()
    assert runtime._process.exit_code == -signal.SIGTERM


async def test_a_stop_that_is_cancelled_kills(tmp_path: Path, probe: ProbeModel) -> None:
    runtime = await warm(fake_options(tmp_path, stubborn=True), probe)
    stopping = asyncio.create_task(runtime.stop())
    await until(lambda: runtime.state is RuntimeState.DRAINING)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert processes_at_home(tmp_path) == []
    assert runtime.state is RuntimeState.STOPPED


async def test_whatever_it_is_lost_by_it_is_told_once(tmp_path: Path, probe: ProbeModel) -> None:
    runtime = await warm(fake_options(tmp_path), probe)
    lost: list[str] = []
    runtime.on_lost = lambda runtime: lost.append(runtime.lost_reason)
    runtime.kill("a request was not answered")
    runtime.kill("another reason")
    await asyncio.wait_for(runtime.lost.wait(), 10)
    await runtime.stop()
    assert lost == ["a request was not answered"]
    assert runtime.state is RuntimeState.FAILED
    assert processes_at_home(tmp_path) == []
    assert not runtime.home.exists()


async def test_no_task_outlives_it(tmp_path: Path, probe: ProbeModel) -> None:
    before = asyncio.all_tasks()
    stopped = await warm(fake_options(tmp_path), probe)
    await stopped.stop()
    lost = await warm(fake_options(tmp_path), probe)
    lost.kill("a reason")
    await lost.stop()
    await until(lambda: not {t for t in asyncio.all_tasks() - before if "runtime rt" in t.get_name()})


# --- a node that has too many files open ---


async def test_a_runtime_that_hangs_is_noticed_also_after_nothing_could_be_looked_at(
    tmp_path: Path, probe: ProbeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def looked(pid: int) -> float:
        looks.append(cpu_seconds(pid))
        return looks[-1]

    monkeypatch.setattr("aerodrome.runtime.supervisor.cpu_seconds", looked)
    runtime = await warm(fake_options(tmp_path), probe)
    try:
        with no_more_files():
            before = len(looks)
            await until(lambda: len(looks) >= before + 2)
            assert runtime.describe()["rss_bytes"] == 0
        hang(runtime)
        await asyncio.wait_for(runtime.lost.wait(), 50)
    finally:
        await runtime.stop()


async def test_what_cannot_be_looked_for_keeps_nothing_from_being_given_back(
    tmp_path: Path, probe: ProbeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = psutil.Process().num_fds()
    runtime = await warm(fake_options(tmp_path), probe)

    def not_now(directory: Path) -> int:
        raise OSError(errno.EMFILE, "Too many open files", "/proc")

    monkeypatch.setattr("aerodrome.runtime.launchers.process.kill_leftovers", not_now)
    await runtime.stop()
    assert not runtime.home.exists()
    await until(lambda: psutil.Process().num_fds() <= before)


@contextmanager
def no_more_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- logs ---


async def test_old_logs_are_forgotten_and_those_of_the_living_kept(tmp_path: Path, probe: ProbeModel) -> None:
    """Of the living of other processes too: they share the log directory, each has its part of the homes."""
    logs, homes = tmp_path / "logs", tmp_path / "all-homes"
    part, other = homes / "node-1", homes / "node-2"
    for age, name in enumerate(("rt-ours", "rt-theirs", "rt-old", "rt-older", "rt-oldest")):
        (logs / name).mkdir(parents=True)
        os.utime(logs / name, (1e9 - age, 1e9 - age))
    for home in (part / "rt-ours", other / "rt-theirs"):
        home.mkdir(parents=True)
        os.utime(logs / home.name, (0, 0))
    options = replace(fake_options(tmp_path), homes=part, kept_logs=2)
    await (await warm(options, probe)).stop()
    assert {path.name for path in logs.iterdir()} == {"rt-ours", "rt-theirs", "rt-1", "rt-old"}
