"""`aerodrome backup` and `aerodrome restore`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from aerodrome.cli.console import err, note, print_json, say
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.config import Settings, load_settings
from aerodrome.errors import Conflict

if TYPE_CHECKING:
    from aerodrome._util.sqlite_backup import Progress as Report
    from aerodrome.app.restore import Restored


def backup(
    to: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="What to make. It must not be there yet.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the SQLite databases of `server.data_dir` as of one moment, while nodes work or not.

    It holds conversations in clear, and the digests of API keys: keep it as safe as the original. State in PostgreSQL
    is backed up with the tools of PostgreSQL.
    """
    from aerodrome.app.backup import back_up

    settings = load_settings(config, resolve_secrets=False)
    began = time.monotonic()
    with _progress("copying") as report:
        manifest = back_up(settings, to, report)
    seconds = round(time.monotonic() - began, 2)
    if as_json:
        print_json({"directory": str(to), "seconds": seconds, **asdict(manifest)})
    else:
        size = sum(manifest.bytes.values()) / (1 << 20)
        say(f"{to}: {manifest.sessions} sessions as of {manifest.created_at}, {size:.1f} MiB in {seconds:g} s")


def restore(
    source: Annotated[
        Path | None, typer.Argument(metavar="DIRECTORY", help="A backup. Not with `--in-place`.", show_default=False)
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="The stores have been restored by other means (pg_restore, a point in time, a snapshot of the disk): "
            "only make them fit to be served.",
        ),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move databases that are there already aside, into `replaced-...`.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a backup into `server.data_dir`, and make it fit to be served: fenced against every node of before.

    Refused while a node lives, or any process has the databases open. API keys that were revoked, and sessions that
    were deleted, after the backup are there again: `aerodrome keys revoke`, `aerodrome sessions rm`.
    """
    if (source is None) is not in_place:
        raise typer.BadParameter("name a backup, or give --in-place")
    settings = load_settings(config, resolve_secrets=False)
    if source is None:
        restored, created_at = asyncio.run(_in_place(settings)), None
    else:
        from aerodrome.app.restore import restore

        asyncio.run(_refuse_living(settings))
        with _progress("restoring") as report:
            manifest, restored = restore(settings, source, report, replace=replace)
        created_at = manifest.created_at
    if as_json:
        print_json(
            {
                "created_at": created_at,
                "sessions": restored.sessions,
                "unfinished_turns": restored.unfinished_turns,
                "replaced": None if restored.replaced is None else str(restored.replaced),
            }
        )
        return
    say(
        f"{restored.sessions} sessions{f' as of {created_at}' if created_at else ''}; "
        f"{restored.unfinished_turns} unfinished turns will be reported as interrupted"
    )
    if restored.replaced is not None:
        note(f"what was there before is in {restored.replaced}")
    note("keys that were revoked and sessions that were deleted since are there again")


async def _in_place(settings: Settings) -> Restored:
    from aerodrome.app.restore import Restored, restored_in_place
    from aerodrome.app.stores import postgresql_stores

    await _refuse_living(settings)
    if settings.state.tables_url == "sqlite":
        return await asyncio.to_thread(restored_in_place, settings)
    return Restored(*await postgresql_stores().restored_in_place(settings))


async def _refuse_living(settings: Settings) -> None:
    """Nodes that are known to a coordination store of its own. Of SQLite files it is seen who has them open."""
    from aerodrome.app.stores import coordination_of

    if settings.coordination.url in ("sqlite", "memory"):
        return
    async with coordination_of(settings) as coordination:
        if living := [node.name for node in await coordination.nodes()]:
            raise Conflict(f"{', '.join(living)} still live: stop every node first (`aerodrome nodes drain`)")


@contextmanager
def _progress(what: str) -> Iterator[Report]:
    """A bar on a terminal; nothing elsewhere."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    console = err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
