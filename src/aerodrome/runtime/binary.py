"""Find the Copilot CLI binary, and make sure that it is the one we are made for before anything is started."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from aerodrome._util.xdg import aerodrome_cache, cache_home, runtime_packages
from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime.executable import check_executable
from aerodrome.runtime.install import Installation
from aerodrome.runtime.release import PINNED, Release, host_platform

#: Seconds for `copilot --version`. It takes less than one; a binary that hangs must not hang the start.
VERSION_TIMEOUT = 20.0
_VERSION = re.compile(r"\b(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]*[0-9A-Za-z])?)")
_MEND = "run `aerodrome runtime install`"


class Source(StrEnum):
    """Where a binary was found, in the order of search."""

    SETTING = "runtime.command"
    VARIABLE = "COPILOT_CLI_PATH"
    CACHE = "cache"
    SDK = "SDK download"
    PATH = "PATH"


#: What to do about a binary that is wrong, by where it was found.
_MEND_OF = {
    Source.SETTING: f'{_MEND} and set runtime.command to "auto"',
    Source.VARIABLE: f"{_MEND} and unset COPILOT_CLI_PATH",
    Source.CACHE: "run `aerodrome runtime install --force`",
    Source.SDK: _MEND,
    Source.PATH: _MEND,
}


@dataclass(frozen=True, slots=True)
class Binary:
    path: Path
    source: Source
    version: str


def resolve(
    command: str = "auto",
    *,
    allow_version_mismatch: bool = False,
    release: Release = PINNED,
    env: Mapping[str, str] = os.environ,
) -> Binary:
    """The binary to start. The first one found counts, also when it turns out wrong: a setting or a variable that
    is silently passed over would start something else than was asked for.

    Blocks (it may run `copilot --version`): from a coroutine, call it in a thread.

    Args:
        command: The setting `runtime.command`: a path, or "auto" to search.

    Raises:
        RuntimeUnavailable: None is found, or it cannot run here, or it has another version. Says what to do.
    """
    found = next(_candidates(command, release, env), None)
    if found is None:
        raise RuntimeUnavailable(
            f"no Copilot CLI found: {_MEND}, or set COPILOT_CLI_PATH or runtime.command to a `copilot` "
            f"binary of version {release.version}"
        )
    path, source, version = found
    try:
        check_executable(path)
        version = version or read_version(path, env)
    except RuntimeUnavailable as error:
        raise RuntimeUnavailable(f"{error.detail} (found through {source}; to mend it, {_MEND_OF[source]})") from None
    if version != release.version and not allow_version_mismatch:
        raise RuntimeUnavailable(
            f"{path} (found through {source}) is Copilot CLI {version}, and this release needs {release.version}: "
            f"{_MEND_OF[source]}, or accept it with runtime.allow_version_mismatch = true"
        )
    return Binary(path, source, version)


def _candidates(command: str, release: Release, env: Mapping[str, str]) -> Iterator[tuple[Path, Source, str | None]]:
    """What there is, best first; with the version where it is known without running the binary."""
    if command != "auto":
        yield Path(command), Source.SETTING, None
    if path := env.get("COPILOT_CLI_PATH"):
        yield Path(path).expanduser().absolute(), Source.VARIABLE, None
    platform_name = host_platform()
    installation = Installation(release, platform_name, aerodrome_cache(env))
    if installation.is_complete():
        yield installation.binary, Source.CACHE, release.version
    # The layout of the SDK's own cache; importing the SDK only to ask it would make it a dependency.
    sdk = cache_home(env) / "github-copilot-sdk" / "cli" / release.version / "prebuilds" / platform_name / "copilot"
    if sdk.is_file():
        yield sdk, Source.SDK, None
    if on_path := shutil.which("copilot", path=env.get("PATH")):
        yield Path(on_path).absolute(), Source.PATH, None


def read_version(path: Path, env: Mapping[str, str] = os.environ) -> str:
    """The version that the binary reports, remembered for as long as the file does not change.

    Raises:
        RuntimeUnavailable: It does not answer as a Copilot CLI.
    """
    memory = aerodrome_cache(env) / "versions.json"
    known = _load(memory)
    status = path.stat()
    stamp = [status.st_mtime_ns, status.st_size]
    entry = known.get(str(path))
    if isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("version"), str):
        return str(entry["version"])
    version = _ask_version(path, env)
    # Only a memory: a cache that is read-only or full costs the next start a second, nothing else.
    with suppress(OSError):
        _save(memory, {**known, str(path): {"stamp": stamp, "version": version}})
    return version


def _ask_version(path: Path, env: Mapping[str, str]) -> str:
    with tempfile.TemporaryDirectory(prefix="aerodrome-version-") as home:
        quiet = {
            "PATH": env.get("PATH", os.defpath),
            "HOME": home,
            "COPILOT_HOME": home,
            "COPILOT_PKG_CACHE_HOME": _packages(env, home),
            "COPILOT_OFFLINE": "true",
            "COPILOT_AUTO_UPDATE": "false",
            "COPILOT_DISABLE_KEYTAR": "1",
        }
        try:
            done = subprocess.run(
                [path, "--version"],
                env=quiet,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=VERSION_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeUnavailable(f"`{path} --version` did not end in {VERSION_TIMEOUT:g} s") from None
        except OSError as error:
            raise RuntimeUnavailable(f"{path} can not be started: {error.strerror}") from None
    output = done.stdout.decode(errors="replace")
    match = _VERSION.search(output)
    if done.returncode != 0 or match is None:
        said = (output + done.stderr.decode(errors="replace")).strip()[:300] or "nothing"
        raise RuntimeUnavailable(
            f"`{path} --version` ended with {done.returncode} and told no version; it said: {said}"
        )
    return match[1]


def unpack(path: Path, env: Mapping[str, str] = os.environ) -> None:
    """Have the CLI unpack itself into the cache of the runtimes, if it has not: one in a sandbox may only read there.

    Raises:
        RuntimeUnavailable: It does not.
    """
    packages = runtime_packages(env)
    try:
        packages.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix="aerodrome-unpack-") as home:
            quiet = {"HOME": home, "COPILOT_PKG_CACHE_HOME": str(packages), "COPILOT_SEA_EXTRACT_ONLY": "1"}
            done = subprocess.run(
                [path, "--headless"], env=quiet, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeUnavailable(f"the Copilot CLI could not unpack itself to {packages}: {error}") from None
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()[-300:]
        raise RuntimeUnavailable(f"the Copilot CLI could not unpack itself to {packages}: {said}")


def _packages(env: Mapping[str, str], otherwise: str) -> str:
    """Where the CLI unpacks itself (235 MB), which it does even to tell its version: the cache of the runtimes.

    Not where it can not write: there it hangs without a word (seen with 1.0.102).
    """
    packages = runtime_packages(env)
    with suppress(OSError):
        packages.mkdir(parents=True, exist_ok=True)
    return str(packages) if os.access(packages, os.W_OK) else otherwise


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _save(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".versions-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
