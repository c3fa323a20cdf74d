"""Secrets that change while the node runs.

Whoever uses a secret asks its cell (`config.secret_cells`), which notices by itself that a file has changed. What is
behind Vault or a program is asked here, every `secrets.refresh`. And sessions that are loaded have the secret they were
loaded with: when their provider's has changed they are loaded anew before their next turn (`sessions.residency`), and
put to sleep here as soon as they are idle, because their runtime goes on to hold the old one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from aerodrome._util.tasks import every
from aerodrome.config.secret_listing import cells_of
from aerodrome.config.settings import Settings
from aerodrome.errors import AerodromeError
from aerodrome.sessions.live import LiveSession
from aerodrome.sessions.service import SessionService

log = structlog.get_logger(__name__)

#: Seconds between two looks at files, and for sessions that are to be put to sleep.
_LOOK = 5.0
#: What the settings begin with that are read anew while the node runs.
_ATTACHED = "runtime.attach"
_CRASHED = "secrets.crashed"


class SecretKeeper:
    """Args:
    sessions: Those of this node.
    on_tokens: Called when a token of attached servers has changed.
    """

    def __init__(
        self, settings: Settings, sessions: SessionService, *, on_tokens: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._sessions = sessions
        self._on_tokens = on_tokens
        self._refresh = settings.secrets.refresh
        self._cells = dict(cells_of(settings))
        self._known = {name: cell.current() for name, cell in self._cells.items()}

    @property
    def problems(self) -> dict[str, str]:
        """Setting -> why its value may be an old one."""
        return {name: cell.problem for name, cell in self._cells.items() if cell.problem is not None}

    def reloaded(self, settings: Settings) -> None:
        """What of the settings may change while the node runs has been read anew."""
        kept = {name: cell for name, cell in self._cells.items() if not name.startswith(_ATTACHED)}
        read = {name: cell for name, cell in cells_of(settings) if name.startswith(_ATTACHED)}
        self._cells = kept | read
        self._known |= {name: cell.current() for name, cell in read.items()}

    async def run(self) -> None:
        """For ever."""
        # Beside each other: Vault and programs may take `secrets.timeout` for each secret, and files wait for nobody.
        look = min(_LOOK, self._refresh)
        async with asyncio.TaskGroup() as both:
            both.create_task(every(look, lambda: self.look(ask=False), _CRASHED), name="look at secrets")
            both.create_task(every(self._refresh, self.ask, _CRASHED), name="ask for secrets")

    async def ask(self) -> None:
        """Have those looked up that cost something to ask. What has changed is dealt with by the next `look`."""
        for cell in dict.fromkeys(self._cells.values()):  # several settings may have one
            if cell.polled:
                await asyncio.to_thread(cell.refresh)

    async def look(self, *, ask: bool = True) -> None:
        """Deal with what has changed. `ask`: ask first."""
        if ask:
            await self.ask()
        changed = self._changed()
        if self._on_tokens is not None and any(name.startswith(_ATTACHED) for name in changed):
            await self._on_tokens()
        # Each time anew: one that was being loaded at the change shows only now.
        for live in self._sessions.outdated:
            if live.evictable and live.outdated:  # still: the others take their time
                await self._put_to_sleep(live)

    def _changed(self) -> list[str]:
        """Settings whose secret is another one than at the last look."""
        changed = []
        for name, cell in self._cells.items():
            if (value := cell.current()) != self._known[name]:
                self._known[name] = value
                changed.append(name)
                log.info("secret.in_use", setting=name, source=cell.where)
        return changed

    async def _put_to_sleep(self, live: LiveSession) -> None:
        try:
            await self._sessions.hibernate(live)
        except AerodromeError as error:
            log.warning("session.not_hibernated", session=str(live.row.key), reason=error.detail)
