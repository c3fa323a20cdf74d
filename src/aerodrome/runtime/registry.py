"""Which npm registry to take packages from. There is no default of our own: the machine's npm knows."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

import httpx

from aerodrome.errors import ConfigError

_TIMEOUT = 30.0


def find_registry(flag: str | None = None, env: Mapping[str, str] = os.environ) -> str:
    """The base URL of the registry: the flag, `NPM_CONFIG_REGISTRY`, or what npm is configured with.

    Blocks (it may run npm).

    Raises:
        ConfigError: None is known, or what is known is no URL.
    """
    variable = env.get("NPM_CONFIG_REGISTRY") or env.get("npm_config_registry")
    for origin, url in (("--registry", flag), ("NPM_CONFIG_REGISTRY", variable)):
        if url:
            return _checked(url, origin)
    if npm := shutil.which("npm", path=env.get("PATH")):
        # A company's registry may be configured for the scope of the package alone.
        for key in ("@github:registry", "registry"):
            if url := _ask_npm(npm, key, env):
                return _checked(url, f"npm config get {key}")
    raise ConfigError(
        "no npm registry is known: install npm, or name one with --registry URL or NPM_CONFIG_REGISTRY, "
        "or give a downloaded package with --from FILE.tgz"
    )


def without_credentials(url: str) -> str:
    """The URL as it may be shown."""
    parsed = httpx.URL(url)
    return str(parsed.copy_with(username=None, password=None)) if parsed.userinfo else url


def _ask_npm(npm: str, key: str, env: Mapping[str, str]) -> str | None:
    try:
        done = subprocess.run(
            [npm, "config", "get", key],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    value = done.stdout.strip()
    return value if done.returncode == 0 and value not in ("", "undefined", "null") else None


def _checked(url: str, origin: str) -> str:
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{origin} is {url!r}; expected the address of an npm registry, http:// or https://")
    return url.strip().rstrip("/")
