"""The few lines that run between fork and the CLI: `python -I -S _exec.py PARENT_PID COMMAND ARG...`.

Asks the kernel to kill this process when its parent dies, so that a `kill -9` of Aerodrome leaves no runtime
behind, closes what is not for the runtime, then becomes the command. It is a program of its own because code that runs
after fork in a threaded Python process (`preexec_fn`) can deadlock.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
#: What a shell ends with when a command cannot be started.
_CANNOT_START = 126
#: Where the numbers of our descriptors are.
_OPEN = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"

if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        # The parent died before the request was in force.
        sys.exit(1)
# uvloop starts a program with every descriptor that is inheritable: sockets of the service manager, for one.
for descriptor in map(int, os.listdir(_OPEN)):  # noqa: PTH208 - what it would import takes its time
    if descriptor > 2:
        os.closerange(descriptor, descriptor + 1)  # no error for the one by which they were listed
try:
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - replacing this process is the purpose
except OSError as error:
    # Our output is read by the launcher, which tells it to whoever asked for the runtime.
    print(f"{sys.argv[2]}: {error.strerror}", flush=True)
    sys.exit(_CANNOT_START)
