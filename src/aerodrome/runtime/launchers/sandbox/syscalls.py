"""A filter of system calls for what runs in a sandbox. Pure.

Namespaces keep apart what there are namespaces for. Here is the rest: sockets of families that have none (`AF_VSOCK`
leads out of a virtual machine, to whatever listens on its host), the kernel's key store, and parts of the kernel that
no tool needs and in which holes are found. What compilers, debuggers and package managers need is let through.

The program is one of the kernel's classic packet filters, eight bytes an instruction, as `bwrap --seccomp` reads it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, 16)  # the last is AF_NETLINK, by which addresses are read
#: io_uring goes past filters like this one; programs do without when there is none.
_ABSENT = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
#: The same everywhere: those that were added after all systems had agreed on numbers.
_COMMON = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
}


@dataclass(frozen=True, slots=True)
class _Machine:
    #: `AUDIT_ARCH_...`
    architecture: int
    socket: int
    denied: Mapping[str, int]
    #: Numbers from here on are of another way to call the same kernel.
    foreign: int | None = None


_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        41,
        {
            "bpf": 321,
            "perf_event_open": 298,
            "userfaultfd": 323,
            "keyctl": 250,
            "add_key": 248,
            "request_key": 249,
            "kexec_load": 246,
            "kexec_file_load": 320,
            "init_module": 175,
            "finit_module": 313,
            "delete_module": 176,
            "open_by_handle_at": 304,
            "mount": 165,
            "umount2": 166,
            "pivot_root": 155,
            "unshare": 272,
            "setns": 308,
            "swapon": 167,
            "swapoff": 168,
            "reboot": 169,
            "acct": 163,
            "quotactl": 179,
            "iopl": 172,
            "ioperm": 173,
        },
        foreign=0x40000000,
    ),
    "aarch64": _Machine(
        0xC00000B7,
        198,
        {
            "bpf": 280,
            "perf_event_open": 241,
            "userfaultfd": 282,
            "keyctl": 219,
            "add_key": 217,
            "request_key": 218,
            "kexec_load": 104,
            "kexec_file_load": 294,
            "init_module": 105,
            "finit_module": 273,
            "delete_module": 106,
            "open_by_handle_at": 265,
            "mount": 40,
            "umount2": 39,
            "pivot_root": 41,
            "unshare": 97,
            "setns": 268,
            "swapon": 224,
            "swapoff": 225,
            "reboot": 142,
            "acct": 89,
            "quotactl": 60,
        },
    ),
}
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
#: Where the call's number, its architecture and the lower half of its first argument are.
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


def seccomp_filter(machine: str) -> bytes:
    """The program for a machine, as `platform.machine` calls it. Raises `LookupError` for one without a Copilot CLI."""
    about = _MACHINES[machine]
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        *_unless_equal(about.architecture, errno.ENOSYS),
        _instruction(_LOAD, _NUMBER),
    ]
    if about.foreign is not None:
        program += [_instruction(_JUMP_IF_AT_LEAST, about.foreign, 0, 1), _instruction(_RETURN, _FAIL | errno.ENOSYS)]
    for number in _ABSENT.values():
        program += _if_equal(number, _FAIL | errno.ENOSYS)
    for number in (*_COMMON.values(), *about.denied.values()):
        program += _if_equal(number, _FAIL | errno.EPERM)
    families = [
        _instruction(_LOAD, _ARGUMENT),
        *(step for family in _FAMILIES for step in _if_equal(int(family), _ALLOW)),
        _instruction(_RETURN, _FAIL | errno.EAFNOSUPPORT),
    ]
    program += [_instruction(_JUMP_IF_EQUAL, about.socket, 0, len(families)), *families, _instruction(_RETURN, _ALLOW)]
    return b"".join(program)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """The jumps count instructions behind this one."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _if_equal(value: int, verdict: int) -> list[bytes]:
    return [_instruction(_JUMP_IF_EQUAL, value, 0, 1), _instruction(_RETURN, verdict)]


def _unless_equal(value: int, error: int) -> list[bytes]:
    return [_instruction(_JUMP_IF_EQUAL, value, 1, 0), _instruction(_RETURN, _FAIL | error)]
