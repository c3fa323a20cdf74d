"""Adapters of the coordination ports."""
