"""Starts one child in its process group and one outside of it, both holding its output, and tells their pids."""

import subprocess
import sys
import time

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(SLEEP), subprocess.Popen(SLEEP, start_new_session=True)]
print("children", *(child.pid for child in children), flush=True)
print("CLI server listening on port 1", flush=True)
time.sleep(600)
