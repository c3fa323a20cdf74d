"""`aerodrome runtimes`: the Copilot CLI processes of all living nodes, as the nodes last told the store."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from aerodrome.cli.administration import administration
from aerodrome.cli.console import moment, note, print_json, print_table, say
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.config import Settings, load_settings

app = typer.Typer(no_args_is_help=True, help="The Copilot CLI processes of the running nodes.")

_MIB = 1 << 20

Runtime = Annotated[str, typer.Argument(metavar="ID", help="As `aerodrome runtimes ls` shows it.")]


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


@app.command("recycle")
def recycle(
    runtime: Runtime,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace a runtime of any node, and return when it has gone.

    First another one is started for its user or tenant; then its sessions move, those in a turn when that has ended.
    """
    _retire(load_settings(config, resolve_secrets=False), runtime, "recycle", as_json)


@app.command("drain")
def drain(
    runtime: Runtime,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a runtime of any node without a replacement, and return when it has gone.

    Its turns end first; its sessions hibernate, and wake in another runtime with their next prompt.
    """
    _retire(load_settings(config, resolve_secrets=False), runtime, "drain", as_json)


def _retire(settings: Settings, runtime: str, verb: str, as_json: bool) -> None:
    done = asyncio.run(_retired(settings, runtime, verb))
    if as_json:
        print_json(done)
    else:
        said = {"recycle": "recycled", "drain": "drained"}[verb]
        say(f"{runtime} of the node {done['node']} is {said}, after {done['seconds']:.1f} s.")


async def _retired(settings: Settings, runtime: str, verb: str) -> dict[str, Any]:
    from aerodrome.operators.requests import Verb

    def accepted(node: str) -> None:
        note(f"the node {node} has begun; what is begun goes on, also without this command")

    async with administration(settings) as operators:
        return (await operators.retire(runtime, Verb(verb), on_accepted=accepted)).describe()


async def _runtimes(settings: Settings) -> list[dict[str, Any]]:
    async with administration(settings) as operators:
        return await operators.runtimes()
