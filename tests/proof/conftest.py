from __future__ import annotations

from support.cli import cli

__all__ = ["cli"]
