"""What a hostile user uses up: their own share, and nobody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from aerodrome.demo.model import ModelServer
from support.cli import has_ended
from support.host import Host, until
from support.sandbox import Shell, ended_because, sandboxed

pytestmark = pytest.mark.cli

MIB = 1 << 20


def processes_of(running: Host, user: str) -> int:
    """All in the sandbox: orphans are children of its first process."""
    return len(psutil.Process(running.process(user=user).ppid()).children(recursive=True))


async def test_a_fork_bomb_ends_at_the_limit_and_nobody_else_notices(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model, sandbox={"processes": 100}) as running:
        alice, bob = await Shell.of(running, "alice"), await Shell.of(running, "bob")
        await bob.run("echo bobs > file")
        made = await alice.python(
            """
import signal
made = []
try:
    while len(made) < 5000:
        child = os.fork()
        if child == 0:
            signal.pause()
        made.append(child)
except BlockingIOError:
    pass
for child in made:
    os.kill(child, 9)
    os.waitpid(child, 0)
print(len(made))"""
        )
        assert 10 < made < 100
        # One that does not stop is no different, and takes its runtime's processes along when that ends.
        assert "bobs" in await bob.run("cat file")
        bomb = asyncio.create_task(alice.send("f() { f | f & }; f; sleep 1000"))
        await until(lambda: processes_of(running, "alice") > 30, timeout=60)
        assert "bobs" in await bob.run("cat file")
        assert processes_of(running, "alice") <= 100
        family = psutil.Process(running.process(user="alice").ppid()).children(recursive=True)
        running.runtime(user="alice").kill("the test ends it")
        assert (await bomb).json()["code"] == "turn_interrupted"
        assert "back" in await alice.run("echo back")
        assert not [process for process in family if not has_ended(process)]


async def test_memory_ends_at_the_limit(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model, sandbox={"memory": "1GiB"}) as running:
        alice = await Shell.of(running, "alice")
        one = await alice.python(
            """
try:
    bytearray(2 << 30)
    print('"done"')
except MemoryError:
    print('"too much"')"""
        )
        assert one == "too much"
        hog = "import time\ntaken = bytearray(400 << 20)\nfor i in range(0, len(taken), 4096):\n    taken[i] = 1\n"
        several = f"for i in 1 2 3; do (exec {{python}} -c '{hog}time.sleep(180)') & done; wait"
        from support.sandbox import PYTHON

        response = await alice.send(several.replace("{python}", PYTHON))
        await ended_because(alice, response, "sandbox.memory")


async def test_files_in_memory_end_at_their_size(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model, sandbox={"tmp_size": "16MiB"}) as running:
        alice = await Shell.of(running, "alice")
        sizes = await alice.python(
            """
def fill(path):
    written = 0
    with open(path, "wb", buffering=0) as file:
        try:
            while written < 64 << 20:
                written += file.write(bytes(1 << 20))
        except OSError:
            pass
    os.unlink(path)
    return written >> 20
def entries(path):
    os.mkdir(path)
    for made in range(20000):
        if tried(lambda: os.close(os.open(f"{path}/{made}", os.O_CREAT))) != "done":
            return made
    return made
print(json.dumps([fill(f"{place}/x") for place in ("/tmp", "/home/user", "/dev/shm")] + [entries("/dev/shm/d")]))"""
        )
        assert all(10 <= size <= 16 for size in sizes[:3]), sizes
        assert 1000 < sizes[3] <= 4096


async def test_the_disk_ends_at_the_quota_and_what_is_too_much_can_be_deleted(
    tmp_path: Path, model: ModelServer
) -> None:
    limits = {"workspace_quota": "8MiB", "file_size": "20MiB"}
    async with sandboxed(tmp_path, model, sandbox=limits) as running:
        alice = await Shell.of(running, "alice")
        size = await alice.run("head -c 64M /dev/zero > big; stat -c %s big; rm big")
        assert str(20 * MIB) in size
        # Each time: the session is not held for one that ends runtimes, or its user could not tidy up any more.
        for copies in (3, 6, 9):
            fill = f"for i in $(seq {copies}); do cp small $i; done; sleep 180"
            response = await alice.send(f"head -c 4M /dev/zero > small; {fill}")
            await ended_because(alice, response, "sandbox.workspace_quota")
            assert "0" in await alice.run("rm *; ls | wc -l")
        assert "kept" in await alice.run("echo kept > file; cat file")
