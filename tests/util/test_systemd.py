"""What a service manager hands over."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aerodrome._util import systemd
from aerodrome._util.systemd import Notifier, inherited_sockets
from aerodrome.errors import ConfigError

NAMES = frozenset({"http", "gateway"})


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listening socket on a descriptor of its own, which stands in for the first that is handed over."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        copy = os.dup(listener.fileno())
        os.set_inheritable(copy, True)
        monkeypatch.setattr(systemd, "_FIRST", copy)
        yield listener


def environment(names: str = "http", count: int = 1) -> dict[str, str]:
    return {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": names, "PATH": "/bin"}


def test_a_socket_is_known_by_its_name_and_goes_no_further(handed: socket.socket) -> None:
    env = environment()
    found = inherited_sockets(NAMES, env)
    with found["http"] as inherited:
        assert inherited.getsockname() == handed.getsockname()
        assert not inherited.get_inheritable()
        assert inherited.getblocking() is False
    assert env == {"PATH": "/bin"}


@pytest.mark.parametrize("env", [{}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": "1"}])
def test_nothing_is_taken_that_was_not_handed_to_this_process(env: dict[str, str]) -> None:
    assert inherited_sockets(NAMES, env) == {}
    assert env == {}


@pytest.mark.parametrize(("names", "told"), [("", "unknown"), ("metrics", "metrics")])
def test_a_socket_without_a_name_that_says_what_it_is_for_is_refused(
    handed: socket.socket, names: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=f"{told}.*FileDescriptorName"):
        inherited_sockets(NAMES, environment(names))
    os.close(systemd._FIRST)


@pytest.mark.parametrize("kind", ["udp", "unix", "not listening", "closed"])
def test_what_is_no_listening_tcp_socket_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ExitStack() as stack:
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        made = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM))
        if kind == "unix":
            made.bind(str(tmp_path / "s"))
            made.listen()
        monkeypatch.setattr(systemd, "_FIRST", 10_000 if kind == "closed" else os.dup(made.fileno()))
        with pytest.raises(ConfigError, match="'http'"):
            inherited_sockets(NAMES, environment())


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"aerodrome-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(30)
        env = {"NOTIFY_SOCKET": "@" + name if abstract else name}
        Notifier(env).tell("READY=1", "STATUS=well")
        assert manager.recv(100) == b"READY=1\nSTATUS=well"
        assert env == {}


def test_no_manager_is_no_trouble(tmp_path: Path) -> None:
    Notifier({}).tell("READY=1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell("READY=1")
