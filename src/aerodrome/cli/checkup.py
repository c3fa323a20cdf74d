"""`aerodrome sessions check` and `aerodrome sessions repair`: the files of stored sessions, looked at and mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import typer

from aerodrome.cli.console import note, print_json, print_table
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.cli.sessions import (
    AllOption,
    OptionalSessionArgument,
    TenantOption,
    UserOption,
    row_of,
    run_on_stores,
    whose_of,
)
from aerodrome.model import SessionKey, SessionRow

if TYPE_CHECKING:
    from aerodrome.app.stores import Stores
    from aerodrome.sessions.checkup import Finding
    from aerodrome.sessions.takeout import Whose


def check_sessions(
    tenant: TenantOption,
    session_id: OptionalSessionArgument = None,
    user: UserOption = None,
    everything: AllOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for torn or damaged histories and for locks that a dead process has left; changes nothing.

    Exits 1 when something is to be repaired, or is in use by a process that no node knows.
    """
    whose = whose_of(tenant, session_id, user, everything)

    async def look(stores: Stores) -> list[Finding]:
        from aerodrome.sessions.checkup import check

        return await _collect(check(stores, await _rows(stores, whose, tenant, session_id)))

    _tell(run_on_stores(config, look), as_json)


def repair_sessions(
    tenant: TenantOption,
    session_id: OptionalSessionArgument = None,
    user: UserOption = None,
    everything: AllOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mend what `check` finds: keep every whole event, and beside it the history as it was; remove stale locks.

    A session that a node has loaded is left alone: it is mended before it is loaded anew. Exits 1 when something
    could not be repaired.
    """
    whose = whose_of(tenant, session_id, user, everything)

    async def mend(stores: Stores) -> list[Finding]:
        from aerodrome._util.clock import SystemClock
        from aerodrome.sessions.checkup import repair
        from aerodrome.sessions.operator import operator_node

        rows = await _rows(stores, whose, tenant, session_id)
        async with operator_node(stores.coordination, "aerodrome-sessions-repair") as incarnation:
            return await _collect(repair(stores, rows, incarnation, SystemClock()))

    _tell(run_on_stores(config, mend), as_json, repaired=True)


async def _collect(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in findings]


async def _rows(stores: Stores, whose: Whose | None, tenant: str, session_id: str | None) -> list[SessionRow]:
    from aerodrome.sessions.takeout import rows_of

    if whose is None:
        return [await row_of(stores, SessionKey(tenant, session_id or ""))]
    return [row for row in await rows_of(stores.directory, whose) if whose.owns(row)]


def _tell(findings: list[Finding], as_json: bool, *, repaired: bool = False) -> None:
    if as_json:
        print_json([finding.as_json() for finding in findings])
    else:
        print_table(
            ("TENANT", "ID", "VERDICT", "EVENTS", "DAMAGES", "IN USE BY", "BACKUP"),
            [
                (
                    finding.row.key.tenant,
                    finding.row.key.id,
                    finding.verdict,
                    finding.condition.events,
                    _damages(finding),
                    " ".join(map(str, finding.condition.alive)),
                    finding.error or finding.condition.backup,
                )
                for finding in findings
            ],
        )
    # Locks that were stale are gone after a repair.
    if not all(finding.sound or (repaired and finding.verdict == "stale locks") for finding in findings):
        note("something is not in order" if repaired else "`aerodrome sessions repair` mends what is damaged")
        raise typer.Exit(1)


def _damages(finding: Finding) -> str:
    kinds = Counter(damage.kind.value for damage in finding.condition.damages)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
