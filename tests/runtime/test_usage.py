"""What the keeper of a sandbox counts, of trees that are made to be miscounted."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from aerodrome._util.trees import remove_tree
from aerodrome.runtime.launchers.sandbox._usage import Over, measure, memory, unlinked, walk, watches


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """One that is removed here: pytest cannot."""
    (made := tmp_path / "made").mkdir()
    yield made
    remove_tree(made)


def measured(directory: Path) -> int:
    tree = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return measure(tree)
    finally:
        os.close(tree)


def deep(directory: Path, levels: int) -> None:
    """Nested so deep that there is no path to its end; a file of 1 MiB is there."""
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("d" * 20, dir_fd=here)
        below = os.open("d" * 20, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, b"x" * (1 << 20))
    os.close(file)
    os.close(here)


def test_depth_hides_nothing_and_costs_no_descriptors(directory: Path) -> None:
    for name in ("a", "b"):
        (directory / name).mkdir()
        deep(directory / name, 1500)
    tree = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    before, most, used = len(os.listdir("/proc/self/fd")), 0, 0
    for so_far in walk(tree):
        used = so_far
        most = max(most, len(os.listdir("/proc/self/fd")))
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(tree)
    assert used >= (2 << 20) + 3000 * 512
    assert most < before + 250


def test_a_directory_that_is_moved_under_a_walk_leads_nowhere_else(directory: Path) -> None:
    (outside := directory / "outside").mkdir()
    (outside / "file").write_bytes(b"x" * (8 << 20))
    (inside := directory / "inside").mkdir()
    deep(inside, 300)
    tree = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    walking = walk(tree)
    for _ in range(600):
        next(walking)  # it is at the end, or on its way up
    here = os.dup(tree)
    for _ in range(230):
        below = os.open("d" * 20, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.rename("d" * 20, outside / "moved", src_dir_fd=here)
    with pytest.raises(Over, match="moved"):
        for _ in walking:
            pass
    os.close(here)
    os.close(tree)


def test_links_and_odd_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (1 << 20))
    once = measured(tmp_path)
    os.link(tmp_path / "file", tmp_path / "again")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "outside").symlink_to("/usr")
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "sparse", "wb") as sparse:
        sparse.truncate(1 << 40)
    assert once + 4 * 512 <= measured(tmp_path) <= once + 5 * 4096


def test_many_files_are_looked_at_a_few_at_a_time(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / str(number)).touch()
    tree = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    pauses = list(walk(tree))
    os.close(tree)
    assert len(pauses) >= 5
    assert pauses == sorted(pauses)
    assert pauses[-1] == 1000 * 512


def test_a_file_without_a_name_is_counted_while_it_is_open(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    with open(tmp_path / "file", "wb") as file, open(tmp_path / "file", "rb"):
        file.write(b"x" * (1 << 20))
        file.flush()
        os.fsync(file.fileno())
        before = unlinked(["/proc/self"], device)
        (tmp_path / "file").unlink()
        assert unlinked(["/proc/self", "/proc/self"], device) - before >= 1 << 20
    assert unlinked(["/proc/self"], device) == before


def test_memory_that_is_shared_is_told_exactly_where_it_matters(tmp_path: Path) -> None:
    processes = []
    for name in ("a", "b"):
        (process := tmp_path / name).mkdir()
        (process / "status").write_text(
            "Name:\tRssAnon: 0\nRssAnon:\t  100 kB\nRssFile:\t 900 kB\nRssShmem:\t 400 kB\n"
            "VmPTE:\t 20 kB\nVmSwap:\t 5 kB\n"
        )
        (process / "smaps_rollup").write_text("00-ff ---p 0 0:0 0 [rollup]\nPss_Shmem:\t 200 kB\n")
        processes.append(str(process))
    assert memory(processes, 10 << 20) == (2 * 125 + 2 * 400) << 10
    assert memory(processes, 500 << 10) == (2 * 125 + 2 * 200) << 10
    assert memory([*processes, str(tmp_path / "gone")], 100 << 10) == (2 * 125 + 2 * 400) << 10


def test_memory_in_huge_pages_counts(tmp_path: Path) -> None:
    """Anybody may map those that a machine keeps for its database, and they are in no other figure."""
    status = "Name:\tx\nVmRSS:\t  900 kB\nRssAnon:\t  400 kB\nRssShmem:\t  100 kB\nHugetlbPages:\t   4096 kB\n"
    (tmp_path / "status").write_text(status)
    assert memory([str(tmp_path)], 1 << 30) == (400 + 100 + 4096) << 10


def test_watches_are_counted_of_those_who_can_have_many() -> None:
    assert watches(["/proc/self"], 1 << 20) < 100
    pipes = [os.pipe() for _ in range(100)]
    pollers = [select.epoll() for _ in range(5)]
    for poller in pollers:
        for reading, _ in pipes:
            poller.register(reading)
    assert 500 <= watches(["/proc/self", "/proc/0"], 1 << 20) < 600
    assert 100 < watches(["/proc/self"], 100) <= 300
    for poller in pollers:
        poller.close()
    for pair in pipes:
        for end in pair:
            os.close(end)
