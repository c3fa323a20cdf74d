from __future__ import annotations

import errno
import struct

import pytest

from aerodrome.runtime.launchers.sandbox.syscalls import seccomp_filter

ALLOW, FAIL = 0x7FFF0000, 0x00050000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SOCKET = {"x86_64": 41, "aarch64": 198}


def verdict(program: bytes, number: int, architecture: int, argument: int = 0) -> int:
    """What the kernel would make of a call: an interpreter of the instructions that there are."""
    data = struct.pack("=IIQQ", number, architecture, 0, argument)
    loaded, at = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, value)
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
    assert len(refused) == 3 + 7 + (24 if machine == "x86_64" else 22)
    assert verdict(program, 425, here) == FAIL | errno.ENOSYS
    families = {family for family in range(64) if verdict(program, SOCKET[machine], here, family) == ALLOW}
    assert families == {1, 2, 10, 16}
    assert verdict(program, SOCKET[machine], here, 40) == FAIL | errno.EAFNOSUPPORT


def test_a_call_by_another_way_is_none() -> None:
    program = seccomp_filter("x86_64")
    for number, architecture in ((0, 0x40000003), (0x40000000, 0xC000003E), (0x40000029, 0xC000003E)):
        assert verdict(program, number, architecture) == FAIL | errno.ENOSYS


def test_a_machine_without_a_cli() -> None:
    with pytest.raises(LookupError):
        seccomp_filter("riscv64")
