"""Where secrets are read from: one class for each way of referring to one.

All of them block, for `SecretOptions.timeout` at most; all raise `Unresolved`, whose text says what is wrong and never
quotes a secret.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, time
from typing import Protocol
from urllib.parse import quote

from aerodrome.config.secret_references import Reference

#: A secret is a line or a certificate. What is longer is a mistake, such as /dev/zero.
MAX_BYTES = 1 << 20
_PIECE = 1 << 16
#: Where systemd puts the credentials of a unit.
_CREDENTIALS = re.compile(r"^\$(?:CREDENTIALS_DIRECTORY|\{CREDENTIALS_DIRECTORY\})(?=/)")


#: Stamp of a file that is there and could not be read.
_UNREAD = (-1,)
#: Length of the stamp of what is there and is no file.
_ODD = 2
#: Place of the time of the latest change in that of a file.
_CTIME = 3
#: Seconds in which a file may change twice and its times only once: the kernel's clock for files ticks every 1 to 10 ms
#: before Linux 6.13, and every two seconds on some file systems.
_TICK = 2.0


class Unresolved(ValueError):
    """There is no secret where the reference says; the text says why."""


class Source(Protocol):
    @property
    def where(self) -> str:
        """Where it is, for people."""
        ...

    @property
    def polled(self) -> bool:
        """Whether `read` may give something else without `changed` telling: then it has to be asked now and then."""
        ...

    def read(self) -> str:
        """The secret as it is now. Raises `Unresolved`."""
        ...

    def changed(self) -> bool:
        """Whether `read` may give something else, as far as that shows without asking anybody. Costs little."""
        ...

    def reread(self) -> str:
        """As `read`, when it has `changed`: reads files at most, and asks nobody."""
        ...


class Fixed:
    """A secret that stays what it is while the process lives: one that is given itself, or in a variable."""

    polled = False

    def __init__(self, reference: Reference, text: str, missing: str) -> None:
        self.where = str(reference)
        self._text = text
        self._missing = missing

    def read(self) -> str:
        if not self._text:
            raise Unresolved(self._missing)
        return self._text

    def changed(self) -> bool:
        return False

    reread = read


class FileSource:
    """A file, read again when it is another one or has changed.

    What is compared is what the path leads to, so that the swap of a symbolic link above it, by which Kubernetes
    changes all files of a volume at once, counts. A file that had just changed when it was read may change again and
    look the same: it is read each time until that is over.

    What a shell passes as ``<(...)`` is a pipe, which can be read once: another reading would wait for ever.
    """

    polled = False

    def __init__(self, reference: Reference, env: Mapping[str, str]) -> None:
        self.where = str(reference)
        directory = env.get("CREDENTIALS_DIRECTORY", "")
        named = re.sub(
            r"^\$(CREDENTIALS_DIRECTORY|\{CREDENTIALS_DIRECTORY\})(?=/)", lambda _: directory, reference.rest
        )
        self._unset = not directory and named != reference.rest
        self._path = Path(named).expanduser()
        self._seen: tuple[int, ...] = ()
        #: Whether what was read may have changed since without another stamp.
        self._fresh = False
        #: What was read, as far as it cannot be read again; ``None``: nothing was read yet.
        self._kept: str | None = None

    def read(self) -> str:
        if self._unset:
            raise Unresolved("CREDENTIALS_DIRECTORY is not set: systemd sets it for a unit with LoadCredential=")
        # Before the file: what is changed in between is read again.
        self._seen = self._stamp()
        regular = len(self._seen) != _ODD
        self._fresh = regular and self._seen != () and time() - self._seen[_CTIME] / 1e9 < _TICK
        if not regular and self._kept is not None:
            if not self._kept:
                raise Unresolved(f"the file {self._path} is no file any more")
            return self._kept
        text = self._text(0 if self._kept is None else os.O_NONBLOCK)
        self._kept = "" if regular else text
        return text

    def _text(self, flags: int) -> str:
        try:
            with open(self._path, "rb", opener=lambda path, how: os.open(path, how | flags)) as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            if self._path.is_file():
                self._seen = _UNREAD  # perhaps we have no descriptor left for the moment
            raise Unresolved(f"the file {self._path} can not be read: {error.strerror}") from None
        if len(content) > MAX_BYTES:
            raise Unresolved(f"the file {self._path} is too long for a secret")
        return _text(content, f"the file {self._path}")

    def changed(self) -> bool:
        return self._fresh or self._stamp() != self._seen

    reread = read

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        if not stat.S_ISREG(found.st_mode):
            return found.st_dev, found.st_ino
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


class CommandSource:
    """What a program prints. It is started without a shell, and ended with all that it has started when it is late.

    Its arguments are seen by every user of the machine; the secret it prints is not. What it says on standard error is
    thrown away, because it may quote what it should not.
    """

    polled = True

    def __init__(self, reference: Reference, env: Mapping[str, str], timeout: float) -> None:
        self.where = str(reference)
        self._words = reference.words()
        self._env = dict(env)
        self._timeout = timeout

    def read(self) -> str:
        program = self._words[0]
        try:
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._env,
                start_new_session=True,
            )
        except OSError as error:
            raise Unresolved(f"the program {program} can not be run: {error.strerror}") from None
        try:
            with process:
                try:
                    content = self._output_of(process)
                finally:
                    # Also what it has left behind: somebody could hold the pipe, and we would wait for that.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        except subprocess.TimeoutExpired:
            raise Unresolved(f"the program {program} took longer than secrets.timeout ({self._timeout:g} s)") from None
        if len(content) > MAX_BYTES:
            raise Unresolved(f"the output of {program} is too long for a secret")
        if process.returncode != 0:
            raise Unresolved(
                f"the program {program} failed (exit code {process.returncode}); run it by hand to see why"
            )
        return _text(content, f"the output of {program}")

    def _output_of(self, process: subprocess.Popen[bytes]) -> bytes:
        """All of it, once the program has ended; or somewhat more than `MAX_BYTES`. Raises `TimeoutExpired`."""
        assert process.stdout is not None
        deadline = monotonic() + self._timeout
        content = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while len(content) <= MAX_BYTES:
                if not selector.select(max(0.0, deadline - monotonic())):
                    raise subprocess.TimeoutExpired(process.args, self._timeout)
                piece = os.read(process.stdout.fileno(), _PIECE)
                if not piece:
                    process.wait(max(0.0, deadline - monotonic()))
                    break
                content += piece
        return content

    def changed(self) -> bool:
        return False

    reread = read  # never: it does not tell


class VaultValues(Protocol):
    def read(self, path: str) -> Mapping[str, object]: ...


class VaultSource:
    """A value in Vault; what is asked for it is shared with all that is in the same place."""

    polled = True

    def __init__(self, reference: Reference, vault: Callable[[], VaultValues]) -> None:
        self.where = str(reference)
        self._path, self._key = reference.vault_path()
        self._vault = vault

    def read(self, found: dict[str, Mapping[str, object]] | None = None) -> str:
        """As `Source.read`.

        Args:
            found: What has been found by path, in the same look; what is asked is put there.
        """
        values = found.get(self._path) if found is not None else None
        if values is None:
            values = self._vault().read(self._path)
        if found is not None:
            found[self._path] = values
        if self._key not in values:
            raise Unresolved(f"Vault has no {self._key!r} at {self._path}")
        value = values[self._key]
        if not isinstance(value, str) or not value:
            raise Unresolved(f"what Vault has as {self._key!r} at {self._path} is no text, or empty")
        return value

    def changed(self) -> bool:
        return False

    reread = read  # never: it does not tell


class Composed:
    """A text with references within it, each replaced by its secret, in the form that addresses want."""

    def __init__(self, parts: Sequence[str | Source]) -> None:
        self._parts = parts
        self._sources = [part for part in parts if not isinstance(part, str)]
        self.where = ", ".join(source.where for source in self._sources)
        self.polled = any(source.polled for source in self._sources)
        #: The parts that have to be asked for, by number, as they were when all of them were had.
        self._had: dict[int, str] = {}

    def read(self) -> str:
        # First, because they may fail: a file that has changed must not be taken for read then.
        found: dict[str, Mapping[str, object]] = {}
        had: dict[int, str] = {}
        for number, part in enumerate(self._parts):
            if isinstance(part, VaultSource):
                # What belongs together, such as user and password, is in one place, and changes there at once.
                had[number] = part.read(found)
            elif not isinstance(part, str) and part.polled:
                had[number] = part.read()
        self._had = had
        return self.reread()

    def changed(self) -> bool:
        return any(source.changed() for source in self._sources)

    def reread(self) -> str:
        return "".join(
            part if isinstance(part, str) else quote(self._had[number] if number in self._had else part.read(), safe="")
            for number, part in enumerate(self._parts)
        )


def _text(content: bytes, what: str) -> str:
    try:
        # Editors, `echo` and most programs end with a line break that is no part of the secret.
        text = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise Unresolved(f"{what} can not be read: it is not UTF-8 text") from None
    if not text:
        raise Unresolved(f"{what} is empty")
    return text
