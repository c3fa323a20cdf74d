"""Starts, says so, and does nothing more."""

import time

print("warming up", flush=True)
time.sleep(600)
