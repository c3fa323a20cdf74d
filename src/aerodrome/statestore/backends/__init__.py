"""Adapters of the session-file store."""
