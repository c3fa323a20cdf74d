"""`aerodrome serve`: run a node until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Annotated

import typer

from aerodrome.cli.console import note, say
from aerodrome.cli.options import ConfigOption
from aerodrome.config import Settings, load_settings


def serve(
    config: ConfigOption = None,
    http: Annotated[str | None, typer.Option(help="Address of the HTTP API, over `server.http`.")] = None,
    gateway: Annotated[str | None, typer.Option(help="Address of the native gateway, over `server.gateway`.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Over `server.data_dir`.")] = None,
    log_level: Annotated[str | None, typer.Option(help="Over `telemetry.log_level`.")] = None,
) -> None:
    """Serve until SIGTERM or SIGINT: then finish the running turns, put the sessions to sleep, and exit 0.

    Prints `ready http=HOST:PORT gateway=HOST:PORT` once both doors listen. A second signal ends it at once.
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
    uvloop.run(_run(settings))


async def _run(settings: Settings) -> None:
    from aerodrome.app import Node

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _signalled, stop, settings.server.drain_timeout)
    async with Node(settings) as node:
        doors = {"http": node.http_address, "gateway": node.gateway_address}
        say("ready " + " ".join(f"{name}={host}:{port}" for name, (host, port) in doors.items()))
        sys.stdout.flush()
        await stop.wait()


def _signalled(stop: asyncio.Event, drain_timeout: float) -> None:
    if stop.is_set():
        # Asked for twice. The runtimes end with us (parent-death signal); what is stored stays.
        os._exit(1)
    note(f"draining for up to {drain_timeout:g} s; a second signal ends it at once")
    stop.set()
