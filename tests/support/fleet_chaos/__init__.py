"""A fleet under trouble: users talk to three nodes over HTTP and with the SDK, while runtimes, nodes and stores are
killed, paused, emptied and restarted; afterwards every stored history must be what its users were told.

`run.chaos` is one run. As a program: `make chaos`, or ``PYTHONPATH=tests python -m support.fleet_chaos --help``.
"""
