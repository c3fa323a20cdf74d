"""The life of a session: open, turns, residency, hibernation, fail-over, expiry, deletion.

Not: HTTP, processes, storage.
"""
