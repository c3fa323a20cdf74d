"""Runs the console sessions of a Markdown page, and holds what they print against what the page shows.

From the comment ``<!-- test: NAME -->`` on, up to the next one of another name, every block of language ``console``
belongs to the session NAME, which ``tests/docs/test_NAME.py`` plays: lines that begin with ``$ `` are commands (``> ``
continues one), what follows is their output. ``...`` stands for any text in a line, and alone on a line for any lines.
A block behind ``<!-- test: NAME file=FILE -->`` is written to that file. A block of language ``sh`` shows no output and
is a script. A block behind ``<!-- not run: REASON -->`` is left out.

A command that ends with ``&`` runs on in the background; the page goes on when its output has come as shown.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

ROOT = Path(__file__).parents[2]
_MARKER = re.compile(r"<!-- test: (?P<session>\w+)(?: file=(?P<file>\S+))? -->")
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->")
_FENCE = re.compile(r"```(?P<language>\w*)")
_END = "@@ended"
#: The SDK closes its socket before it tells its reader to end, and now and then the reader logs that.
_END_OF_CLIENT = re.compile(
    r"Failed to parse incoming JSON-RPC message\nTraceback .*\n(?: .*\n)+ValueError: I/O operation on closed file\.\n"
)


@dataclass(slots=True)
class Command:
    line: int
    text: str
    output: list[str] = field(default_factory=list)


@dataclass(slots=True)
class File:
    line: int
    name: str
    text: str


@dataclass(slots=True)
class Script:
    line: int
    text: str


@dataclass(slots=True)
class Block:
    """A fenced block, and what the comments before it say of it."""

    #: Of its first line in the page.
    line: int
    language: str
    lines: list[str]
    session: str | None = None
    #: It is written there.
    file: str | None = None
    #: Why it is not run.
    reason: str | None = None


def pages(session: str | None = None) -> list[str]:
    """README, CONTRIBUTING and the pages of `docs/`; of these, those that have a part of this session.

    Translations are left out: their blocks are those of the original (test_translations.py).
    """
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        page.relative_to(ROOT).as_posix()
        for page in found
        if page.parent.name != "zh" and (session is None or f"<!-- test: {session}" in page.read_text(encoding="utf-8"))
    ]


def parse(page: str, session: str) -> list[Command | File]:
    """The steps of one session of a page, in order."""
    steps: list[Command | File] = []
    for block in blocks(page):
        if block.session != session or block.reason is not None:
            continue
        if block.file is not None:
            steps.append(File(block.line, block.file, "\n".join(block.lines) + "\n"))
        elif block.language == "console":
            steps += _commands(block.line, block.lines)
    return steps


def scripts(page: str, session: str) -> list[Script]:
    """The blocks of one session that are scripts, in order."""
    return [
        Script(block.line, "\n".join(block.lines) + "\n")
        for block in blocks(page)
        if block.session == session and block.reason is None and block.language == "sh"
    ]


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page. What a comment says of a file, or why not, is of the block right behind it."""
    session: str | None = None
    file: str | None = None
    reason: str | None = None
    block: Block | None = None
    for number, line in enumerate(page.splitlines(), start=1):
        if block is None:
            if match := _FENCE.match(line):
                block = Block(number + 1, match["language"], [], session, file, reason)
            elif match := _MARKER.fullmatch(line.strip()):
                session, file, reason = match["session"], match["file"], None
            elif match := _NOT_RUN.fullmatch(line.strip()):
                reason = match["reason"]
        elif line == "```":
            yield block
            block = file = reason = None
        else:
            block.lines.append(line)


def _commands(start: int, block: list[str]) -> list[Command]:
    commands: list[Command] = []
    for number, line in enumerate(block, start):
        if line.startswith("$ "):
            commands.append(Command(number, line[2:]))
        elif line.startswith("> ") and not commands[-1].output:
            commands[-1].text += "\n" + line[2:]
        else:
            commands[-1].output.append(line)
    return commands


def without_the_end_of_clients(printed: str) -> str:
    """What a program has printed, without what the SDK says of a client that was stopped."""
    return _END_OF_CLIENT.sub("", printed)


def shown(expected: list[str], printed: list[str]) -> bool:
    """Whether this is what the page shows. Blanks at the ends of lines and empty lines at the end do not count."""
    text = without_the_end_of_clients("".join(line.rstrip() + "\n" for line in printed)).rstrip("\n") + "\n"
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.rstrip().split("..."))) + "\n"
        for line in expected
    )
    return re.fullmatch(pattern or "\n", text) is not None


def _short(printed: list[str]) -> str:
    """What was printed, for a message; of many or long lines the ends."""
    lines = [line if len(line) < 300 else f"{line[:200]} ... {line[-80:]}" for line in printed if line]
    return "\n".join(["", *lines] if len(lines) < 40 else ["", *lines[:20], "...", *lines[-20:]])


class Shell:
    """One bash, as the reader has it. Everything it has started is ended with it."""

    def __init__(self, directory: Path, env: Mapping[str, str], *, timeout: float = 120.0) -> None:
        self._directory = directory
        self._timeout = timeout
        self._background: list[str] = []
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._bash.stdout is not None
        self._lines = _Lines(self._bash.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for pid in self._background:
                self._run(f"kill {pid} 2>/dev/null && wait {pid}")
        finally:
            os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait()
            assert self._bash.stdin is not None
            self._bash.stdin.close()
            self._lines.join()

    def play(self, command: Command) -> None:
        """Run it. Raises `AssertionError` when it fails or prints something else than the page shows."""
        if command.text.endswith(" &"):
            self._play_in_background(command)
            return
        status, printed = self._run(command.text)
        assert status == 0, f"line {command.line}: `{command.text}` ended with {status}: {_short(printed)}"
        assert shown(command.output, printed), f"line {command.line}: `{command.text}` printed {_short(printed)}"

    def _play_in_background(self, command: Command) -> None:
        number = len(self._background)
        output, errors = self._directory / f".output-{number}", self._directory / f".errors-{number}"
        os.mkfifo(output)
        status, printed = self._run(f"{command.text.removesuffix(' &')} > {output.name} 2> {errors.name} &\n")
        assert status == 0, printed
        self._background.append(self._run("echo $!")[1][0])
        lines, printed = _Lines(output.open(encoding="utf-8")), []
        deadline = time.monotonic() + self._timeout
        while not shown(command.output, printed):
            line = lines.next(deadline)
            assert line is not None, f"line {command.line}: `{command.text}` ended: {printed} {errors.read_text()}"
            printed.append(line)

    def _run(self, text: str) -> tuple[int, list[str]]:
        """Exit status and output. What is read from standard input is nothing: the next command stands there."""
        assert self._bash.stdin is not None
        self._bash.stdin.write(f'{{ {text}\n}} < /dev/null\nprintf "\\n{_END} %d\\n" $?\n')
        self._bash.stdin.flush()
        deadline = time.monotonic() + self._timeout
        printed: list[str] = []
        while (line := self._lines.next(deadline)) is None or not line.startswith(_END):
            assert line is not None, f"bash has ended: {printed}"
            printed.append(line)
        # The line break before the end mark is ours; without it the mark would not begin a line.
        return int(line.removeprefix(_END)), printed


class _Lines:
    """The lines of a pipe, with a deadline for each. A thread keeps the pipe empty."""

    def __init__(self, stream: IO[str]) -> None:
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def next(self, deadline: float) -> str | None:
        """``None`` at the end. Raises `TimeoutError`."""
        try:
            return self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError("nothing was printed in time") from None

    def join(self) -> None:
        self._thread.join()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._queue.put(line.rstrip("\n"))
        self._queue.put(None)
