"""Starts three children that hold its output, and tells their pids: one in its process group, one outside of it, and
one outside of it that cannot be known by its environment."""

import subprocess
import sys
import time

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
children = [
    subprocess.Popen(SLEEP),
    subprocess.Popen(SLEEP, start_new_session=True),
    subprocess.Popen(SLEEP, start_new_session=True, env={}),
]
print("children", *(child.pid for child in children), flush=True)
print("CLI server listening on port 1", flush=True)
time.sleep(600)
