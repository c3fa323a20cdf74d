"""When a workspace ends: with the last session that its user has.

Looked at after each deletion, when a runtime lets go of one, and for all of them every hour, because others may have
deleted the sessions: another node, a command, this one before it was killed. In use, it stays until its runtime ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.ports import Directory
from aerodrome.errors import AerodromeError
from aerodrome.model import Isolation, RuntimeKey, SessionRow
from aerodrome.runtime.workspaces import Workspaces
from aerodrome.sessions.takeout import Whose, rows_of

log = structlog.get_logger(__name__)

#: Seconds between two looks at all of them.
_INTERVAL = 3600.0
_PAGE = 200


async def remove_unowned(directory: Directory, workspaces: Workspaces, owner: RuntimeKey) -> bool:
    """Remove the user's workspace unless they have a session, or a runtime. Returns whether it was there and has gone.

    Raises:
        StoreUnavailable: Whether they have cannot be told.
        OSError: It cannot be removed, or only in part; the next look at all of them goes on with it.
    """
    if not await asyncio.to_thread(workspaces.directory(owner).exists):
        return False
    if await _has_sessions(directory, owner):
        return False
    return await asyncio.to_thread(workspaces.remove, owner)


async def _has_sessions(directory: Directory, owner: RuntimeKey) -> bool:
    def is_theirs(row: SessionRow) -> bool:
        # The list has the sessions that others share with the user, too, and these use the workspaces of others.
        return row.owner == owner.user and row.isolation is Isolation.USER

    page = await directory.list(owner.tenant, user=owner.user, limit=_PAGE)
    if any(map(is_theirs, page.rows)):
        return True
    return page.next is not None and any(map(is_theirs, await rows_of(directory, Whose(owner.tenant, owner.user))))


class WorkspaceCare:
    """Start it with `run` as a task."""

    def __init__(self, directory: Callable[[], Directory], workspaces: Workspaces, tasks: TaskOwner) -> None:
        self._directory = directory
        self._workspaces = workspaces
        self._tasks = tasks
        #: One at a time: those that look at a file system which does not answer keep a thread each.
        self._looking = asyncio.Lock()

    def deleted(self, row: SessionRow) -> None:
        """A session has been deleted."""
        if row.isolation is Isolation.USER:
            self.released(RuntimeKey(row.key.tenant, row.owner))

    def released(self, owner: RuntimeKey) -> None:
        """A runtime has let go of the user's workspace."""
        if not self._tasks.closed:
            self._tasks.start(self._careful(lambda: self._look_at(owner)), f"workspace of {owner}")

    async def run(self) -> None:
        while True:
            await self._careful(self._look_at_all)
            await asyncio.sleep(_INTERVAL)

    async def _look_at(self, owner: RuntimeKey) -> None:
        async with self._looking:
            removed = await remove_unowned(self._directory(), self._workspaces, owner)
        if removed:
            log.info("workspace.removed", owner=str(owner))

    async def _look_at_all(self) -> None:
        await asyncio.to_thread(self._workspaces.tidy)
        for owner in await asyncio.to_thread(lambda: list(self._workspaces.owners())):
            await self._careful(lambda owner=owner: self._look_at(owner))  # type: ignore[misc]

    async def _careful(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (AerodromeError, OSError) as error:
            log.warning("workspace.not_removed", reason=str(error))
