"""Adapters of the message ledger."""
