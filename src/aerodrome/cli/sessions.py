"""`aerodrome sessions`: what is stored, beside a running server or without one. For operators: it asks for no key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from aerodrome._util.durations import parse_duration
from aerodrome.cli.console import moment, note, print_json, print_table, say
from aerodrome.cli.export import writer_to
from aerodrome.cli.options import ConfigOption, JsonOption, check_name
from aerodrome.config import load_settings
from aerodrome.errors import NotFound, SessionBusy
from aerodrome.model import SessionKey, SessionRow

if TYPE_CHECKING:
    from aerodrome.app.stores import Stores
    from aerodrome.sessions.takeout import Erased, Whose

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="The stored sessions.")

TenantOption = Annotated[str, typer.Option(callback=check_name, help="The organisation the session belongs to.")]
SessionArgument = Annotated[str, typer.Argument(metavar="ID", help="The session's id.")]
OptionalSessionArgument = Annotated[
    str | None, typer.Argument(metavar="ID", help="The session's id; without it, give --all.")
]
UserOption = Annotated[str | None, typer.Option(callback=check_name, help="With --all: only what is this user's.")]
AllOption = Annotated[bool, typer.Option("--all", help="All sessions of the tenant, or of --user in it.")]


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
    rows = run_on_stores(config, lambda stores: _rows(stores, tenant, user, limit))
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
                "quarantined" if _quarantined(row) else row.state.value,
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
        row = await row_of(stores, SessionKey(tenant, session_id))
        turns = await stores.ledger.turns(row.key)
        hidden = {"prompt", "answer", "attachments", "key", "digest"}
        return {
            **describe(row),
            "epoch": await stores.files.epoch(row.key),
            "stored_bytes": await stores.files.total_bytes(row.key),
            "turns": [{k: v for k, v in asdict(turn).items() if k not in hidden} for turn in turns],
        }

    print_json(run_on_stores(config, read))


@app.command("release")
def release(session_id: SessionArgument, tenant: TenantOption, config: ConfigOption = None) -> None:
    """Let a quarantined session be loaded again. See that what made it end runtimes has changed: their memory, their
    version; it is quarantined again when it goes on as before."""

    async def let_go(stores: Stores) -> bool:
        from aerodrome.sessions.quarantine import released

        row = await row_of(stores, SessionKey(tenant, session_id))
        if describe(row)["charges"] is None:
            return False
        await stores.directory.update(row.key, options=released(row).options)
        return True

    say(
        f"Released {tenant}/{session_id}."
        if run_on_stores(config, let_go)
        else f"{tenant}/{session_id} is not held back."
    )


@app.command("export")
def export(
    tenant: TenantOption,
    session_id: OptionalSessionArgument = None,
    user: UserOption = None,
    everything: AllOption = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="PATH", help="Write there: a new directory, or a file that ends in .jsonl."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Print or write everything stored of a session, or with --all of a tenant or of one user.

    One session is printed as JSON: its row, its turns, its files, and in `left_out` what is no file or too large, on a
    volume. Several are JSON lines, one a session, or, with --to DIRECTORY, a directory for each. Of a user's
    memberships in sessions of others there is the role and what the user wrote.
    """
    whose = whose_of(tenant, session_id, user, everything)

    async def read(stores: Stores) -> int:
        from aerodrome.sessions.takeout import rows_of, take_out, take_out_membership

        if whose is None:
            row = await row_of(stores, SessionKey(tenant, session_id or ""))
            taken = {"session": describe(row), **await take_out(row, files=stores.files, ledger=stores.ledger)}
            if to is None:
                print_json(taken)
                return 1
            with writer_to(to) as write:
                write(taken)
            return 1
        count = 0
        with writer_to(to) as write:
            for row in await rows_of(stores.directory, whose):
                if whose.owns(row):
                    write({"session": describe(row), **await take_out(row, files=stores.files, ledger=stores.ledger)})
                else:
                    assert whose.user is not None
                    write({"membership": await take_out_membership(row, whose.user, ledger=stores.ledger)})
                count += 1
        return count

    count = run_on_stores(config, read)
    if to is not None:
        say(f"Wrote {count} sessions to {to}.")


@app.command("rm")
def remove(
    tenant: TenantOption,
    session_id: OptionalSessionArgument = None,
    user: UserOption = None,
    everything: AllOption = False,
    with_keys: Annotated[bool, typer.Option("--with-keys", help="With --all: also revoke the API keys.")] = False,
    wait: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help='Wait so long, such as "30m", for sessions that a node has loaded.'),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a session, or with --all those of a tenant or of one user, completely: files, ledger, directory row.

    With --user the user's memberships in sessions of others go, too; what they wrote there stays with its owner.
    What a running node has loaded is refused, and named; the rest is deleted all the same. Then it exits 1.
    """
    whose = whose_of(tenant, session_id, user, everything)
    if with_keys and whose is None:
        raise typer.BadParameter("keys belong to users: give --all as well", param_hint="--with-keys")
    seconds = _duration(wait)
    if whose is not None and not yes:
        what = f"every session of the tenant {tenant}" if user is None else f"every session of {tenant}/{user}"
        typer.confirm(f"Delete {what}{' and their API keys' if with_keys else ''}, for good?", abort=True, err=True)

    async def erase_them(stores: Stores) -> tuple[Erased, list[str]]:
        from aerodrome._util.clock import SystemClock
        from aerodrome.sessions.takeout import Erased, eraser

        revoked = await _revoke(stores, tenant, user) if with_keys else []
        async with eraser(stores, SystemClock(), wait=seconds) as erasing:
            if whose is not None:
                return await erasing.erase_all(whose, note), revoked
            row = await row_of(stores, SessionKey(tenant, session_id or ""))
            holder = await erasing.erase(row, note)
            return (Erased([row.key]) if holder is None else Erased(refused={row.key: holder})), revoked

    async def erase_all_of_them(stores: Stores) -> tuple[Erased, list[str]]:
        row = await stores.directory.get(SessionKey(tenant, session_id)) if session_id is not None else None
        done = await erase_them(stores)
        await _remove_workspaces(stores, config, tenant, user if row is None else row.owner)
        return done

    done, revoked = run_on_stores(config, erase_all_of_them)
    _tell(done, revoked, as_json)
    if not (done.sessions or done.memberships or done.refused or revoked):
        # A name that is misspelt would look like an erasure that was done.
        note(f"nothing is stored of {tenant if user is None else f'{tenant}/{user}'}")
    if done.refused:
        raise SessionBusy(
            "not deleted, because it is loaded by a running node: "
            + "; ".join(f"{key} by {holder}" for key, holder in done.refused.items())
            + ". Delete it over HTTP, or try again once it has hibernated (or with --wait)"
        )


def whose_of(tenant: str, session_id: str | None, user: str | None, everything: bool) -> Whose | None:
    """``None``: the one session that is named."""
    from aerodrome.sessions.takeout import Whose

    if (session_id is not None) == everything:
        raise typer.BadParameter("give either the id of one session, or --all", param_hint="ID")
    if user is not None and not everything:
        raise typer.BadParameter("a session has one id whoever owns it: --user goes with --all", param_hint="--user")
    return Whose(tenant, user) if everything else None


def _duration(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        return float(parse_duration(text))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--wait") from None


async def _revoke(stores: Stores, tenant: str, user: str | None) -> list[str]:
    """First of all: whoever has no key any more makes no new sessions."""
    found = [info.id for info in await stores.keys.list(tenant) if user is None or info.user == user]
    return [key_id for key_id in found if await stores.keys.revoke(key_id)]


def _tell(done: Erased, revoked: list[str], as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "deleted": [key.id for key in done.sessions],
                "memberships": [key.id for key in done.memberships],
                "refused": {key.id: holder for key, holder in done.refused.items()},
                "revoked_keys": revoked,
            }
        )
        return
    for key in done.sessions:
        say(f"Deleted {key}.")
    for key in done.memberships:
        say(f"Left {key}.")
    for key_id in revoked:
        say(f"Revoked {key_id}.")


async def _remove_workspaces(stores: Stores, config: Path | None, tenant: str, user: str | None) -> None:
    """Those of this machine whose users have no session any more; other nodes see to theirs."""
    from aerodrome.app.sandbox import workspaces
    from aerodrome.app.workspaces import remove_unowned

    found = workspaces(load_settings(config, resolve_secrets=False))
    for owner in list(found.owners()):
        if owner.tenant == tenant and user in (None, owner.user):
            await remove_unowned(stores.directory, found, owner)


def describe(row: SessionRow) -> dict[str, Any]:
    """The session object of the HTTP API, and how often the session has made a runtime end."""
    from aerodrome.http.objects import session_object
    from aerodrome.sessions.blame import OPTION

    return {**session_object(row), OPTION: row.options.get(OPTION)}


def _quarantined(row: SessionRow) -> bool:
    from aerodrome.sessions.blame import Charges

    charges = Charges.of(row.options)
    return charges is not None and charges.quarantined


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


async def row_of(stores: Stores, key: SessionKey) -> SessionRow:
    row = await stores.directory.get(key)
    if row is None:
        raise NotFound(f"there is no session {key}; `aerodrome sessions ls` lists them")
    return row


def run_on_stores(config: Path | None, call: Callable[[Stores], Awaitable[T]]) -> T:
    from aerodrome.app.stores import open_stores

    settings = load_settings(config, resolve_secrets=False)

    async def run() -> T:
        async with open_stores(settings) as stores:
            return await call(stores)

    return asyncio.run(run())
