"""Look at a whole fleet from one machine: every node, both stores, and what the dead have left."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aerodrome
from aerodrome._util.sqlite_backup import check
from aerodrome.app.backup import DATABASES
from aerodrome.app.cluster_report import FAILED, Finding, NodeReport, SessionsReport, StoreReport, judge
from aerodrome.app.stores import Stores, open_stores, postgresql_stores, redis_facts
from aerodrome.config.settings import Settings
from aerodrome.coordination.ports import Node
from aerodrome.errors import AerodromeError
from aerodrome.model import SessionKey, SessionRow, SessionState
from aerodrome.peers import shapes
from aerodrome.peers.link import PeerGone, PeerLink
from aerodrome.sessions.blame import Charges
from aerodrome.sessions.recovery import EARLIER

#: Seconds for a node to answer.
_PATIENCE = 5.0
#: Sessions that are looked at, the latest used first, a page at a time.
_MOST_SESSIONS, _PAGE = 5000, 200
#: Bytes of a database that is looked through: seconds.
_MOST_CHECKED = 4 << 30
#: Seconds within which a node that has given a session's lease back writes that it sleeps (`row_updates.GATHER`).
_SAID = 1.0


async def examine(settings: Settings) -> list[Finding]:
    """All findings. A store that cannot be used is one of them; then there is nothing to say of nodes."""
    try:
        async with open_stores(settings) as stores:
            reports = [await _coordination(settings, stores), await _state(settings, stores)]
            nodes = await stores.coordination.nodes()
            asked = await asyncio.gather(*(_node(node) for node in nodes))
            sessions = await _sessions(stores, nodes)
    except AerodromeError as error:
        where = f"coordination in {settings.coordination.url.masked}, state in {settings.state.url.masked}"
        return [Finding("stores", "reachable", FAILED, f"{where}: {error.detail}", "see docs/fleet-stores.md")]
    return judge(
        aerodrome.__version__,
        settings.coordination.ttl,
        asked,
        reports,
        sessions,
        max_runtimes=settings.runtime.max_runtimes,
    )


async def _node(node: Node) -> NodeReport:
    load: dict[str, Any] = node.load
    round_trip, ahead, reason = None, None, ""
    try:
        link = await PeerLink.open(node, own="aerodrome-doctor", timeout=_PATIENCE, silence=_PATIENCE)
        try:
            asked_at = time.time()
            answer = await link.request(shapes.PING, {})
            round_trip = time.time() - asked_at
            if isinstance(answer, dict) and isinstance(clock := answer.get("time"), int | float):
                ahead = clock - (asked_at + round_trip / 2)
        finally:
            await link.aclose()
    except PeerGone as error:
        reason = error.detail
    beat_at = load.get("beat_at")
    return NodeReport(
        name=node.name,
        incarnation=node.incarnation,
        address=node.address,
        version=load.get("version"),
        draining=bool(load.get("draining")),
        sessions=int(load.get("sessions", 0)),
        runtimes=len(load.get("runtimes", [])),
        # By its own clock, which is not ours.
        beat_age=None if beat_at is None else max(0.0, time.time() + (ahead or 0.0) - beat_at),
        round_trip=round_trip,
        reason=reason,
        ahead=ahead,
        secrets=dict(load.get("secrets", {})),
    )


async def _coordination(settings: Settings, stores: Stores) -> StoreReport:
    url = settings.coordination.url
    began = time.monotonic()
    await stores.coordination.nodes()
    latency = time.monotonic() - began
    if url.scheme.startswith("postgres"):
        facts, ahead = await postgresql_stores().facts(settings.coordination, [])
        return StoreReport("coordination", url.masked, latency, ahead=ahead, facts=facts)
    if url in ("sqlite", "memory"):
        return StoreReport("coordination", str(url), latency)
    facts, ahead = await redis_facts(settings)
    return StoreReport("coordination", url.masked, latency, ahead=ahead, facts=facts)


async def _state(settings: Settings, stores: Stores) -> StoreReport:
    url = settings.state.tables_url
    began = time.monotonic()
    await stores.directory.count()
    latency = time.monotonic() - began
    if url.scheme.startswith("postgres"):
        postgresql = postgresql_stores()
        facts, ahead = await postgresql.facts(settings.state, postgresql.state_schemas())
        return StoreReport("state", url.masked, latency, ahead=ahead, facts=facts)
    directory = settings.server.data_dir
    free = await asyncio.to_thread(lambda: shutil.disk_usage(directory).free)
    damage = await asyncio.to_thread(_damage, directory)
    return StoreReport("state", f"{directory} (SQLite {sqlite3.sqlite_version})", latency, free=free, damage=damage)


def _damage(directory: Path) -> str | None:
    files = [directory / name for name in DATABASES if (directory / name).stat().st_size <= _MOST_CHECKED]
    found = [f"{path.name}: {problem}" for path in files if (problem := check(path)) is not None]
    return "; ".join(found) or None


async def _sessions(stores: Stores, nodes: Sequence[Node]) -> SessionsReport:
    loaded: list[SessionKey] = []
    quarantined: list[str] = []
    cursor, looked_at = None, 0
    while looked_at < _MOST_SESSIONS:
        page = await stores.directory.list(None, cursor=cursor, limit=_PAGE)
        looked_at += len(page.rows)
        quarantined += [str(row.key) for row in page.rows if _quarantined(row)]
        loaded += [row.key for row in page.rows if _is_loaded(row)]
        cursor = page.next
        if cursor is None:
            break
    unfinished = await stores.ledger.unfinished(except_of=_incarnations(nodes))
    # Not of one that has come since.
    living = _incarnations(await stores.coordination.nodes())
    return SessionsReport(
        sessions=await stores.directory.count(),
        looked_at=looked_at,
        orphaned=[str(key) for key in await _orphans(stores, loaded)],
        unfinished_of_dead=sum(turn.incarnation not in living for turn in unfinished),
        quarantined=quarantined,
    )


async def _orphans(stores: Stores, loaded: list[SessionKey]) -> list[SessionKey]:
    """Those of `loaded` that nobody has, and that are still listed as loaded when whoever had them must have spoken."""
    suspects = await _held_by_nobody(stores, loaded)
    if not suspects:
        return []
    await asyncio.sleep(_SAID)
    rows = [await stores.directory.get(key) for key in suspects]
    return await _held_by_nobody(stores, [row.key for row in rows if row is not None and _is_loaded(row)])


async def _held_by_nobody(stores: Stores, keys: list[SessionKey]) -> list[SessionKey]:
    held = await stores.coordination.holders(keys) if keys else {}
    return [key for key in keys if key not in held]


def _incarnations(nodes: Sequence[Node]) -> set[str]:
    return {node.incarnation for node in nodes} | {one for node in nodes for one in node.load.get(EARLIER, ())}


def _is_loaded(row: SessionRow) -> bool:
    return row.state is not SessionState.HIBERNATED


def _quarantined(row: SessionRow) -> bool:
    charges = Charges.of(row.options)
    return charges is not None and charges.quarantined
