"""Ends with a message, in pieces and with a last line that is not complete."""

import sys

print("loading", flush=True)
sys.stderr.write("fatal: the machine has no such instruction")
sys.exit(3)
