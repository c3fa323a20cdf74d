"""Benchmarks: what Aerodrome costs over the bare Copilot CLI, as ratios measured in one run.

Responsible for starting what is compared (a node in a process of its own, the official SDK on CLIs of their own, the
scripted model), for taking turns between the compared so that noise hits them alike, and for the numbers. Printing
them is the command line's.
"""
