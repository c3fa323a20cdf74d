"""What operators see of a fleet, and what they ask of its nodes, through the coordination store alone.

`view` is pure; `requests` is how a command reaches a node and how its outcome comes back; `administration` is both for
the command line and the HTTP API. Not here: what a node does then (`runtime.retirements`, `app.node`).
"""
