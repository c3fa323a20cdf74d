"""`aerodrome migrate`: the tables of the stores, brought up to date before the first node of a new release starts."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from aerodrome.cli.console import note, print_json, print_table, say
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.config import load_settings


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if a node of this release could not start.")
    ] = False,
    post: Annotated[
        bool,
        typer.Option("--post", help="Also take away what only older releases use: after their last node has ended."),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the tables in PostgreSQL up to date. Safe while nodes of the release before are running.

    Without `--post` it only adds, so that they go on working. SQLite files need no command: a node brings them up to
    date when it starts.
    """
    settings = load_settings(config, resolve_secrets=False)
    if not any(url.scheme.startswith("postgres") for url in (settings.state.tables_url, settings.coordination.url)):
        if as_json:
            print_json([])
        else:
            say("No store is in PostgreSQL; a node brings all others up to date when it starts: nothing to do.")
        return
    from aerodrome.app.stores import postgresql_stores

    done = asyncio.run(postgresql_stores().migrate(settings, check=check, post=post))
    rows = [{**asdict(status), "applied": done.applied.get(status.name, [])} for status in done.statuses]
    if as_json:
        print_json(rows)
    else:
        columns = ("TABLES", "VERSION", "KNOWN", "APPLIED NOW", "PENDING", "PENDING WITH --post")
        print_table(
            columns,
            [
                (row["name"], row["stored"], row["known"], *(", ".join(row[k]) for k in ("applied", "pre", "post")))
                for row in rows
            ],
        )
        for row in rows:
            if row["problem"]:
                note(row["problem"], style="yellow")
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)
