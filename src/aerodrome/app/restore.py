"""What makes a stored state of an earlier moment fit to be served again.

Between the backup and its restore a session may have been loaded, with epochs that the restored stores know nothing
of. A node that was paused in that time, or cut off, still believes in such an epoch; if the restored store gave it out
again, its late writes would be taken (trap 8). So every session gets an epoch above all that were ever given out:
each is that of the milliseconds of the time it was given out at, or one more than the one before it
(`sessions.erase.epoch_floor`), so that the present time is above all of them. That goes for sessions without files,
too.

What is about the living (nodes, leases, limits in use, hints) is of another life, and goes. What has no row in the
directory was deleted while the backup was made, and goes as well; so do ephemeral sessions, whose callers have gone.
Unfinished turns stay as they are: the first node that starts reports them as interrupted, because theirs are not among
the living.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aerodrome._util.schema import Schema
from aerodrome._util.sqlite_backup import Progress, in_use, sync
from aerodrome.app.backup import COORDINATION, DATABASES, STATE, Manifest, check_is_sqlite, read_manifest
from aerodrome.app.stores import PARTIAL
from aerodrome.config.settings import Settings
from aerodrome.errors import Conflict, Invalid, StoreUnavailable

_SCHEMAS = {
    STATE: (
        ("statestore", "statestore"),
        ("ledger", "sessions"),
        ("keys", "identity"),
        ("attached", "runtime.attached"),
    ),
    COORDINATION: (("coordination", "coordination"),),
}
#: `:epoch` is the present time in milliseconds.
_FIT = """
DELETE FROM c.session WHERE kind = 'ephemeral';
DELETE FROM turn WHERE NOT EXISTS (
    SELECT 1 FROM c.session AS s WHERE s.tenant = turn.tenant AND s.id = turn.session);
DELETE FROM file_session WHERE NOT EXISTS (
    SELECT 1 FROM c.session AS s WHERE s.tenant = file_session.tenant AND s.id = file_session.session);
UPDATE file_session SET epoch = max(epoch + 1, :epoch);
INSERT INTO file_session (tenant, session, epoch) SELECT tenant, id, :epoch FROM c.session WHERE true
    ON CONFLICT (tenant, session) DO NOTHING;
UPDATE c.session SET state = 'hibernated';
UPDATE c.lease SET incarnation = NULL;
UPDATE c.epoch_floor SET epoch = max(epoch, :epoch);
DELETE FROM c.node;
DELETE FROM c.place;
DELETE FROM c.rate;
DELETE FROM c.event
"""


@dataclass(frozen=True, slots=True)
class Restored:
    sessions: int
    #: Turns that had no end, and are reported as interrupted by the first node.
    unfinished_turns: int
    #: Where what was there before is now.
    replaced: Path | None = None


def restore(settings: Settings, source: Path, progress: Progress, *, replace: bool) -> tuple[Manifest, Restored]:
    """Put a backup into `server.data_dir`. Blocks.

    Args:
        replace: What is there already is moved aside; without it, it is left alone.

    Raises:
        ConfigError: The stores are not SQLite files; or the backup is of a newer release.
        Conflict: A process uses the databases; or there are some, and `replace` is not given.
        Invalid: It is no backup, or the directory cannot be written.
    """
    check_is_sqlite(settings)
    manifest = read_manifest(source)
    directory = settings.server.data_dir
    _refuse_living(directory)
    present = [path for name in DATABASES for path in sorted(directory.glob(f"{name}*"))]
    # One that was cut short has moved aside what there was before.
    if present and not replace and not (directory / PARTIAL).exists():
        raise Conflict(f"there are databases in {directory}: name another server.data_dir, or give --replace")
    try:
        partial = _prepare(directory)
        copied = 0
        for name in DATABASES:
            shutil.copyfile(source / name, partial / name)
            (partial / name).chmod(0o600)
            copied += manifest.bytes[name]
            progress(copied, sum(manifest.bytes.values()))
        restored = make_fit(partial)
        replaced = _move_aside(directory, present)
        # The directory first: a session without files is empty, but files without a row are anybody's. And until both
        # are there, the directory that they come from keeps nodes from starting.
        for name in reversed(DATABASES):
            sync(partial / name)
            (partial / name).rename(directory / name)
        sync(directory)
        shutil.rmtree(partial)
        sync(directory)
    except OSError as error:
        raise Invalid(f"{directory} cannot be written: {error.strerror}") from None
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the databases cannot be restored: {error}") from None
    return manifest, Restored(restored.sessions, restored.unfinished_turns, replaced)


def restored_in_place(settings: Settings) -> Restored:
    """Make SQLite databases fit that have been put where they are by other means, such as a snapshot of the disk.

    Raises:
        Conflict: A process uses them.
        StoreUnavailable: They are not there, or cannot be used.
    """
    directory = settings.server.data_dir
    for name in DATABASES:
        if not (directory / name).is_file():
            raise StoreUnavailable(f"there is no {directory / name}: both databases have to be restored together")
    _refuse_living(directory)
    try:
        return make_fit(directory)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the databases cannot be used: {error}") from None


def make_fit(directory: Path) -> Restored:
    """See above. Nobody else may use the databases."""
    for name, schemas in _SCHEMAS.items():
        with closing(sqlite3.connect(directory / name, isolation_level=None)) as connection:
            for schema, package in schemas:
                connection.execute("BEGIN IMMEDIATE")
                Schema.load(schema, f"aerodrome.{package}.backends").migrate(connection)
                connection.execute("COMMIT")
    with closing(sqlite3.connect(directory / STATE, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("ATTACH ? AS c", (str(directory / COORDINATION),))
        connection.execute("BEGIN IMMEDIATE")
        for statement in _FIT.split(";"):
            connection.execute(statement, {"epoch": round(time.time() * 1000)} if ":epoch" in statement else {})
        (sessions,) = connection.execute("SELECT count(*) FROM c.session").fetchone()
        (unfinished,) = connection.execute("SELECT count(*) FROM turn WHERE status IN ('queued', 'running')").fetchone()
        connection.execute("COMMIT")
    return Restored(sessions, unfinished)


def _refuse_living(directory: Path) -> None:
    for name in DATABASES:
        try:
            used = in_use(directory / name)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{directory / name} cannot be looked at: {error}") from None
        if used:
            raise Conflict(
                f"{directory / name} is in use: stop every node of this data_dir, also one that stands still "
                "(`aerodrome nodes ls`)"
            )


def _prepare(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = directory / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    sync(directory)
    return partial


def _move_aside(directory: Path, present: list[Path]) -> Path | None:
    if not present:
        return None
    # To the microsecond: one restore may follow the other at once.
    aside = directory / f"replaced-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    aside.mkdir(mode=0o700)
    for path in present:
        # SQLite removes the log of a database that nobody has open.
        if path.exists():
            path.rename(aside / path.name)
    sync(aside)
    return aside
