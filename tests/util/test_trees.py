from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from aerodrome._util import trees
from aerodrome._util.trees import clear_tree, remove_tree


def test_a_tree_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/file").write_text("x")
    os.mkfifo(root / "a/pipe")
    (root / "a/empty").mkdir()
    (root / ".removed-1").mkdir()
    (root / "a/.removed-2").mkdir()
    (root / ".removed-2").write_text("a file of that name")
    remove_tree(root)
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed(tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / "file").write_text("x")
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "to-directory").symlink_to(outside)
    (root / "a/to-directory").symlink_to(outside)
    (root / "a/to-file").symlink_to(outside / "file")
    os.link(outside / "file", root / "hard")
    remove_tree(root)
    assert (outside / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


def test_neither_depth_nor_modes_stop_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "locked").mkdir()
    (root / "locked/file").write_text("x")
    (root / "locked").chmod(0)
    here = os.open(root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.fchmod(here, 0o500)
    os.close(here)
    remove_tree(root)
    assert not root.exists()


def test_names_are_taken_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome._util.trees._AT_ONCE", 3)
    for number in range(10):
        (tmp_path / "root" / f"d{number}" / "below").mkdir(parents=True)
        for file in range(7):
            (tmp_path / "root" / f"d{number}" / str(file)).touch()
            (tmp_path / "root" / f"d{number}" / "below" / str(file)).touch()
    descriptor = os.open(tmp_path / "root", os.O_RDONLY)
    assert len(trees._some(descriptor)) == 3
    os.close(descriptor)
    remove_tree(tmp_path / "root")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_stays_that_is_only_to_be_emptied(tmp_path: Path) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "root/file").touch()
    clear_tree(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_directory_may_be_named_from_another(tmp_path: Path) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        remove_tree("root", descriptor)
    finally:
        os.close(descriptor)
    assert list(tmp_path.iterdir()) == []


def test_what_is_filled_as_fast_as_it_is_emptied_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    some = trees._some

    def and_there_is_another(directory: int) -> list[str]:
        (root / "again").touch()
        return some(directory)

    monkeypatch.setattr(trees, "_some", and_there_is_another)
    with pytest.raises(TimeoutError):
        remove_tree(root, within=0.1)


def test_who_is_at_work_in_it_leads_a_removal_nowhere_else(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file").write_text("x")
    stop = threading.Event()

    def fill() -> None:
        while not stop.is_set():
            with suppress(OSError):  # it has just gone
                (root / "a/b").mkdir(parents=True)
                (root / "a/file").touch()
                (root / "a/link").symlink_to(outside)
                (root / "a").rename(root / "c")
                (root / "a").symlink_to(outside)

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        for _ in range(50):
            with suppress(OSError):
                remove_tree(root, within=0.05)
            root.mkdir(exist_ok=True)
    finally:
        stop.set()
        filling.join()
    assert (outside / "file").read_text() == "x"


def test_what_others_remove_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(10):
        (root / str(number)).touch()
    some = trees._some

    def and_one_is_gone(directory: int) -> list[str]:
        names = some(directory)
        for name in names[:3]:
            (root / name).unlink()
        return names

    monkeypatch.setattr(trees, "_some", and_one_is_gone)
    remove_tree(root)
    assert not root.exists()


def test_no_mode_is_changed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("outside")
    (tmp_path / "locked").mkdir(mode=0)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(NotADirectoryError):
            trees._unlock("link", descriptor)
        trees._unlock("locked", descriptor)
    finally:
        os.close(descriptor)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("outside", "locked")] == [0o755, 0o700]
