"""`aerodrome keys`: API keys, beside a running server or without one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from aerodrome.cli.console import moment, note, print_json, print_table, say
from aerodrome.cli.options import ConfigOption, JsonOption, check_name
from aerodrome.config import load_settings
from aerodrome.errors import NotFound
from aerodrome.identity.keys import KeyService, id_of
from aerodrome.identity.ports import KeyInfo

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="API keys: who may call.")


class Role(StrEnum):
    ADMIN = "admin"


@app.command("create")
def create(
    tenant: Annotated[str, typer.Option(callback=check_name, help="The organisation the key belongs to.")],
    user: Annotated[str, typer.Option(callback=check_name, help="Whose key it is.")],
    role: Annotated[list[Role] | None, typer.Option(help="What the key may do beyond its user's own sessions.")] = None,
    label: Annotated[str | None, typer.Option(help="A note for listings.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Issue a key. It is shown now and never again."""
    info, key = _run(config, lambda keys: keys.create(tenant, user, role or (), label))
    if as_json:
        print_json({"id": info.id, "key": key})
        return
    say(key)
    note(f"The key {info.id} of {info.tenant}/{info.user}, shown only now. Send it as `Authorization: Bearer ...`.")


@app.command("ls")
def list_keys(
    tenant: Annotated[str | None, typer.Option(callback=check_name, help="Only this tenant's.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the keys, without their secrets."""
    infos = _run(config, lambda keys: keys.list(tenant))
    if as_json:
        print_json([_described(info) for info in infos])
        return
    print_table(
        ("ID", "TENANT", "USER", "ROLES", "LABEL", "CREATED"),
        [
            (info.id, info.tenant, info.user, ", ".join(sorted(info.roles)), info.label, moment(info.created_at))
            for info in infos
        ],
    )


@app.command("revoke")
def revoke(
    key: Annotated[
        str, typer.Argument(metavar="ID", help="The key's id, as `aerodrome keys ls` shows it, or the key itself.")
    ],
    config: ConfigOption = None,
) -> None:
    """Withdraw a key. Running nodes are told; one that does not hear it trusts the key for another `auth.key_cache`
    (5 s)."""
    # A key that was found where it should not be is all that is known of it.
    key_id = id_of(key)
    if not _run(config, lambda keys: keys.revoke(key_id)):
        raise NotFound(f"there is no key {key_id}; `aerodrome keys ls` lists them")
    say(f"Revoked {key_id}.")


def _described(info: KeyInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "tenant": info.tenant,
        "user": info.user,
        "roles": sorted(info.roles),
        "label": info.label,
        "created_at": info.created_at,
    }


def _run(config: Path | None, call: Callable[[KeyService], Awaitable[T]]) -> T:
    # Late: it brings in the whole server, which a command line without a store has no use for.
    from aerodrome.app.stores import open_stores

    settings = load_settings(config, resolve_secrets=False)

    async def run() -> T:
        async with open_stores(settings) as stores:
            return await call(stores.keys)

    return asyncio.run(run())
