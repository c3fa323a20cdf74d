"""`aerodrome serve`: run a node until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from aerodrome.cli.console import note, say
from aerodrome.cli.options import ConfigOption
from aerodrome.cli.reload import Reload
from aerodrome.config import Settings, load_settings
from aerodrome.config.load import find_config

if TYPE_CHECKING:
    from aerodrome.app.node import Node


def serve(
    config: ConfigOption = None,
    http: Annotated[str | None, typer.Option(help="Address of the HTTP API, over `server.http`.")] = None,
    gateway: Annotated[str | None, typer.Option(help="Address of the native gateway, over `server.gateway`.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Over `server.data_dir`.")] = None,
    log_level: Annotated[str | None, typer.Option(help="Over `telemetry.log_level`.")] = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `aerodrome nodes drain`: then finish the running turns, hand the sessions over,
    and exit 0.

    SIGHUP, or a change of the file, has the attached servers (`runtime.attach`) read anew; nothing else.

    Prints `ready http=HOST:PORT gateway=HOST:PORT` once both doors listen. A signal during the drain kills the runtimes
    and exits 1 at once.
    """
    overrides = {
        "server.http": http,
        "server.gateway": gateway,
        "server.data_dir": data_dir,
        "telemetry.log_level": log_level,
    }
    settings = load_settings(config, overrides)
    # Late: a mistake in the configuration is told before the server is loaded.
    import uvloop

    from aerodrome.observability.logging import configure_logging

    configure_logging(settings.telemetry.log_level, settings.telemetry.log_format)
    uvloop.run(_run(settings, Reload(find_config(config), lambda: load_settings(config, overrides))))


async def _run(settings: Settings, reload: Reload) -> None:
    from aerodrome.app.node import Node

    stop = asyncio.Event()
    node = Node(settings)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _signalled, node, stop, settings.server.drain_timeout)
    async with node:
        doors = {"http": node.http_address, "gateway": node.gateway_address}
        say("ready " + " ".join(f"{name}={host}:{port}" for name, (host, port) in doors.items()))
        sys.stdout.flush()
        reloading = asyncio.create_task(reload.run(node.reload), name="reload settings")
        ends = [asyncio.ensure_future(event.wait()) for event in (stop, node.asked_to_drain)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in (*ends, reloading):
            end.cancel()
        if not stop.is_set():
            note(f"asked to drain; {_draining(settings.server.drain_timeout)}")
            stop.set()  # so that a signal from here on ends it at once


def _signalled(node: Node, stop: asyncio.Event, drain_timeout: float) -> None:
    if stop.is_set():
        # Asked for twice. What is stored stays; what the runtimes have started does not.
        node.abort()
        os._exit(1)
    note(_draining(drain_timeout))
    stop.set()


def _draining(drain_timeout: float) -> str:
    return f"draining for up to {drain_timeout:g} s; a signal from now on ends it at once"
