"""`aerodrome runtimes`: the Copilot CLI processes of all living nodes, as the nodes last told the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer

from aerodrome.cli.administration import administration
from aerodrome.cli.console import moment, note, print_json, print_table, say
from aerodrome.cli.options import ConfigOption, JsonOption, check_name
from aerodrome.config import Settings, load_settings
from aerodrome.runtime.attached.admin import AttachAdmin
from aerodrome.runtime.attached.ports import StoredServer

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="The Copilot CLI processes of the running nodes, and attached servers.")

_MIB = 1 << 20

AddressArgument = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where it listens.")]
Runtime = Annotated[
    str,
    typer.Argument(metavar="ID", help="As `aerodrome runtimes ls` shows it; for an attached server, SERVER as well."),
]


@app.command("ls")
def list_runtimes(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the runtimes, as the nodes told with their last heartbeat."""
    rows = asyncio.run(_runtimes(load_settings(config, resolve_secrets=False)))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("ID", "NODE", "PID", "STATE", "TENANT", "USER", "SESSIONS", "TURNS", "RSS MiB", "STARTED", "SERVER", "REASON"),
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
                row.get("server"),
                row.get("reason"),
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
    Not of an attached server: that is whose to restart who runs it.
    """
    _retire(load_settings(config, resolve_secrets=False), runtime, "recycle", as_json)


@app.command("drain")
def drain(
    runtime: Runtime,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a runtime of any node without a replacement, and return when it has gone.

    Its turns end first; its sessions hibernate, and wake in another runtime with their next prompt. An attached server
    stays attached and is used by no node, until `aerodrome runtimes undrain`.
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


@app.command("undrain")
def undrain(address: AddressArgument, config: ConfigOption = None) -> None:
    """Have all nodes use an attached server again that was drained."""
    settings = load_settings(config, resolve_secrets=False)
    asyncio.run(_administer(settings, lambda admin: admin.undrain(address)))
    say(f"{address} is used again.")


@app.command("attach")
def attach(
    address: AddressArgument,
    tenant: Annotated[str, typer.Option(callback=check_name, help="The organisation that it serves from now on.")],
    token: Annotated[str | None, typer.Option(metavar="NAME", help="One of `runtime.attach_tokens`.")] = None,
    weight: Annotated[float, typer.Option(min=0.001, max=1000, help="How much it gets beside the others.")] = 1.0,
    max_sessions: Annotated[int | None, typer.Option(min=1, help="Over `runtime.max_sessions`.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Working directory of its sessions, on its machine.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have all nodes use a Copilot CLI server that runs already. It works beside a running server or without one.

    Its `session-state` has to be the tenant's directory on the volume of `state.url`.
    """
    settings = load_settings(config, resolve_secrets=False)
    server = StoredServer(address, tenant, token, weight, max_sessions, workspace, attached_by="aerodrome runtimes")
    attached = asyncio.run(_administer(settings, lambda admin: admin.attach(server)))
    if as_json:
        print_json({"address": attached.address, "tenant": attached.tenant})
    else:
        say(f"{attached.address} is attached for {attached.tenant}; `aerodrome runtimes ls` says how it stands.")


@app.command("detach")
def detach(address: AddressArgument, config: ConfigOption = None) -> None:
    """Have all nodes drain a server, and forget whom it has served; nothing is done to its process.

    A server of `runtime.attach` stays in use, and goes to the next who needs it. Restart a server before it serves
    another tenant: what the first has left in it is still there.
    """
    settings = load_settings(config, resolve_secrets=False)
    asyncio.run(_administer(settings, lambda admin: admin.detach(address)))
    say(f"{address} is detached.")


async def _administer(settings: Settings, call: Callable[[AttachAdmin], Awaitable[T]]) -> T:
    from aerodrome._util.clock import SystemClock
    from aerodrome.app.stores import open_stores
    from aerodrome.runtime.attached.entry import AttachEntry
    from aerodrome.runtime.attached.resolver import SystemResolver

    async with open_stores(settings) as stores:
        names = settings.runtime.attach_tokens.keys()
        volume = stores.volume is not None
        admin = AttachAdmin(
            stores.attached,
            stores.coordination,
            tokens=lambda: names,
            on_volume=volume,
            clock=SystemClock(),
            resolver=SystemResolver(),
            entries=lambda: [AttachEntry(*server.address, tenant=server.tenant) for server in settings.runtime.attach],
        )
        return await call(admin)
