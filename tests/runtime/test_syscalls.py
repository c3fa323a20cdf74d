from __future__ import annotations

import errno
import struct

import pytest

from aerodrome.runtime.launchers.sandbox.syscalls import seccomp_filter

ALLOW, FAIL = 0x7FFF0000, 0x00050000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SOCKET = {"x86_64": 41, "aarch64": 198}
CLONE = {"x86_64": 56, "aarch64": 220}
MEMFD_CREATE = {"x86_64": 319, "aarch64": 279}
SYSLOG = {"x86_64": 103, "aarch64": 116}


def verdict(program: bytes, number: int, architecture: int, argument: int = 0) -> int:
    """What the kernel would make of a call: an interpreter of the instructions that there are."""
    data = struct.pack("=IIQQ", number, architecture, 0, argument)
    loaded, at = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            loaded &= value
        elif code == 0x15:
            at += if_true if loaded == value else if_false
        elif code == 0x35:
            at += if_true if loaded >= value else if_false
        else:
            assert code == 0x06
            return int(value)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_path_ends_and_only_what_is_meant_is_refused(machine: str) -> None:
    program, here = seccomp_filter(machine), ARCHITECTURES[machine]
    refused = {number for number in range(500) if verdict(program, number, here, 2) != ALLOW}
    assert len(refused) == 6 + 7 + (25 if machine == "x86_64" else 23)
    assert verdict(program, 425, here) == FAIL | errno.ENOSYS
    families = {family for family in range(64) if verdict(program, SOCKET[machine], here, family) == ALLOW}
    assert families == {1, 2, 10, 16}
    assert verdict(program, SOCKET[machine], here, 40) == FAIL | errno.EAFNOSUPPORT


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_holds_memory_without_owning_it_and_what_tells_of_the_machine(machine: str) -> None:
    program, here = seccomp_filter(machine), ARCHITECTURES[machine]
    assert verdict(program, MEMFD_CREATE[machine], here) == FAIL | errno.ENOSYS
    assert verdict(program, SYSLOG[machine], here) == FAIL | errno.EPERM


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_threads_share_their_descriptors_and_nobody_gets_namespaces(machine: str) -> None:
    program, here, clone = seccomp_filter(machine), ARCHITECTURES[machine], CLONE[machine]
    child, pthread = 0x01200011, 0x003D0F00
    assert verdict(program, clone, here, child) == ALLOW
    assert verdict(program, clone, here, 0x4111) == ALLOW  # vfork
    assert verdict(program, clone, here, pthread) == ALLOW
    assert verdict(program, clone, here, pthread & ~0x400) == FAIL | errno.EPERM
    for namespace in (0x10000000, 0x20000000, 0x40000000, 0x02000000, 0x04000000, 0x08000000, 0x00020000):
        assert verdict(program, clone, here, child | namespace) == FAIL | errno.EPERM
    assert verdict(program, 435, here) == FAIL | errno.ENOSYS  # clone3


def test_a_call_by_another_way_is_none() -> None:
    program = seccomp_filter("x86_64")
    for number, architecture in ((0, 0x40000003), (0x40000000, 0xC000003E), (0x40000029, 0xC000003E)):
        assert verdict(program, number, architecture) == FAIL | errno.ENOSYS


def test_a_machine_without_a_cli() -> None:
    with pytest.raises(LookupError):
        seccomp_filter("riscv64")
