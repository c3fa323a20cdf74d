"""Writes 3 MB after it listens, some of it in very long lines, then says where it stands."""

import sys
import time

print("CLI server listening on port 1", flush=True)
for number in range(20_000):
    print(f"line {number:08d} " + "x" * 86)
sys.stdout.write("y" * 1_000_000 + "\n")
print("said everything", flush=True)
time.sleep(600)
