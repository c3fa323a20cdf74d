"""Ways around the limits that a hostile user tries: memory, disk and descriptors that are not looked at where they are
expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.sandbox import PYTHON, Shell, ended_because, sandboxed

pytestmark = pytest.mark.cli

#: Each takes 1.2 GiB.
HOGS = {
    "under a name that looks like a measurement": """
import os, time
with open("/proc/self/comm", "w") as name:
    name.write("RssAnon: 0 0")
os.fork(), os.fork()
taken = bytearray(300 << 20)
for at in range(0, len(taken), 4096):
    taken[at] = 1
time.sleep(180)
""",
    "shared between processes": """
import mmap, time
taken = [mmap.mmap(-1, 400 << 20) for _ in range(3)]
for each in taken:
    for at in range(0, len(each), 4096):
        each[at] = 1
time.sleep(180)
""",
    "in segments of System V": """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
for _ in range(3):
    segment = libc.shmget(0, ctypes.c_size_t(400 << 20), 0o1600)
    at = ctypes.c_void_p(libc.shmat(segment, None, 0))
    ctypes.memset(at, 1, 400 << 20)
    libc.shmdt(at)
time.sleep(180)
""",
}


@pytest.mark.parametrize("how", list(HOGS))
async def test_memory_counts_however_it_is_taken(tmp_path: Path, model: ModelServer, how: str) -> None:
    async with sandboxed(tmp_path, model, sandbox={"memory": "1GiB"}) as running:
        alice = await Shell.of(running, "alice")
        response = await alice.send(f"{PYTHON} - <<'END'\n{HOGS[how]}END")
        await ended_because(alice, response, "sandbox.memory")


async def test_there_is_no_memory_without_a_place(tmp_path: Path, model: ModelServer) -> None:
    """A file that has no name and no process that maps it is counted nowhere."""
    async with sandboxed(tmp_path, model) as running:
        alice = await Shell.of(running, "alice")
        assert await alice.python('print(json.dumps(tried(lambda: os.memfd_create("x"))))') == "OSError"


async def test_a_file_that_is_open_counts_when_it_has_been_removed(tmp_path: Path, model: ModelServer) -> None:
    limits = {"workspace_quota": "8MiB", "file_size": "20MiB"}
    async with sandboxed(tmp_path, model, sandbox=limits) as running:
        alice = await Shell.of(running, "alice")
        response = await alice.send_python("""
import time
held = []
for _ in range(4):
    held.append(open("file", "wb"))
    held[-1].write(bytes(10 << 20))
    held[-1].flush()
    os.unlink("file")
time.sleep(180)""")
        await ended_because(alice, response, "sandbox.workspace_quota")


async def test_descriptors_end_at_the_limit(tmp_path: Path, model: ModelServer) -> None:
    """What is written to a socket and not read is memory of the kernel, and of no process."""
    async with sandboxed(tmp_path, model, sandbox={"processes": 64}) as running:
        alice = await Shell.of(running, "alice")
        response = await alice.send_python("""
import time
held = []
for _ in range(3):
    if os.fork() == 0:
        held = [os.pipe() for _ in range(400)]
        time.sleep(180)
time.sleep(180)""")
        await ended_because(alice, response, "sandbox.processes")


async def test_watches_by_epoll_end_at_a_part_of_those_of_the_account(tmp_path: Path, model: ModelServer) -> None:
    """Without any, no other runtime of the account gets on, and no node."""
    part = int(Path("/proc/sys/fs/epoll/max_user_watches").read_text()) // 8
    async with sandboxed(tmp_path, model) as running:
        alice = await Shell.of(running, "alice")
        response = await alice.send_python(f"""
import select, time
pipes = [os.pipe()[0] for _ in range(900)]
pollers = []
while len(pollers) * len(pipes) < {part} * 3 // 2 and len(pollers) < 2000:
    pollers.append(select.epoll())
    for pipe in pipes:
        pollers[-1].register(pipe)
time.sleep(180)""")
        await ended_because(alice, response, "max_user_watches")


async def test_the_log_of_the_kernel_is_not_read(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model) as running:
        alice = await Shell.of(running, "alice")
        assert (
            await alice.python("""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
text = ctypes.create_string_buffer(4096)
print(json.dumps(libc.klogctl(3, text, 4096)))""")
            == -1
        )


async def test_a_tree_that_is_very_deep_is_counted_and_locks_nobody_out(tmp_path: Path, model: ModelServer) -> None:
    async with sandboxed(tmp_path, model, sandbox={"workspace_quota": "8MiB"}) as running:
        alice = await Shell.of(running, "alice")
        dig = "for _ in range(300):\n    os.mkdir('d')\n    os.chdir('d')\n"
        assert await alice.python(f"{dig}print(json.dumps('deep'))") == "deep"
        response = await alice.send(f"{DEEPEST}; head -c 10M /dev/zero > file; sleep 180")
        await ended_because(alice, response, "sandbox.workspace_quota")
        assert "0" in await alice.run("rm -r d; ls | wc -l")


#: Changes to where it is.
DEEPEST = "while cd d 2>/dev/null; do :; done"
