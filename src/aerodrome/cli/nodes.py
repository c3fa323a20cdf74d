"""`aerodrome nodes`: the living nodes of this store, and how one is made to go."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from aerodrome.cli.administration import administration
from aerodrome.cli.console import note, print_json, print_table, say
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.config import Settings, load_settings

app = typer.Typer(no_args_is_help=True, help="The aerodrome processes that share this store.")


@app.command("ls")
def list_nodes(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the living nodes, as they told with their last heartbeat. AGE is the time since the start, in seconds."""
    rows = asyncio.run(_nodes(load_settings(config, resolve_secrets=False)))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("NAME", "INCARNATION", "ADDRESS", "SESSIONS", "RUNTIMES", "TURNS", "WAITING", "DRAINING", "AGE"),
        [
            (
                row["name"],
                row["incarnation"],
                row["address"],
                row["sessions"],
                row["runtimes"],
                row["turns"],
                row["waiting"],
                "yes" if row["draining"] else "no",
                "" if row["age"] is None else f"{row['age']:.0f}",
            )
            for row in rows
        ],
    )


@app.command("drain")
def drain(
    node: Annotated[str, typer.Argument(help="Its name, or its incarnation, as `aerodrome nodes ls` shows them.")],
    wait: Annotated[bool, typer.Option("--wait", help="Return when the node has gone.")] = False,
    config: ConfigOption = None,
) -> None:
    """Have a node finish its turns, hand its sessions over and exit 0. It begins with its next heartbeat."""
    incarnation = asyncio.run(_drain(load_settings(config, resolve_secrets=False), node, wait=wait))
    say(f"{incarnation} has gone." if wait else f"{incarnation} is asked to drain.")


async def _nodes(settings: Settings) -> list[dict[str, Any]]:
    async with administration(settings) as operators:
        return await operators.nodes()


async def _drain(settings: Settings, wanted: str, *, wait: bool) -> str:
    async with administration(settings) as operators:
        node = await operators.drain_node(wanted)
        if wait:
            note("waiting for it to go")
            await operators.wait_until_gone(node.incarnation)
        return node.incarnation
