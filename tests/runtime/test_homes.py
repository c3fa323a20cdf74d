"""Homes of several processes in one directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from aerodrome.runtime.homes import Homes, erase, has_home, kill_leftovers
from support.cli import has_ended
from support.waiting import until

pytestmark = pytest.mark.timeout(60)

#: Takes its part, starts what a runtime's tool might have left, tells its pid, and waits.
_NEIGHBOUR = """
import os, subprocess, sys
from pathlib import Path
from aerodrome.runtime.homes import Homes
with Homes(Path(sys.argv[1])) as homes:
    home = homes.path / "rt-1" / "copilot"
    home.mkdir(parents=True)
    (home / "secret").write_text("what a tool has written")
    sleep = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
    left = subprocess.Popen(sleep, env={"COPILOT_HOME": str(home)}, start_new_session=True, stdout=subprocess.DEVNULL)
    print(homes.path, left.pid, flush=True)
    sys.stdin.read()
    left.kill()
    left.wait()
"""


class Neighbour:
    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _NEIGHBOUR, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        part, pid = self.process.stdout.readline().split()
        self.part = Path(part)
        self.left = psutil.Process(int(pid))

    def end(self) -> None:
        self.process.communicate(timeout=30)


@contextmanager
def neighbour(root: Path) -> Iterator[Neighbour]:
    other = Neighbour(root)
    try:
        yield other
    finally:
        other.process.kill()
        other.process.communicate()
        if not has_ended(other.left):
            other.left.kill()


async def test_the_part_of_a_dead_process_is_cleared_and_what_it_has_left_is_killed(tmp_path: Path) -> None:
    with neighbour(tmp_path) as dead:
        dead.process.send_signal(signal.SIGKILL)
        dead.process.wait(timeout=30)
        assert not has_ended(dead.left)
        with Homes(tmp_path) as homes:
            await until(lambda: has_ended(dead.left))
            assert {path.name for path in tmp_path.iterdir()} == {homes.path.name, f".{homes.path.name}.lock"}
    assert list(tmp_path.iterdir()) == []


def test_the_part_of_a_living_process_is_not_touched(tmp_path: Path) -> None:
    with neighbour(tmp_path) as living:
        with Homes(tmp_path):
            assert (living.part / "rt-1" / "copilot" / "secret").exists()
            assert not has_ended(living.left)
        assert (living.part / "rt-1" / "copilot" / "secret").exists()
        assert not has_ended(living.left)
        living.end()
        assert living.process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_recognised_however_the_root_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    with Homes(Path("link")) as homes:
        assert homes.path.parent == tmp_path / "real"


def test_parts_are_private(tmp_path: Path) -> None:
    with Homes(tmp_path / "data" / "runtimes") as homes:
        assert homes.path.stat().st_mode & 0o777 == 0o700
        assert homes.path.parent.stat().st_mode & 0o777 == 0o700


def test_whether_a_runtime_has_a_home_anywhere(tmp_path: Path) -> None:
    with Homes(tmp_path) as ours, Homes(tmp_path) as theirs:
        (ours.path / "rt-1").mkdir()
        (theirs.path / "rt-2").mkdir()
        assert [has_home(ours.path, name) for name in ("rt-1", "rt-2", "rt-3")] == [True, True, False]


def sleeping_at(home: Path) -> subprocess.Popen[bytes]:
    sleep = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
    return subprocess.Popen(sleep, env={"COPILOT_HOME": str(home)})


def test_only_those_at_home_there_are_killed(tmp_path: Path) -> None:
    part = tmp_path / "node-1"
    inside = sleeping_at(part / "rt-1" / "copilot")
    outside = [sleeping_at(home) for home in (tmp_path / "node-12" / "rt-1", part, tmp_path)]
    try:
        assert kill_leftovers(part) == 1
        assert inside.wait(timeout=30) == -signal.SIGKILL
        assert [process.poll() for process in outside] == [None, None, None]
    finally:
        for process in (inside, *outside):
            process.kill()
            process.wait(timeout=30)


def test_what_they_start_while_they_are_looked_for_is_killed_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, started = psutil.process_iter, [sleeping_at(tmp_path / "rt-1")]

    def process_iter() -> Iterator[psutil.Process]:
        yield from look()
        if len(started) < 2:
            started.append(sleeping_at(tmp_path / "rt-1"))  # behind the list of those that there are

    monkeypatch.setattr(psutil, "process_iter", process_iter)
    try:
        assert kill_leftovers(tmp_path) == 2
        assert [process.wait(30) for process in started] == [-signal.SIGKILL] * 2
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_who_is_about_to_become_another_program_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment is empty then."""
    environ, seen = psutil.Process.environ, []
    process = sleeping_at(tmp_path / "rt-1")

    def not_yet(of: psutil.Process) -> dict[str, str]:
        if of.pid != process.pid:
            return environ(of)
        seen.append(of)
        return environ(of) if len(seen) > 1 else {}

    monkeypatch.setattr(psutil.Process, "environ", not_yet)
    try:
        assert kill_leftovers(tmp_path) == 1
        assert process.wait(30) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_processes_that_never_have_an_environment_hold_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = psutil.process_iter, []

    def process_iter() -> Iterator[psutil.Process]:
        looks.append(1)
        return look()

    monkeypatch.setattr(psutil, "process_iter", process_iter)
    bare = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "print(flush=True); import time; time.sleep(600)"],
        env={},
        stdout=subprocess.PIPE,
    )
    try:
        assert bare.stdout is not None
        bare.stdout.readline()
        assert kill_leftovers(tmp_path) == 0
        assert len(looks) < 10  # two, if nothing else begins meanwhile
        assert bare.poll() is None
    finally:
        bare.kill()
        bare.communicate()


def test_our_own_process_is_never_killed(tmp_path: Path) -> None:
    """Aerodrome may itself run inside a runtime's environment."""
    script = (
        "import sys; from pathlib import Path; from aerodrome.runtime.homes import *; kill_leftovers(Path(sys.argv[1]))"
    )
    env = {**os.environ, "COPILOT_HOME": str(tmp_path / "rt-1" / "copilot")}
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, timeout=50).returncode == 0


def test_depth_keeps_nothing_from_being_erased(tmp_path: Path) -> None:
    """It kept a node from starting, that cleared what another one had left."""
    here = os.open(tmp_path, os.O_RDONLY)
    for name in ("node-7-abcd", *("d",) * 1500):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with Homes(tmp_path) as homes:
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [homes.path.name]


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A directory of somebody whom the system refuses something: root may list everything."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_erasing_goes_through_directories_that_nobody_may_list() -> None:
    with unprivileged() as directory:
        home, elsewhere = directory / "home", directory / "elsewhere"
        (home / "locked" / "inner").mkdir(parents=True)
        (home / "locked" / "inner" / "file").write_text("x")
        elsewhere.mkdir()
        elsewhere.chmod(0o755)
        (home / "locked" / "link").symlink_to(elsewhere)
        (home / "locked" / "inner").chmod(0)
        (home / "locked").chmod(0)
        with pytest.raises(PermissionError):
            list((home / "locked").iterdir())
        erase(home)
        assert not home.exists()
        assert elsewhere.stat().st_mode & 0o777 == 0o755


def test_erasing_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    erase(tmp_path / "nothing")
