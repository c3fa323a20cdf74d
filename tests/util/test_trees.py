from __future__ import annotations

import os
from pathlib import Path

from aerodrome._util.trees import remove_tree


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
