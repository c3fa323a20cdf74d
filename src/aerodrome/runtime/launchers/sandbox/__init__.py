"""The `sandbox` launcher: each runtime inside bubblewrap, with a process of ours beside it (docs/adr/0024).

Here is what a runtime sees of its host, what it may connect to, and the limits that it is under. What a caller may ask
of it is the policy's; whose workspace it gets, and when, is `runtime.workspaces` and the pool.
"""
