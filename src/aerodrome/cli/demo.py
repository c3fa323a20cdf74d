"""`aerodrome demo`: the main job before the reader's eyes, without network and keys."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from aerodrome.cli.console import complain, out


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the demo's data directory, and say where it is.")] = False,
) -> None:
    """Several users of two tenants talk to real Copilot CLI processes; things go wrong; nobody notices.

    Starts a scripted model server, a node and its runtimes, all on this machine. Takes about half a minute.
    """
    from aerodrome.demo.tour import Tour, TourFailed
    from aerodrome.observability.logging import configure_logging

    # The tour tells what happens; the node's own log would tell it a second time.
    configure_logging("error", "console")
    try:
        asyncio.run(Tour(keep=keep, console=out()).run())
    except TourFailed as failure:
        complain(f"the demo did not show what it promises: {failure}")
        raise typer.Exit(1) from failure
