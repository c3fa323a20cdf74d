"""The directories of the user, by the XDG base directory specification (on every system, macOS included)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def config_home(env: Mapping[str, str] = os.environ) -> Path:
    return _home("XDG_CONFIG_HOME", ".config", env)


def data_home(env: Mapping[str, str] = os.environ) -> Path:
    return _home("XDG_DATA_HOME", ".local/share", env)


def cache_home(env: Mapping[str, str] = os.environ) -> Path:
    return _home("XDG_CACHE_HOME", ".cache", env)


def aerodrome_cache(env: Mapping[str, str] = os.environ) -> Path:
    """Where downloads are kept: `AERODROME_CACHE_DIR`, else `aerodrome` in the user's cache directory."""
    if override := env.get("AERODROME_CACHE_DIR"):
        return Path(override).expanduser().absolute()
    return cache_home(env) / "aerodrome"


def runtime_packages(env: Mapping[str, str] = os.environ) -> Path:
    """Where the Copilot CLI unpacks itself, shared by all runtimes of this user."""
    return aerodrome_cache(env) / "runtime-packages"


def _home(variable: str, default: str, env: Mapping[str, str]) -> Path:
    # The specification: a relative path in one of these variables is invalid and to be ignored.
    if (value := env.get(variable)) and Path(value).is_absolute():
        return Path(value)
    return Path.home() / default
