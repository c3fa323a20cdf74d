"""Aerodrome hosts GitHub Copilot CLI servers for many users."""

__version__ = "0.1.0"
