"""`aerodrome nodes`: the living nodes of this store, and how one is made to go."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aerodrome.cli.console import note, print_json, print_table, say
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.config import Settings, load_settings
from aerodrome.errors import Conflict, NotFound

if TYPE_CHECKING:
    from aerodrome.coordination.ports import Node

app = typer.Typer(no_args_is_help=True, help="The aerodrome processes that share this store.")

#: Seconds between two looks whether a node has gone.
_LOOK_AGAIN = 0.25


@app.command("ls")
def list_nodes(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the living nodes, as they told with their last heartbeat. AGE is the time since the start, in seconds."""
    rows = asyncio.run(_nodes(load_settings(config, resolve_secrets=False)))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("NAME", "INCARNATION", "ADDRESS", "SESSIONS", "RUNTIMES", "DRAINING", "AGE"),
        [
            (
                row["name"],
                row["incarnation"],
                row["address"],
                row["sessions"],
                row["runtimes"],
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
    from aerodrome.app.stores import open_stores

    async with open_stores(settings) as stores:
        return [_described(node) for node in await stores.coordination.nodes()]


def _described(node: Node) -> dict[str, Any]:
    load = node.load
    started_at = load.get("started_at")
    return {
        "name": node.name,
        "incarnation": node.incarnation,
        "address": node.address,
        "sessions": load.get("sessions", 0),
        "runtimes": len(load.get("runtimes", [])),
        "draining": bool(load.get("draining")),
        "age": None if started_at is None else max(0.0, round(time.time() - started_at, 1)),
    }


async def _drain(settings: Settings, wanted: str, *, wait: bool) -> str:
    from aerodrome.app.stores import open_stores

    async with open_stores(settings) as stores:
        living = await stores.coordination.nodes()
        # An incarnation is unique. Two nodes may have one name by mistake, or while one follows the other.
        found = [node.incarnation for node in living if node.incarnation == wanted]
        found = found or [node.incarnation for node in living if node.name == wanted]
        if len(found) > 1:
            raise Conflict(f"{len(found)} nodes are named {wanted}; name one by its incarnation: {', '.join(found)}")
        if not found or not await stores.coordination.ask_to_drain(found[0]):
            raise NotFound(f"there is no node {wanted}; `aerodrome nodes ls` lists them")
        if wait:
            note("waiting for it to go")
            # Another process: it tells nobody but the store.
            while any(node.incarnation == found[0] for node in await stores.coordination.nodes()):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_AGAIN)
        return found[0]
