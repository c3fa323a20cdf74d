"""What a service manager hands over and wants to hear: listening sockets, and that the service is ready.

The protocols are systemd's (sd_listen_fds(3), sd_notify(3)). Both are environment variables, which are taken out of the
environment: what this process starts shall not answer in its name.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from aerodrome.errors import ConfigError

#: The first descriptor that is handed over.
_FIRST = 3


def inherited_sockets(names: frozenset[str], env: MutableMapping[str, str] = os.environ) -> dict[str, socket.socket]:
    """The listening sockets that were handed to this process, by their `FileDescriptorName`.

    Args:
        names: Those that there may be.

    Raises:
        ConfigError: One has another name, or one name is given twice, or one does not listen for TCP.
    """
    count, pid, given = (env.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"))
    # Variables of a parent that passed them on are not for us.
    if not count.isdigit() or pid != str(os.getpid()):
        return {}
    labels = given.split(":") if given else []
    found: dict[str, socket.socket] = {}
    for number in range(int(count)):
        label = labels[number] if number < len(labels) else "unknown"
        if label not in names or label in found:
            raise ConfigError(
                f"socket {number + 1} of {count} that the service manager hands over is named {label!r}: "
                f"give each a FileDescriptorName= of its own out of {', '.join(sorted(names))}"
            )
        found[label] = _listening(_FIRST + number, label)
    return found


def _listening(descriptor: int, label: str) -> socket.socket:
    try:
        handed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"the socket {label!r} of the service manager cannot be used: {error.strerror}") from error
    tcp = handed.type == socket.SOCK_STREAM and handed.family in (socket.AF_INET, socket.AF_INET6)
    if not tcp or not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        handed.close()
        raise ConfigError(f"the socket {label!r} of the service manager is no TCP socket that listens (Accept=no)")
    handed.set_inheritable(False)
    handed.setblocking(False)
    return handed


class Notifier:
    """Tells the service manager of this process how it is; nothing happens where there is none."""

    def __init__(self, env: MutableMapping[str, str] = os.environ) -> None:
        self._address = env.pop("NOTIFY_SOCKET", "")

    def tell(self, *assignments: str) -> None:
        """Send lines such as `READY=1`. That nobody hears them is no reason to fail."""
        if not self._address:
            return
        # An abstract name is written with @ and begins with a zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as wire:
                wire.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return
