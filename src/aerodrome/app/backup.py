"""What `aerodrome backup` makes: a directory with a copy of each database, and a page that says what they are.

**Which moment.** The state (files, ledger, keys) is copied as of one moment and the coordination file (the directory,
the leases) as of one just after. A session has its row before it has anything else, so that whatever is in the first
copy has its row in the second, unless it was deleted in between: then what is left of it is removed when the backup is
restored, as the deletion would have.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import aerodrome
from aerodrome._util.sqlite_backup import Progress, check, copy_databases, sync
from aerodrome.config.settings import Settings
from aerodrome.errors import ConfigError, Conflict, Invalid, StoreUnavailable

STATE, COORDINATION = "state.sqlite3", "coordination.sqlite3"
#: In the order in which they are copied; see above.
DATABASES = (STATE, COORDINATION)
MANIFEST = "backup.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a backup."""

    #: The release that made it.
    aerodrome: str
    #: ISO 8601, UTC: nothing that was stored after this is in it.
    created_at: str
    sessions: int
    #: File -> bytes.
    bytes: dict[str, int]
    #: File -> its SHA-256.
    sha256: dict[str, str]
    format: int = _FORMAT


def check_is_sqlite(settings: Settings) -> None:
    """Raises ConfigError: what must last is not in files of this machine."""
    if settings.state.volume is not None:
        raise ConfigError(
            f"the files of sessions are on the volume {settings.state.volume}: take a snapshot of it and of the tables "
            "as of the same moment, and after a restore of both run `aerodrome restore --in-place`"
        )
    if settings.state.url != "sqlite":
        raise ConfigError(
            f"state.url is {settings.state.url.masked}: back up and restore that with its own tools (pg_dump, WAL "
            "archiving; docs/operations.md, Back up), and after a restore run `aerodrome restore --in-place`"
        )


def back_up(settings: Settings, target: Path, progress: Progress) -> Manifest:
    """Copy the databases of `server.data_dir` into a new directory, while nodes work. Blocks.

    Raises:
        ConfigError: They are not SQLite files.
        Conflict: The directory is there already.
        Invalid: It cannot be made.
        StoreUnavailable: There is nothing to back up, or it cannot be read.
    """
    check_is_sqlite(settings)
    sources = [settings.server.data_dir / name for name in DATABASES]
    for source in sources:
        if not source.is_file():
            raise StoreUnavailable(f"there is no {source}: has a node run with this configuration?")
    if target.exists():
        raise Conflict(f"{target} exists already; name something new")
    # Under another name until it is whole: what has the right one is a backup.
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(mode=0o700, parents=True)
        manifest = _copy(sources, partial, progress)
        partial.rename(target)
        sync(target.parent)
    except OSError as error:
        raise Invalid(f"{target} cannot be written: {error.strerror}") from None
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the databases cannot be copied: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _copy(sources: list[Path], directory: Path, progress: Progress) -> Manifest:
    copies = [directory / source.name for source in sources]
    created_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    copy_databases(list(zip(sources, copies, strict=True)), progress)
    for copy in copies:
        if (problem := check(copy)) is not None:
            raise StoreUnavailable(f"{copy.name} is damaged, and so is its copy: {problem}")
    with closing(sqlite3.connect(directory / COORDINATION)) as connection:
        (sessions,) = connection.execute("SELECT count(*) FROM session").fetchone()
    manifest = Manifest(
        aerodrome=aerodrome.__version__,
        created_at=created_at,
        sessions=sessions,
        bytes={copy.name: copy.stat().st_size for copy in copies},
        sha256={copy.name: digest(copy) for copy in copies},
    )
    page = directory / MANIFEST
    page.touch(mode=0o600)
    page.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    sync(page)
    sync(directory)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Of a backup that is whole.

    Raises:
        Invalid: It is none, or is damaged.
    """
    try:
        values = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if values.get("format") != _FORMAT:
            raise Invalid(f"{directory} was made by Aerodrome {values.get('aerodrome')}: restore it with that release")
        manifest = Manifest(**values)
        for name in DATABASES:
            if digest(directory / name) != manifest.sha256[name]:
                raise Invalid(f"{directory / name} is damaged: it is not what was backed up")
    except OSError as error:
        raise Invalid(f"{directory} is no backup: {error.filename} can not be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Invalid(f"{directory / MANIFEST} is damaged") from None
    return manifest


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
