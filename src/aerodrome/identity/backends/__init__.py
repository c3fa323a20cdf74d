"""Adapters of the key store."""
