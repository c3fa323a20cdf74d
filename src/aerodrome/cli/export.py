"""How exported sessions are written: as JSON lines, or as a directory of directories."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from aerodrome.errors import Invalid

#: Takes what is stored of a session, or of a membership (`sessions.takeout`).
Write = Callable[[dict[str, Any]], None]


@contextmanager
def writer_to(target: Path | None) -> Iterator[Write]:
    """A writer to standard output, a new ``.jsonl`` file or a new directory. Only the user may read what it makes.

    Raises:
        Invalid: There is something already, or it cannot be made.
    """
    if target is None:
        yield lambda taken: _line(sys.stdout, taken)
        return
    try:
        if target.suffix == ".jsonl":
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                yield lambda taken: _line(file, taken)
        else:
            target.mkdir(mode=0o700)
            yield lambda taken: _directory(target, taken)
    except FileExistsError as error:
        raise Invalid(f"{error.filename} exists already; name something new") from None
    except OSError as error:
        raise Invalid(f"{target} cannot be written: {error.strerror}") from None


def _line(file: TextIO, taken: dict[str, Any]) -> None:
    # In ASCII: half a character, which a user has sent, has no other form that every reader takes.
    file.write(json.dumps(taken) + "\n")


def _directory(target: Path, taken: dict[str, Any]) -> None:
    """``sessions/ID/`` with `session.json`, `turns.jsonl` and `files/`; or ``memberships/ID.json``."""
    if "membership" in taken:
        membership = taken["membership"]
        _write(target / "memberships" / f"{membership['session']}.json", json.dumps(membership, indent=2))
        return
    directory = target / "sessions" / taken["session"]["id"]
    told = {**taken["session"], "options": taken["options"], "left_out": taken["left_out"]}
    _write(directory / "session.json", json.dumps(told, indent=2))
    _write(directory / "turns.jsonl", "".join(json.dumps(turn) + "\n" for turn in taken["turns"]))
    for path, text in taken["files"].items():
        # Paths are absolute and have no "..": the store sees to that. Names may hold what only bytes can.
        _write_bytes(os.fsencode(directory / "files") + path.encode("utf-8", "surrogatepass"), text)


def _write(path: Path, text: str) -> None:
    _write_bytes(os.fsencode(path), text)


def _write_bytes(path: bytes, text: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120 (pathlib takes no bytes)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
