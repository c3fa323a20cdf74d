"""`aerodrome sessions`: what is stored, beside a running server or without one. For operators: it asks for no key."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from aerodrome.cli.console import moment, note, print_json, print_table, say
from aerodrome.cli.options import ConfigOption, JsonOption, check_name
from aerodrome.config import load_settings
from aerodrome.errors import NotFound, SessionBusy
from aerodrome.model import SessionKey, SessionRow

if TYPE_CHECKING:
    from aerodrome.app import Stores

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="The stored sessions.")

TenantOption = Annotated[str, typer.Option(callback=check_name, help="The organisation the session belongs to.")]
SessionArgument = Annotated[str, typer.Argument(metavar="ID", help="The session's id.")]


@app.command("ls")
def list_sessions(
    tenant: Annotated[str | None, typer.Option(callback=check_name, help="Only this tenant's.")] = None,
    user: Annotated[str | None, typer.Option(callback=check_name, help="Only this user's; needs --tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List sessions, the last used first."""
    if user is not None and tenant is None:
        raise typer.BadParameter("users are names within a tenant: give --tenant as well", param_hint="--user")
    rows = _run(config, lambda stores: _rows(stores, tenant, user, limit))
    if as_json:
        print_json([describe(row) for row in rows])
        return
    print_table(
        ("TENANT", "ID", "OWNER", "STATE", "LAST USED", "LAST TURN", "TITLE"),
        [
            (
                row.key.tenant,
                row.key.id,
                row.owner,
                row.state.value,
                moment(row.last_used_at),
                row.last_turn.status.value if row.last_turn else None,
                row.title,
            )
            for row in rows
        ],
    )


@app.command("show")
def show(session_id: SessionArgument, tenant: TenantOption, config: ConfigOption = None) -> None:
    """Print one session and its turns, as JSON; prompts and answers left out."""

    async def read(stores: Stores) -> dict[str, Any]:
        row = await _row(stores, SessionKey(tenant, session_id))
        turns = await stores.ledger.turns(row.key)
        hidden = {"prompt", "answer", "attachments", "key", "digest"}
        return {
            **describe(row),
            "epoch": await stores.files.epoch(row.key),
            "stored_bytes": await stores.files.total_bytes(row.key),
            "turns": [{k: v for k, v in asdict(turn).items() if k not in hidden} for turn in turns],
        }

    print_json(_run(config, read))


@app.command("export")
def export(session_id: SessionArgument, tenant: TenantOption, config: ConfigOption = None) -> None:
    """Print everything stored of a session, as JSON: its row, its turns, its files."""

    async def read(stores: Stores) -> dict[str, Any]:
        row = await _row(stores, SessionKey(tenant, session_id))
        turns = [asdict(turn) for turn in await stores.ledger.turns(row.key)]
        files = {path: await stores.files.read(row.key, path) for path in await _files(stores, row.key, "/")}
        return {"session": describe(row), "options": row.options, "turns": turns, "files": files}

    print_json(_run(config, read))


@app.command("rm")
def remove(session_id: SessionArgument, tenant: TenantOption, config: ConfigOption = None) -> None:
    """Delete a session, completely: files, ledger, directory row. Not while a node has it loaded."""

    async def erase_it(stores: Stores) -> None:
        from aerodrome.sessions.erase import erase

        row = await _row(stores, SessionKey(tenant, session_id))
        async with _lease(stores, row.key):
            await erase(
                row.key,
                directory=stores.directory,
                leases=stores.coordination,
                ledger=stores.ledger,
                files=stores.files,
            )

    _run(config, erase_it)
    say(f"Deleted {tenant}/{session_id}.")


def describe(row: SessionRow) -> dict[str, Any]:
    """The session object of the HTTP API."""
    from aerodrome.http.objects import session_object

    return session_object(row)


async def _rows(stores: Stores, tenant: str | None, user: str | None, limit: int) -> list[SessionRow]:
    rows: list[SessionRow] = []
    cursor: str | None = None
    while len(rows) < limit:
        page = await stores.directory.list(tenant, user=user, cursor=cursor, limit=min(200, limit - len(rows)))
        rows += page.rows
        cursor = page.next
        if cursor is None:
            break
        note(f"{len(rows)} read", style="dim")
    return rows


async def _row(stores: Stores, key: SessionKey) -> SessionRow:
    row = await stores.directory.get(key)
    if row is None:
        raise NotFound(f"there is no session {key}; `aerodrome sessions ls` lists them")
    return row


async def _files(stores: Stores, key: SessionKey, directory: str) -> list[str]:
    found: list[str] = []
    for name, info in await stores.files.listdir(key, directory):
        path = f"{directory.rstrip('/')}/{name}"
        found += await _files(stores, key, path) if info.is_directory else [path]
    return found


@asynccontextmanager
async def _lease(stores: Stores, key: SessionKey) -> AsyncIterator[None]:
    """Hold the session as a node of our own, for as long as it takes."""
    from aerodrome.coordination.ports import Node

    node = Node(name="aerodrome-sessions-rm", incarnation=f"cli-{secrets.token_hex(8)}")
    await stores.coordination.join(node, ttl=60)
    try:
        if await stores.coordination.acquire(key, node.incarnation) is None:
            raise SessionBusy(
                f"{key} is loaded by a running node: delete it over HTTP, or try again once it has hibernated"
            )
        yield
    finally:
        await stores.coordination.leave(node.incarnation)


def _run(config: Path | None, call: Callable[[Stores], Awaitable[T]]) -> T:
    from aerodrome.app import open_stores

    settings = load_settings(config, resolve_secrets=False)

    async def run() -> T:
        async with open_stores(settings) as stores:
            return await call(stores)

    return asyncio.run(run())
