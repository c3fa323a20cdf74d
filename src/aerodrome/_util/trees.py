"""Removing a directory that somebody has filled who wishes us ill.

No link is followed, and neither depth nor permissions stop it. `shutil.rmtree` recurses, and holds a descriptor for
each level; here each level is moved up beside the first before it is looked into, so that there are only ever two.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def remove_tree(root: Path) -> None:
    """Remove the directory with all that is in it. Nobody may be at work in it any more.

    Raises:
        OSError: Not all of it could be removed.
    """
    top = _open(str(root))
    try:
        moved = 0
        while names := os.listdir(top):
            for name in names:
                if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                directory = _open(name, top)
                try:
                    moved = _empty(directory, top, moved)
                finally:
                    os.close(directory)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    root.rmdir()


def _empty(directory: int, top: int, moved: int) -> int:
    """Files go; directories come up. Returns how many have so far, which is where their names come from."""
    for name in os.listdir(directory):
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=directory)
            continue
        # A directory that may not be written to cannot be moved: its `..` changes.
        os.close(_open(name, directory))
        while True:
            moved += 1
            try:
                # Never into an existing one that is empty: it may be one that a caller is looking into.
                if not _exists(f".removed-{moved}", top):
                    os.rename(name, f".removed-{moved}", src_dir_fd=directory, dst_dir_fd=top)
                    break
            except FileExistsError:
                continue
    return moved


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open(name: str, directory: int | None = None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        opened = os.open(name, flags, dir_fd=directory)
        if stat.S_IMODE(os.fstat(opened).st_mode) & 0o700 != 0o700:
            os.fchmod(opened, 0o700)
        return opened
    except PermissionError:
        # It is a directory, and nobody is there to replace it by a link meanwhile.
        os.chmod(name, 0o700, dir_fd=directory)
        return os.open(name, flags, dir_fd=directory)
