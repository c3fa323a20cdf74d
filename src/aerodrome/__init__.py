"""Aerodrome hosts GitHub Copilot CLI servers for many users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aerodrome.fleet import Fleet

__version__ = "0.2.0"
__all__ = ["Fleet", "__version__"]


def __getattr__(name: str) -> Any:
    # Late: a whole node is behind it, which neither the command nor the version needs.
    if name == "Fleet":
        from aerodrome.fleet import Fleet

        return Fleet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
