"""`aerodrome serve`: run a node until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from aerodrome._util.descriptors import allow_many
from aerodrome._util.farewell import Farewell
from aerodrome._util.systemd import Notifier, inherited_sockets
from aerodrome.cli.console import note, say
from aerodrome.cli.options import ConfigOption
from aerodrome.cli.reload import Reload
from aerodrome.config import Settings, load_settings
from aerodrome.config.load import find_config
from aerodrome.config.secret_resolver import Known

if TYPE_CHECKING:
    from aerodrome.app.node import Node

#: Seconds in which a node that has drained closes what it has open. The service managers of `deploy/` give it more.
_FAREWELL = 25.0


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

    Listens on the sockets of a service manager, if it hands any over (LISTEN_FDS), in place of the addresses.
    Prints `ready http=HOST:PORT gateway=HOST:PORT` once both doors listen. A signal during the drain kills the runtimes
    and exits 1 at once. So it does by itself when it has drained and not ended 25 seconds later.
    """
    overrides = {
        "server.http": http,
        "server.gateway": gateway,
        "server.data_dir": data_dir,
        "telemetry.log_level": log_level,
    }
    known = Known()
    settings = load_settings(config, overrides, known=known)
    # Late: a mistake in the configuration is told before the server is loaded.
    import uvloop

    from aerodrome.observability.logging import configure_logging

    configure_logging(settings.telemetry.log_level, settings.telemetry.log_format)
    allow_many()
    reload = Reload(find_config(config), lambda: load_settings(config, overrides, known=known))
    uvloop.run(_run(settings, reload, inherited_sockets(frozenset({"http", "gateway"})), Notifier()))


async def _run(settings: Settings, reload: Reload, listeners: Mapping[str, socket.socket], manager: Notifier) -> None:
    from aerodrome.app.node import Node

    stop = asyncio.Event()
    node = Node(settings, listeners=listeners)
    node.on_drained = Farewell(_FAREWELL, node.abort).begin
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _signalled, node, stop, settings)
    # From the first moment to the last: by itself it would end the process, with all turns that it lets finish.
    loop.add_signal_handler(signal.SIGHUP, reload.ask)
    async with node:
        doors = {"http": node.http_address, "gateway": node.gateway_address}
        say("ready " + " ".join(f"{name}={host}:{port}" for name, (host, port) in doors.items()))
        sys.stdout.flush()
        manager.tell("READY=1", f"STATUS=serving {node.http_address[0]}:{node.http_address[1]}")
        reloading = asyncio.create_task(reload.run(node.reload), name="reload settings")
        ends = [asyncio.ensure_future(event.wait()) for event in (stop, node.asked_to_drain)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in (*ends, reloading):
            end.cancel()
        if not stop.is_set():
            note(f"asked to drain; {_draining(settings)}")
            stop.set()  # so that a signal from here on ends it at once
        manager.tell("STOPPING=1", "STATUS=draining")


def _signalled(node: Node, stop: asyncio.Event, settings: Settings) -> None:
    if stop.is_set():
        # Asked for twice. What is stored stays; what the runtimes have started does not.
        node.abort()
        os._exit(1)
    note(_draining(settings))
    stop.set()


def _draining(settings: Settings) -> str:
    seconds = settings.server.drain_delay + settings.server.drain_timeout
    return f"draining for up to {seconds:g} s; a signal from now on ends it at once"
