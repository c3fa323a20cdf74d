"""A program as a unit of systemd would run it, on a machine without systemd as its first process; for root.

    unshare --mount python confined.py SETTINGS PATHS PROGRAM...

`SETTINGS` are those of the unit's [Service], as JSON, each with all its values. What decides over namespaces is done as
systemd does it (systemd.exec(5)): filters of system calls, mounts over /proc, /sys and /dev, an account without rights.
What is merely kept from writing is left out. `PATHS`, also JSON, are made readable for that account, wherever they are.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
#: Any that nobody has.
ACCOUNT = 4321
_NAMESPACES = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "net": 0x40000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "user": 0x10000000,
    "uts": 0x04000000,
}
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    settings: dict[str, list[str]] = json.loads(sys.argv[1])
    calls = _numbers()
    allowed = _allowed_calls(settings["SystemCallFilter"], calls)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    _let_everybody_read([Path(path) for path in json.loads(sys.argv[2])])
    _hide(settings)
    for capability in range(64):
        _libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    os.setgroups([])
    os.setresgid(ACCOUNT, ACCOUNT, ACCOUNT)
    os.setresuid(ACCOUNT, ACCOUNT, ACCOUNT)
    if _libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError("no_new_privs")
    for program in _filters(settings, calls, allowed):
        _install(program)
    os.execv(sys.argv[3], sys.argv[3:])


def merged(*units: dict[str, list[str]]) -> dict[str, list[str]]:
    """A unit with its drop-ins: an empty value takes back what was said before."""
    found: dict[str, list[str]] = {}
    for each in units:
        for key, values in each.items():
            for value in values:
                found[key] = [*found.get(key, []), value] if value else []
    return found


def _on(settings: dict[str, list[str]], key: str) -> bool:
    return settings.get(key, ["no"])[-1] not in ("no", "default", "all")


# --- mounts ---


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _hide(settings: dict[str, list[str]]) -> None:
    if _on(settings, "ProtectProc"):
        subprocess.run(["umount", "--recursive", "--lazy", "/proc"], check=True)
        _mount("-t", "proc", "-o", f"nosuid,nodev,noexec,hidepid={settings['ProtectProc'][-1]}", "proc", "/proc")
    read_only = []
    if _on(settings, "ProtectKernelTunables"):
        read_only += ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/fs", "/sys"]
    if _on(settings, "ProtectControlGroups"):
        read_only += ["/sys/fs/cgroup"]
    for path in read_only:
        if Path(path).exists():
            _mount("--bind", path, path)
            _mount("-o", "remount,bind,ro", path)
    if _on(settings, "ProtectKernelLogs"):
        _mount("--bind", "/dev/null", "/proc/kmsg")
    if _on(settings, "PrivateDevices"):
        with tempfile.TemporaryDirectory(dir="/run") as made:
            _mount("-t", "tmpfs", "-o", "mode=755,nosuid,noexec", "tmpfs", made)
            for name in ("null", "zero", "full", "random", "urandom", "tty"):
                (Path(made) / name).touch()
                _mount("--bind", f"/dev/{name}", Path(made) / name)
            for name in ("pts", "shm"):
                (Path(made) / name).mkdir()
                _mount("--bind", f"/dev/{name}", Path(made) / name)
            (Path(made) / "ptmx").symlink_to("pts/ptmx")
            _mount("--move", made, "/dev")


def _let_everybody_read(paths: Iterable[Path]) -> None:
    """What lies in a directory for its owner alone is brought there over an empty one for everybody."""
    closed: dict[Path, list[Path]] = {}
    for path in paths:
        above = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 1]
        if above:
            closed.setdefault(above[0], []).append(path)
    for top, inside in closed.items():
        with tempfile.TemporaryDirectory(dir="/run") as made:
            kept = []
            for number, path in enumerate(inside):
                place = Path(made) / str(number)
                place.mkdir()
                _mount("--rbind", path, place)
                kept.append(place)
            _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", top)
            for place, path in zip(kept, inside, strict=True):
                path.mkdir(parents=True, exist_ok=True)
                for parent in path.parents:
                    if parent.is_relative_to(top):
                        parent.chmod(0o755)
                _mount("--move", place, path)


# --- system calls ---


def _numbers() -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())}


def _allowed_calls(filters: list[str], calls: dict[str, int]) -> set[int]:
    """Those of the names and groups, as the systemd of this machine knows them."""
    found: set[str] = set()
    waiting = " ".join(filters).split()
    while waiting:
        name = waiting.pop()
        if not name.startswith("@"):
            found.add(name)
            continue
        text = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
        waiting += [line.strip() for line in text.stdout.splitlines()[1:] if not line.strip().startswith("#")]
    return {calls[name] for name in found if name in calls}


def _filters(settings: dict[str, list[str]], calls: dict[str, int], allowed: set[int]) -> list[bytes]:
    programs = [_load(0) + b"".join(_if_equal(number, _ALLOW) for number in sorted(allowed)) + _return(_ERRNO | _EPERM)]
    refused = {name: _EPERM for name in ("sethostname", "setdomainname") if _on(settings, "ProtectHostname")}
    namespaces = settings.get("RestrictNamespaces", ["no"])
    if namespaces != ["no"]:
        refused["clone3"] = _ENOSYS
        kept = {name for value in namespaces if value != "yes" for name in value.split()}
        mask = sum(flag for name, flag in _NAMESPACES.items() if name not in kept)
        for name, argument in (("clone", 0), ("unshare", 0), ("setns", 1)):
            # Another call: on. An argument without any of these: on.
            test = _load(16 + 8 * argument) + _jump(0x45, mask, 0, 1) + _return(_ERRNO | _EPERM)
            programs.append(_load(0) + _jump(0x15, calls[name], 0, 3) + test + _return(_ALLOW))
    programs.append(
        _load(0) + b"".join(_if_equal(calls[n], _ERRNO | code) for n, code in refused.items()) + _return(_ALLOW)
    )
    families = [getattr(socket, name) for value in settings["RestrictAddressFamilies"] for name in value.split()]
    tests = b"".join(_if_equal(family, _ALLOW) for family in families)
    programs.append(
        _load(0)
        + _jump(0x15, calls["socket"], 1, 0)
        + _return(_ALLOW)
        + _load(16)
        + tests
        + _return(_ERRNO | _EAFNOSUPPORT)
    )
    return programs


def _load(offset: int) -> bytes:
    return struct.pack("HBBI", 0x20, 0, 0, offset)


def _jump(code: int, value: int, if_so: int, if_not: int) -> bytes:
    return struct.pack("HBBI", code, if_so, if_not, value)


def _return(what: int) -> bytes:
    return struct.pack("HBBI", 6, 0, 0, what)


def _if_equal(value: int, what: int) -> bytes:
    return _jump(0x15, value, 0, 1) + _return(what)


def _install(program: bytes) -> None:
    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    text = ctypes.create_string_buffer(program, len(program))
    found = Filter(len(program) // 8, ctypes.addressof(text))
    if _libc.prctl(22, 2, ctypes.byref(found), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "a filter of system calls")


if __name__ == "__main__":
    main()
