"""What a file says of itself before it is run: for which kind of machine it is."""

from __future__ import annotations

import os
import platform
import struct
import sys
from pathlib import Path

from aerodrome.errors import RuntimeUnavailable

#: `e_machine` of an ELF header, and `cputype` of a Mach-O header.
_ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_MACH_O_MACHINES = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
_SAME_MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}


def check_executable(path: Path) -> None:
    """Refuse what cannot run here, with a better reason than the `Exec format error` of the attempt.

    Raises:
        RuntimeUnavailable: It is missing, no file, not executable, or for another system or machine.
    """
    if not path.exists():
        raise RuntimeUnavailable(f"{path}: there is no such file")
    if not path.is_file():
        raise RuntimeUnavailable(f"{path} is no file; name the `copilot` binary itself")
    if not os.access(path, os.X_OK):
        raise RuntimeUnavailable(f"{path} is not executable; run: chmod +x {path}")
    try:
        with path.open("rb") as file:
            made_for = read_target(file.read(20))
    except OSError as error:
        raise RuntimeUnavailable(f"{path} can not be read: {error.strerror}") from None
    if made_for is None:
        raise RuntimeUnavailable(f"{path} is no program (neither ELF, Mach-O nor a script)")
    system, machine = made_for
    if system not in ("any", sys.platform):
        raise RuntimeUnavailable(f"{path}: this binary is for {system}, this machine runs {sys.platform}")
    if machine not in ("any", here := this_machine()):
        raise RuntimeUnavailable(f"{path}: this binary is for {machine}, this machine is {here}")


def this_machine() -> str:
    machine = platform.machine().lower()
    return _SAME_MACHINE.get(machine, machine)


def read_target(header: bytes) -> tuple[str, str] | None:
    """(system, machine) for which a file with this beginning is made; ``None`` when it is no program.

    Scripts, and Mach-O files for several machines, are for `any`.
    """
    if header.startswith(b"#!"):
        return "any", "any"
    if header.startswith(b"\x7fELF") and len(header) >= 20:
        order = ">" if header[5] == 2 else "<"
        (number,) = struct.unpack_from(f"{order}H", header, 18)
        return "linux", _ELF_MACHINES.get(number, f"ELF machine {number}")
    if header.startswith((b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe")) and len(header) >= 8:
        (number,) = struct.unpack_from("<I", header, 4)
        return "darwin", _MACH_O_MACHINES.get(number, f"Mach-O CPU type {number}")
    if header.startswith(b"\xca\xfe\xba\xbe"):
        return "darwin", "any"
    if header.startswith(b"MZ"):
        return "win32", "any"
    return None
