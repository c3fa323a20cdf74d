"""Ports for servers that have to know theirs before they start, and keep it while they are down."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: Below those that the kernel gives to clients and to who asks for port 0: a port of ours is never one of them, not
#: even between this moment and the one in which it is bound, or while its server is being restarted.
FIRST, END = 12_000, 32_000
_LAST_GIVEN = Path(tempfile.gettempdir()) / f"aerodrome-tests-port-{os.geteuid()}"


def free_port() -> int:
    """A port of loopback that is free, and which no process of any tests is given in the next 20,000 calls."""
    with _LAST_GIVEN.open("a+") as given:
        fcntl.flock(given, fcntl.LOCK_EX)
        given.seek(0)
        port = next(filter(_is_free, _following(int(given.read() or FIRST))))
        given.truncate(0)
        given.write(str(port))
    return port


def _following(last: int) -> Iterator[int]:
    yield from range(last + 1, END)
    yield from range(FIRST, last + 1)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
