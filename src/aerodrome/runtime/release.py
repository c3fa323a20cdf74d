"""Which Copilot CLI this version of Aerodrome is made for: its version, its packages and their checksums.

The checksums are the registry's own (`dist.integrity`). Because they are part of the source, it does not matter
where a package comes from.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from aerodrome.errors import RuntimeUnavailable

#: The release of `github-copilot-sdk` that expects this CLI; other pairs may disagree about the protocol.
SDK_VERSION = "1.0.25"

_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class Release:
    """One version of the Copilot CLI. `integrity`: platform -> `sha512-<base64>` of its package."""

    version: str
    integrity: Mapping[str, str] = field(repr=False)

    def package(self, platform_name: str) -> str:
        return f"@github/copilot-{platform_name}"

    def archive_name(self, platform_name: str) -> str:
        return f"copilot-{platform_name}-{self.version}.tgz"

    def url(self, registry: str, platform_name: str) -> str:
        """Where an npm registry has the package."""
        return f"{registry.rstrip('/')}/{self.package(platform_name)}/-/{self.archive_name(platform_name)}"

    def integrity_of(self, platform_name: str) -> str:
        """Raises `RuntimeUnavailable` when there is no package for the platform."""
        if platform_name not in self.integrity:
            known = ", ".join(sorted(self.integrity))
            raise RuntimeUnavailable(
                f"the Copilot CLI {self.version} is not made for {platform_name}, only for {known}"
            )
        return self.integrity[platform_name]


PINNED = Release(
    "1.0.102",
    {
        "linux-x64": "sha512-eGHPbsP0p2QgfVZCjtbGBFZPBOJQ0DN7xIbBRAo7oG8b1zfLirQIdfI4h8Iy68Dv2cKJGJZg2/EO7W7KpIMJOw==",
        "linux-arm64": "sha512-"
        "5rO0B2/AduCekrE+aUzipySKZxZY2b/tVRZ8Suy8ymPFNC0Q7HQiQ8DZhxj+3RhHR8rU2Z8KOJVAbtMlROX6+A==",
        "linuxmusl-x64": "sha512-"
        "laj1/lFWwkX7P1jAVm2DNNxRljLkhfKI4XDONIA5njiU+PPvWVH38gIvYU+lNTgJ0QT7CSV6Jj2fuqPx0Go+5Q==",
        "linuxmusl-arm64": "sha512-"
        "PyuqTcgTKd4XrtSRKAQgfIK41cVzHArSNM8f8XS39dQc75aUsKG+MPd5rLwmqqhtbWVFgI+PSS/X18/Qo4EDTg==",
        "darwin-x64": "sha512-n4jBdS+QxrXWiQ9v9tUBZUcJ0hlWVG75Qs3Gzo25BRzlWQSSd5eCNrfOVf4Cr95mAK/L54dne+8rSwASNRG7qA==",
        "darwin-arm64": "sha512-"
        "M4Jwxvw9CzxQUVoAz4UFbwFw9SpjUXbMzD481ifFJ+o/GXYJy5+sYxWRSfGhPA9e/w4DlWxdpkSQFnagl/AYbA==",
    },
)


def host_platform() -> str:
    """The name of this machine's platform in npm's packages, such as `linux-x64`.

    Raises:
        RuntimeUnavailable: There is no Copilot CLI for this kind of machine.
    """
    machine = _MACHINES.get(platform.machine().lower())
    if machine is None or sys.platform not in ("linux", "darwin"):
        raise RuntimeUnavailable(
            f"there is no Copilot CLI for {sys.platform} on {platform.machine()}; "
            "Linux and macOS on x64 and arm64 have one"
        )
    system = "linuxmusl" if sys.platform == "linux" and _is_musl() else sys.platform
    return f"{system}-{machine}"


def _is_musl() -> bool:
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        glibc = None
    return glibc is None and any(Path("/lib").glob("ld-musl-*.so.1"))


def sdk_pair_problem() -> str | None:
    """What is wrong with the installed `github-copilot-sdk`; ``None`` when it fits or is not installed."""
    try:
        installed = metadata.version("github-copilot-sdk")
    except metadata.PackageNotFoundError:
        return None
    if installed == SDK_VERSION:
        return None
    return (
        f"github-copilot-sdk {installed} is installed, but the Copilot CLI {PINNED.version} pairs with {SDK_VERSION}; "
        f"run: pip install github-copilot-sdk=={SDK_VERSION}"
    )
