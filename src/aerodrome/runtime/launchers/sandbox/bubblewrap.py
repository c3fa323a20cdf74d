"""What a sandboxed runtime sees of its host, as arguments of bubblewrap. Pure.

Nothing that is not named here. The root, `/dev` and `/etc` cannot be written to: bubblewrap keeps them in memory, and
what could be written there would be bounded by nothing. What can be written to is of limited size (`SandboxLimits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

#: Inside. The same for every runtime, so that what a session remembers of its files stays true in its next one.
HOME = PurePosixPath("/home/user")
WORKSPACE = PurePosixPath("/workspace")
COPILOT_HOME = HOME / ".copilot"
PACKAGES = PurePosixPath("/opt/copilot/packages")
COMMAND = PurePosixPath("/opt/copilot/bin/copilot")
#: Where the one way out of a runtime's own network is: the proxy of the node.
PROXY_PORT = 3128
#: Whoever is in the sandbox is this user, whatever account the node runs under.
USER_ID = GROUP_ID = 1000

#: What programs need of the system's configuration. Not all of `/etc`: it has passwords and keys.
SYSTEM_FILES = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/crypto-policies",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
#: Files that are made for it, by name in `/etc`.
MADE_FILES = {
    "passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n"
    f"user:x:{USER_ID}:{GROUP_ID}:user:{HOME}:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "group": f"root:x:0:\nuser:x:{GROUP_ID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
#: How names are looked up on the machine, for a sandbox that has its network.
NAME_FILES = ("/etc/hosts", "/etc/resolv.conf")
_BECOME_USER = (
    *("/usr/bin/setpriv", f"--reuid={USER_ID}", f"--regid={GROUP_ID}", "--clear-groups"),
    *("--inh-caps=-all", "--bounding-set=-all", "--"),
)
_SYSTEM_DIRECTORIES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Bytes, where nothing else is said."""

    memory: int = 4 << 30
    processes: int = 512
    file_size: int = 1 << 30
    #: Of `/tmp`; of the home and of `/dev/shm` as well, each.
    tmp_size: int = 256 << 20
    #: Of the workspace, all its files together.
    workspace_quota: int = 2 << 30

    def resources(self) -> dict[str, int]:
        """Limits that the kernel holds each process to, or (`NPROC`) all of one sandbox."""
        return {
            "CORE": 0,
            "DATA": self.memory,
            "FSIZE": self.file_size,
            "NOFILE": 4096,
            "NPROC": self.processes,
            # These two are counted for the account of the node, too.
            "MSGQUEUE": 1 << 18,
            "SIGPENDING": 1024,
        }

    def scratch(self, user: int | None) -> str:
        """Options of a file system in memory. Files without content take memory, too, so they are counted as well."""
        options = f"mode=0755,size={self.tmp_size},nr_inodes={max(1024, self.tmp_size >> 12)}"
        return options if user is None else f"{options},uid={user},gid={user}"


@dataclass(frozen=True, slots=True)
class Scratch:
    """Directories on the host, in a runtime's home; in each is a file system that ends with the runtime."""

    home: Path
    tmp: Path
    shm: Path
    #: Empty until the workspace is mounted there.
    slot: Path
    #: Where the workspace is mounted first, to be moved with all its flags.
    stage: Path
    #: Files of `/etc`.
    etc: Path

    @classmethod
    def below(cls, directory: Path) -> Scratch:
        return cls(*(directory / name for name in ("home", "tmp", "shm", "slot", "stage", "etc")))

    @property
    def in_memory(self) -> tuple[Path, ...]:
        return self.home, self.tmp, self.shm, self.slot


def arguments(
    bubblewrap: Path,
    scratch: Scratch,
    *,
    command: Path,
    packages: Path,
    read_only: Sequence[Path] = (),
    usr_links: Sequence[tuple[str, str]],
    root: bool,
    inner: Sequence[str],
    own_network: bool = True,
) -> list[str]:
    """The command line of bubblewrap.

    Args:
        command: The Copilot CLI; `inner` is what is run, from its path inside on.
        packages: Where the CLI unpacks itself; it has done so already.
        read_only: More of the host that can be read, at the same path.
        usr_links: As `usr_links` returns them.
        root: bubblewrap is started as root, of a namespace in which there is another user: it gives all rights up by
            becoming that one.
    """
    line = [str(bubblewrap)]
    line += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    line += ["--die-with-parent", "--new-session"]
    if root:
        line += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    else:
        line += ["--unshare-user", "--disable-userns", "--uid", str(USER_ID), "--gid", str(GROUP_ID)]
    for directory in _above(read_only):
        line += ["--perms", "0755", "--dir", directory]
    line += ["--ro-bind", "/usr", "/usr"]
    for target, name in usr_links:
        line += ["--symlink", target, name] if target else ["--ro-bind", name, name]
    for path in SYSTEM_FILES:
        line += ["--ro-bind-try", path, path]
    of_host = () if own_network else NAME_FILES
    for name in MADE_FILES:
        if f"/etc/{name}" not in of_host:
            line += ["--ro-bind", str(scratch.etc / name), f"/etc/{name}"]
    for path in of_host:
        line += ["--ro-bind-try", path, path]
    line += ["--ro-bind", str(command), str(COMMAND), "--ro-bind", str(packages), str(PACKAGES)]
    for extra in read_only:
        line += ["--ro-bind", str(extra), str(extra)]
    line += ["--proc", "/proc", "--dev", "/dev", "--bind", str(scratch.shm), "/dev/shm"]
    line += ["--bind", str(scratch.tmp), "/tmp", "--bind", str(scratch.home), str(HOME)]
    line += ["--bind", str(scratch.slot), str(WORKSPACE)]
    line += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(HOME)]
    return [*line, "--", *(_BECOME_USER if root else ()), str(COMMAND), *inner]


def _above(read_only: Sequence[Path]) -> list[str]:
    """The directories in which others are to appear, from the top. Left to bubblewrap they are for their owner only."""
    inside: list[PurePath | str] = [HOME, COMMAND, PACKAGES, PurePosixPath("/etc/passwd"), *SYSTEM_FILES, *read_only]
    found = {str(parent) for path in inside for parent in PurePosixPath(path).parents}
    return sorted(found - {"/"})


def usr_links(root: Path = Path("/")) -> list[tuple[str, str]]:
    """The system's directories beside `/usr`: (target, path) of those that are links, ("", path) of the others."""
    found = []
    for name in _SYSTEM_DIRECTORIES:
        path = root / name
        if path.is_symlink():
            found.append((str(path.readlink()), f"/{name}"))
        elif path.is_dir():
            found.append(("", f"/{name}"))
    return found
