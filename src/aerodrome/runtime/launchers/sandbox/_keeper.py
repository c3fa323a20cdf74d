"""The process between the node and bubblewrap: `python -I -S _keeper.py PARENT_PID`, standard library only.

It makes the namespaces in which bubblewrap starts, and stays beside them with the rights that it has there and the
sandbox has not: to open connections into the sandbox's network for the node, to mount the workspace when the runtime
gets its user, to measure, and to end everything when a limit is passed. The node talks to it over a pair of sockets,
a JSON object a packet, each request with one answer; descriptors travel beside the answers (docs/adr/0024).

Nobody outlives it: it dies with the node, bubblewrap with it, and with that the sandbox's first process, whose end
takes all others along.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False  # `typing` is not needed to run, and takes its time to load
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from aerodrome.runtime.launchers.sandbox._usage import (
        Over,
        descriptors,
        in_segments,
        measure,
        memory,
        occupied,
        unlinked,
        walk,
        watches,
    )
else:
    sys.path.append(os.path.dirname(__file__))  # Python has been told to leave it out
    from _usage import Over, descriptors, in_segments, measure, memory, occupied, unlinked, walk, watches

_NEWNS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _MOVE, _REC = 1, 2, 4, 32, 4096, 8192, 16384
_PRIVATE, _SHARED = 1 << 18, 1 << 20
#: Flags of a mount that a user namespace may not take away when it changes others: `statvfs` flag -> mount flag.
_LOCKED = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
_PR_SET_PDEATHSIG = 1
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
#: Seconds between two looks: while nothing but the runtime runs, and while tools do.
_CALM, _BUSY = 1.0, 0.2
#: First process and runtime.
_ALONE = 2
#: The least time between two measurements of the workspace, and how many times as long as the last one took.
_MEASURE_PAUSE, _MEASURE_SHARE = 2.0, 20.0
#: Seconds of measuring at a time: meanwhile nobody looks at memory.
_MEASURE_PIECE = 0.05
#: Open descriptors for each process that is allowed: they may be with few, and are bounded for all together.
_DESCRIPTORS = 16
#: Of those that the kernel has for the node's account, one sandbox gets at most this part.
_WATCHES, _SHARE_OF_WATCHES = [f"/proc/sys/user/max_inotify_{kind}" for kind in ("instances", "watches")], 8
#: Bytes by which a workspace that is over its quota may grow, for what it takes to tidy it up.
_SLACK = 1 << 20
#: The host's id of what a sandbox runs when the node is root.
_STRANGER = 1_900_000_000
#: What a runtime ends with that has passed a limit.
_OVER = 137

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)  # the parent died before the request was in force
    # uvloop starts a program with every descriptor that is inheritable; the sandbox must not have one of the node's.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2:
            os.closerange(descriptor, descriptor + 1)  # no error for the one by which they were listed
    control = socket.socket(fileno=os.dup(0))
    plan = json.loads(control.recv(1 << 20) or b"null")
    if plan is None:
        sys.exit(1)
    try:
        keeper = Keeper(control, plan)
        descriptors = keeper.start()
    except OSError as error:
        _answer(control, {"error": _text(error)}, ())
        sys.exit(1)
    _answer(control, {"init": keeper.init}, descriptors)
    sys.exit(keeper.run())


class Keeper:
    def __init__(self, control: socket.socket, plan: dict[str, Any]) -> None:
        self.control = control
        self.plan = plan
        #: Process id, on the host, of the sandbox's first process.
        self.init = 0
        self.bubblewrap = 0
        self.bubblewrap_ended = -1
        self.init_handle = -1
        self.tree: int | None = None
        self.scratch: list[int] = []
        self.quota = plan["quota"]
        self.epoll_watches = int(_read("/proc/sys/fs/epoll/max_user_watches")) // _SHARE_OF_WATCHES
        self.measured_at = 0.0
        self.measuring_took = 0.0
        self.measuring: Iterator[int] | None = None

    # --- the start ---

    def start(self) -> tuple[int, ...]:
        """Returns the descriptors for the node: the proxy's listening socket, in a network of its own."""
        _write("/proc/self/oom_score_adj", "500")  # where memory runs out, rather a runtime than a database
        # Descriptors in messages are counted for the account, and refused by the limit of who sends: what is under
        # way in sandboxes, whose limits are lower, must not keep this process from sending one to the node.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        # So are the watches of files, in the namespaces above: one sandbox must not have them all.
        notified = {path: int(_read(path)) // _SHARE_OF_WATCHES for path in _WATCHES}
        self._enter_namespaces()
        for path, share in notified.items():
            _write(path, str(max(1, share)))  # of the new one
        self._mount_scratch()
        listener = self._bring_network_up() if self.plan["network"] else None
        self._spawn()
        if listener is None:
            return ()
        descriptor = os.dup(listener.fileno())
        listener.close()
        return (descriptor,)

    def _enter_namespaces(self) -> None:
        flags = _NEWUSER | _NEWNS | (_NEWNET if self.plan["network"] else 0)
        if self.plan["user"] is None:
            if os.access("/proc/sys/kernel/core_pattern", os.W_OK):
                # In a namespace that root has made: what the sandbox runs could write there, too, and no limit on
                # processes holds for it.
                raise OSError(0, "this account is root outside of its user namespace")
            user, group = os.geteuid(), os.getegid()
            _call("unshare", flags)
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
        else:
            self._enter_as_root(flags, self.plan["user"])
        _mount(None, "/", None, _REC | _PRIVATE)

    def _enter_as_root(self, flags: int, user: int) -> None:
        """With a second user: one of the host whom nothing belongs to. What the sandbox runs must not be root outside,
        who may write to half of `/proc/sys` without any capability."""
        ids = [(name, f"0 0 1\n{user} {_stranger(name)} 1") for name in ("uid_map", "gid_map")]
        reading, writing = os.pipe()
        keeper = os.getpid()
        helper = os.fork()
        if helper == 0:
            # A map of more than one's own id is for somebody outside to write.
            try:
                os.read(reading, 1)
                for name, text in ids:
                    _write(f"/proc/{keeper}/{name}", text)
                os._exit(0)
            except BaseException as error:
                print(_text(error), flush=True)
                os._exit(1)
        _call("unshare", flags)
        os.write(writing, b"x")
        os.close(reading)
        os.close(writing)
        if os.waitpid(helper, 0)[1]:
            raise OSError(0, "no other user can be had for the sandbox")
        _write("/proc/sys/user/max_user_namespaces", "0")  # of this one, so that there are none inside

    def _mount_scratch(self) -> None:
        for path, options in self.plan["tmpfs"]:
            _mount("tmpfs", path, "tmpfs", _NOSUID | _NODEV, options)
            # The file system itself: the workspace will be mounted over one of them.
            self.scratch.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        # What is mounted here later appears in the sandbox, too: its copy of the mount is a follower of this one.
        _mount(None, self.plan["slot"], None, _SHARED)

    def _bring_network_up(self) -> socket.socket:
        import fcntl
        import struct

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
        listener = socket.socket()
        listener.bind(("127.0.0.1", self.plan["proxy_port"]))
        listener.listen(64)
        return listener

    def _spawn(self) -> None:
        reading, writing = os.pipe()
        keeper = os.getpid()
        self.bubblewrap = os.fork()
        if self.bubblewrap == 0:
            self._become_bubblewrap(writing, keeper)
        os.close(writing)
        with os.fdopen(reading) as info:
            told = info.read()
        if not told:
            raise OSError(0, "bubblewrap could not make the sandbox")
        self.init = json.loads(told)["child-pid"]
        self.bubblewrap_ended = os.pidfd_open(self.bubblewrap)
        try:
            self.init_handle = os.pidfd_open(self.init)
            segments = os.open(f"/proc/{self.init}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
        except (ProcessLookupError, FileNotFoundError):
            return  # it has ended already; with what is for `run` to tell
        _call("setns", segments, _NEWIPC)  # to see what is in them
        os.close(segments)

    def _become_bubblewrap(self, info: int, keeper: int) -> None:
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != keeper:
                os._exit(1)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.set_inheritable(info, True)
            for name, value in self.plan["limits"].items():
                kind = getattr(resource, f"RLIMIT_{name}")
                hard = resource.getrlimit(kind)[1]
                if name == "NOFILE":
                    hard //= 2  # less than the keeper's, see `start`
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(kind, (value, value))
            rules = os.memfd_create("filter", 0)
            os.write(rules, bytes.fromhex(self.plan["filter"]))
            os.lseek(rules, 0, os.SEEK_SET)
            command, *arguments = self.plan["argv"]
            descriptors = ["--info-fd", str(info), "--seccomp", str(rules)]
            os.execve(command, [command, *descriptors, *arguments], self.plan["env"])
        except BaseException as error:
            print(f"{self.plan['argv'][0]}: {_text(error)}", flush=True)
            os._exit(126)

    # --- life ---

    def run(self) -> int:
        """Serve until the sandbox has ended; returns its exit code."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.bubblewrap_ended, select.POLLIN)
        pause = _BUSY
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(pause * 1000)}
            if self.bubblewrap_ended in ready:
                code = os.waitstatus_to_exitcode(os.waitpid(self.bubblewrap, 0)[1])
                return code if code >= 0 else 128 - code  # as a shell tells it, and bubblewrap itself
            if self.control.fileno() in ready and not self._serve():
                self._end()
                return 1
            try:
                pause = self._look()
            except Over as over:
                print(f"ended by the sandbox: {over}", flush=True)
                # Before the end, so that whoever notices it finds the reason.
                _answer(self.control, {"over": str(over)}, ())
                self._end()
                return _OVER

    def _end(self) -> None:
        if self.init_handle >= 0:
            signal.pidfd_send_signal(self.init_handle, signal.SIGKILL)
        os.waitpid(self.bubblewrap, 0)

    def _serve(self) -> bool:
        """Answer one request. ``False``: the node has gone."""
        packet = self.control.recv(1 << 16)
        if not packet:
            return False
        request = json.loads(packet)
        descriptors: tuple[int, ...] = ()
        answer: dict[str, Any]
        try:
            if request["do"] == "connect":
                answer, descriptors = {"pid": self._runtime()}, (self._connect(request["port"]),)
            elif request["do"] == "mount":
                answer = {"bytes": self._mount_workspace(request["path"])}
            else:
                answer = {"done": self._terminate()}
        except OSError as error:
            answer = {"error": _text(error)}
        except Over as error:
            answer = {"error": str(error)}
        _answer(self.control, {"id": request["id"], **answer}, descriptors)
        return True

    def _connect(self, port: int) -> int:
        connection = socket.create_connection(("127.0.0.1", port), timeout=2.0)
        connection.setblocking(False)
        return connection.detach()

    def _runtime(self) -> int:
        """The host's id of the process that the sandbox was made for: the first child of its first process."""
        with open(f"/proc/{self.init}/task/{self.init}/children") as file:
            children = file.read().split()
        return int(children[0]) if children else 0

    def _terminate(self) -> bool:
        runtime = self._runtime()
        if runtime:
            os.kill(runtime, signal.SIGTERM)
        return bool(runtime)

    def _mount_workspace(self, path: str) -> int:
        """Returns the bytes in it."""
        tree = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if self.plan["user"] is not None:
            os.fchown(tree, self.plan["user"], self.plan["user"])
        used = measure(tree)
        stage = self.plan["stage"]
        _mount(f"/proc/self/fd/{tree}", stage, None, _BIND)
        kept = os.statvfs(stage).f_flag
        flags = _BIND | _REMOUNT | _NOSUID | _NODEV
        for shown, flag in _LOCKED.items():
            flags |= flag if kept & shown else 0
        _mount(None, stage, None, flags)
        _mount(stage, self.plan["slot"], None, _MOVE)
        self.tree = tree
        self.quota = used + _SLACK
        self._tighten(used)
        return used

    def _tighten(self, used: int) -> None:
        """Who is over the quota already may still work, and delete; it must not grow, and what has been deleted is not
        to be had again."""
        self.quota = max(self.plan["quota"], min(self.quota, used + _SLACK))

    # --- limits ---

    def _look(self) -> float:
        """Raises `Over`. Returns the seconds until the next look."""
        # The sandbox's own view of its processes, which costs nothing for those of others.
        inside = f"/proc/{self.init}/root/proc"
        try:
            running = [name for name in os.listdir(inside) if name.isdigit()]
        except OSError:
            return _BUSY  # it is ending
        if len(running) > self.plan["processes"]:
            raise Over(f"{len(running)} processes, of {self.plan['processes']} allowed (sandbox.processes)")
        processes = [f"{inside}/{name}" for name in running]
        elsewhere = sum(occupied(file_system) for file_system in self.scratch) + in_segments()
        used = elsewhere + memory(processes, self.plan["memory"] - elsewhere)
        if used > self.plan["memory"]:
            limit = self.plan["memory"] >> 20
            raise Over(f"{used >> 20} MiB of memory, /tmp included, of {limit} MiB allowed (sandbox.memory)")
        if (count := descriptors(processes)) > (most := _DESCRIPTORS * self.plan["processes"]):
            raise Over(f"{count} descriptors, of {most} allowed for so many processes (sandbox.processes)")
        if watches(processes, self.epoll_watches) > self.epoll_watches:
            raise Over(f"more than {self.epoll_watches} watches by epoll, its part of fs.epoll.max_user_watches")
        self._look_at_the_workspace(processes)
        return _CALM if len(running) <= _ALONE and self.measuring is None else _BUSY

    def _look_at_the_workspace(self, processes: list[str]) -> None:
        if self.tree is None:
            return
        began = time.monotonic()
        if self.measuring is None:
            if began < self.measured_at + max(_MEASURE_PAUSE, _MEASURE_SHARE * self.measuring_took):
                return
            self.measuring, self.measuring_took = walk(self.tree), 0.0
        used = 0
        for so_far in self.measuring:
            used = so_far
            if time.monotonic() > began + _MEASURE_PIECE:
                break
        else:
            self.measuring = None
            used += unlinked(processes, os.fstat(self.tree).st_dev)
        now = time.monotonic()
        self.measuring_took += now - began
        if used > self.quota:
            limit = self.plan["quota"] >> 20
            raise Over(f"the workspace has {used >> 20} MiB, of {limit} MiB allowed (sandbox.workspace_quota)")
        if self.measuring is None:
            self.measured_at = now
            self._tighten(used)


def _stranger(map_name: str) -> int:
    """An id of the host that nobody has: above those that accounts, services and containers are given; or, where this
    is a container without so many, one of the last."""
    with open(f"/proc/self/{map_name}") as file:
        ranges = [[int(number) for number in line.split()] for line in file]
    if any(first <= _STRANGER < first + count for first, _, count in ranges):
        return _STRANGER
    return max(first + count for first, _, count in ranges) - 3


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _answer(control: socket.socket, answer: dict[str, Any], descriptors: tuple[int, ...]) -> None:
    try:
        socket.send_fds(control, [json.dumps(answer).encode()], descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def _text(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


if __name__ == "__main__":
    main()
