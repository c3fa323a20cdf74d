"""Attached servers as rows of `aerodrome runtimes ls`."""

from __future__ import annotations

from typing import Any

from aerodrome.placement.outliers import Standing
from aerodrome.runtime.attached.drains import Drains
from aerodrome.runtime.attached.entry import AttachEntry
from aerodrome.runtime.attached.server import AttachedServer
from aerodrome.runtime.attached.standings import Standings

#: Of what a process would have, and a server that is not connected has not.
_NONE: dict[str, Any] = {"pid": None, "user": None, "sessions": 0, "turns": 0, "rss_bytes": 0, "started_at": None}


def row_of(server: AttachedServer, standings: Standings, drains: Drains) -> dict[str, Any]:
    runtime, key, standing = server.runtime, server.binding, standings.standing(server)
    state = "draining" if server.draining else "failed" if runtime is None else "warm" if key is None else "claimed"
    if runtime is not None and not server.draining and standing is not Standing.HEALTHY:
        state = standing.value
    reason = server.reason or (standings.reason(server) if state == standing.value else "")
    if server in drains and not server.draining:
        state = "draining" if runtime is not None and runtime.reserved else "drained"
    tenant = key.tenant if key else server.entry.tenant
    if server.misattached and not server.draining:
        tenant, state = server.entry.tenant, "unused"
        reason = (
            f"{server.name} serves another organisation; detach it there, and restart it before it serves another one"
        )
    return {
        **(runtime.describe() if runtime is not None else {"id": server.name, **_NONE}),
        "state": state,
        "tenant": tenant,
        "user": key.user if key and not server.misattached else None,
        "server": server.name,
        "address": server.entry.address,
        "weight": server.entry.weight,
        "reason": reason,
    }


def unused_row(endpoint: str, entry: AttachEntry, counts: AttachEntry) -> dict[str, Any]:
    """Of an entry that leads to the server of another one, which counts."""
    # Who others are, and by what names they have their servers, is none of its business.
    known = counts.tenant in (None, entry.tenant)
    named = f"attached as {counts.address}" if known else "of another organisation"
    return {
        "id": entry.address,
        **_NONE,
        "state": "unused",
        "tenant": entry.tenant,
        "server": endpoint,
        "address": entry.address,
        "weight": entry.weight,
        "reason": f"{endpoint} is a server {named} already",
    }
