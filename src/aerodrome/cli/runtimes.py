"""`aerodrome runtimes`: the Copilot CLI processes of all living nodes, as the nodes last told the store."""

from __future__ import annotations

import asyncio
from typing import Any

import typer

from aerodrome.cli.console import moment, print_json, print_table
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.config import Settings, load_settings

app = typer.Typer(no_args_is_help=True, help="The Copilot CLI processes of the running nodes.")

_MIB = 1 << 20


@app.command("ls")
def list_runtimes(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the runtimes, as the nodes told with their last heartbeat."""
    rows = asyncio.run(_runtimes(load_settings(config, resolve_secrets=False)))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("ID", "NODE", "PID", "STATE", "TENANT", "USER", "SESSIONS", "TURNS", "RSS MiB", "STARTED"),
        [
            (
                row["id"],
                row["node"],
                row["pid"],
                row["state"],
                row["tenant"],
                row["user"],
                row["sessions"],
                row["turns"],
                row["rss_bytes"] // _MIB,
                moment(row["started_at"]),
            )
            for row in rows
        ],
    )


async def _runtimes(settings: Settings) -> list[dict[str, Any]]:
    from aerodrome.app.stores import open_stores

    async with open_stores(settings) as stores:
        return [row for node in await stores.coordination.nodes() for row in node.load.get("runtimes", [])]
