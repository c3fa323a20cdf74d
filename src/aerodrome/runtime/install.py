"""Put the pinned Copilot CLI into the user's cache: download, verify, extract, and only then make it visible.

    <cache>/cli/<version>/<platform>/copilot, LICENSE.md, package.json, manifest.json

The manifest is written last, and what has none is not installed: whenever an installation is cut short, the
cache has either all of it or nothing that anyone would use. Two processes may install at once; the second waits
and finds the work done.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime.download import Progress, Retries, download
from aerodrome.runtime.registry import find_registry, without_credentials
from aerodrome.runtime.release import Release

#: The only members of a package that are taken, and their names in the cache. Anything else in an archive,
#: whatever its path, is left alone.
_WANTED = {"package/copilot": "copilot", "package/LICENSE.md": "LICENSE.md", "package/package.json": "package.json"}
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Installation:
    """The place of one release for one platform in a cache."""

    release: Release
    platform: str
    cache: Path

    @property
    def directory(self) -> Path:
        return self.cache / "cli" / self.release.version / self.platform

    @property
    def binary(self) -> Path:
        return self.directory / "copilot"

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.json"

    @property
    def part(self) -> Path:
        return self.cache / "cli" / f".{self.release.archive_name(self.platform)}.part"

    @property
    def lock(self) -> Path:
        return self.cache / "cli" / f".{self.release.archive_name(self.platform)}.lock"

    def is_complete(self) -> bool:
        """Whether it is there, whole. Compares size and kind: hashing 200 MB at every start would take a second."""
        try:
            manifest = json.loads(self.manifest.read_bytes())
            status = self.binary.stat()
        except (OSError, ValueError):
            return False
        return (
            isinstance(manifest, dict)
            and manifest.get("integrity") == self.release.integrity.get(self.platform)
            and manifest.get("size") == status.st_size
            and os.access(self.binary, os.X_OK)
        )


def install(
    target: Installation,
    progress: Progress,
    *,
    archive: Path | None = None,
    registry: str | None = None,
    force: bool = False,
    retries: Retries | None = None,
) -> bool:
    """Install unless it is installed already. Blocks for as long as the download takes.

    Args:
        archive: The package as a file, for machines without a registry.
        registry: Base URL of an npm registry; without it the machine's npm is asked (`find_registry`).
        force: Install again, for a cache that was damaged.

    Returns:
        ``False`` when it was there already and nothing was done.

    Raises:
        RuntimeUnavailable: The package can not be had, is not the pinned one, or the cache can not be written.
        ConfigError: No registry is known.
    """
    integrity = target.release.integrity_of(target.platform)
    if target.is_complete() and not force:
        return False
    with _errors_explained(target), _locked(target, progress):
        # Another process may have installed it while this one waited for the lock.
        if target.is_complete() and not force:
            return False
        if archive is not None:
            _verify(archive, integrity, f"it must be {target.release.archive_name(target.platform)}, unchanged")
            _extract(archive, target)
        else:
            _fetch(target, find_registry(registry), integrity, progress, retries)
            _extract(target.part, target)
            target.part.unlink()
    return True


def _fetch(target: Installation, registry: str, integrity: str, progress: Progress, retries: Retries | None) -> None:
    """Leave the verified package in `target.part`."""
    url = target.release.url(registry, target.platform)
    resumed = download(url, target.part, progress, retries=retries)
    if resumed and not _matches(target.part, integrity):
        progress.note("the earlier partial download does not fit; starting again")
        target.part.unlink()
        download(url, target.part, progress, retries=retries)
    try:
        _verify(target.part, integrity, f"{without_credentials(registry)} does not serve the original package")
    except RuntimeUnavailable:
        # To go on from wrong bytes would never end.
        target.part.unlink(missing_ok=True)
        raise


def _verify(archive: Path, integrity: str, meaning: str) -> None:
    if not _matches(archive, integrity):
        raise RuntimeUnavailable(f"{archive}: the checksum is wrong: {meaning}. Nothing was installed")


def _matches(archive: Path, integrity: str) -> bool:
    algorithm, _, expected = integrity.partition("-")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).digest()
    return base64.b64encode(digest).decode("ascii") == expected


def _extract(archive: Path, target: Installation) -> None:
    """Unpack beside the place, then move each file into it: whole, and the manifest last."""
    target.directory.mkdir(parents=True, exist_ok=True)
    prefix = f".installing-{target.platform}-"
    # What a killed installation left; the lock says that nobody is at work there.
    for stale in target.directory.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=target.directory.parent))
    try:
        size = _unpack(archive, staging)
        manifest = {
            "version": target.release.version,
            "platform": target.platform,
            "integrity": target.release.integrity_of(target.platform),
            "size": size,
        }
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _sync(staging / "manifest.json")
        for name in (*_WANTED.values(), "manifest.json"):
            if (staging / name).exists():
                (staging / name).replace(target.directory / name)
        _sync(target.directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack(archive: Path, into: Path) -> int:
    """Take the wanted regular files out of the archive. Returns the size of the binary."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                # Names are compared, never followed, and links are no regular files: no path leads elsewhere.
                if member.isreg() and (name := _WANTED.get(member.name)):
                    source = tar.extractfile(member)
                    assert source is not None
                    _write(source, into / name)
    except (tarfile.TarError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RuntimeUnavailable(f"{archive} is no package: {error}") from None
    binary = into / "copilot"
    if not binary.is_file():
        raise RuntimeUnavailable(f"{archive} is no package of the Copilot CLI: it has no package/copilot")
    binary.chmod(0o755)
    return binary.stat().st_size


def _write(source: IO[bytes], path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(target: Installation, progress: Progress) -> Iterator[None]:
    """One installation of this package at a time, among all processes. The kernel frees it when its holder dies."""
    target.lock.parent.mkdir(parents=True, exist_ok=True)
    with target.lock.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note("another process is installing it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _errors_explained(target: Installation) -> Iterator[None]:
    """Turn what the file system says into what to do about it."""
    try:
        yield
    except OSError as error:
        elsewhere = "or set AERODROME_CACHE_DIR to a directory with room (about 350 MB)"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            # Half a package that can not grow only keeps the disk full.
            with suppress(OSError):
                target.part.unlink(missing_ok=True)
            raise RuntimeUnavailable(f"no room left in {target.cache}: free some, {elsewhere}") from None
        where = error.filename or target.cache
        raise RuntimeUnavailable(
            f"{where} can not be used: {error.strerror or error}; mend that, {elsewhere}"
        ) from None
