"""How the servers of each key stand beside each other (`placement.outliers`).

Servers compete for the sessions of one key, and are compared with the others of that key only: what another tenant's
servers do says nothing of this one's, and another tenant's servers could not do its work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from aerodrome.model import RuntimeKey
from aerodrome.placement.outliers import Kind, OutlierDetector, OutlierOptions, Standing
from aerodrome.runtime.attached.server import AttachedServer

#: Seconds for which it is remembered who has refused a session, and of how many sessions.
_REMEMBERED = 60.0
_MOST = 1000

_Session = tuple[RuntimeKey, str]


class _Refusals:
    """Who has refused which session lately."""

    def __init__(self) -> None:
        #: The latest at the end: until when, and by whom.
        self._by: dict[_Session, tuple[float, frozenset[str]]] = {}

    def of(self, session: _Session, now: float) -> frozenset[str]:
        until, names = self._by.get(session, (0.0, frozenset[str]()))
        return names if now < until else frozenset()

    def add(self, session: _Session, name: str, now: float) -> None:
        names = self.pop(session, now) | {name}
        self._by[session] = now + _REMEMBERED, names
        if len(self._by) > _MOST:
            del self._by[next(iter(self._by))]

    def pop(self, session: _Session, now: float) -> frozenset[str]:
        names = self.of(session, now)
        self._by.pop(session, None)
        return names


class Standings:
    """Args:
    on_change: Called with a server whose standing is another one now.
    """

    def __init__(self, options: OutlierOptions, on_change: Callable[[AttachedServer], None]) -> None:
        self._options = options
        self._on_change = on_change
        self._detectors: dict[RuntimeKey, OutlierDetector] = {}
        self._servers: list[AttachedServer] = []
        self._refusals = _Refusals()

    def keep(self, servers: Iterable[AttachedServer], drained: Collection[str] = ()) -> None:
        """These are the servers there are. To be told whenever one comes, goes, is bound, connected, lost or drained.

        Args:
            drained: Names of those that do nobody's work.
        """
        self._servers = list(servers)
        before = self._all()
        groups: dict[RuntimeKey, list[AttachedServer]] = {}
        for server in self._servers:
            if server.binding is not None and not server.misattached:
                groups.setdefault(server.binding, []).append(server)
        self._detectors = {key: self._detectors.get(key) or OutlierDetector(self._options) for key in groups}
        for key, group in groups.items():
            absent = {server.name for server in group if server.runtime is None or server.name in drained}
            self._detectors[key].keep((server.name for server in group), absent)
        self._tell(before)

    def standing(self, server: AttachedServer) -> Standing:
        """One that is nobody's yet is healthy: it does nobody's work."""
        detector = self._of(server)
        return detector.standing(server.name) if detector is not None else Standing.HEALTHY

    def reason(self, server: AttachedServer) -> str:
        """Why it was last ejected; empty when it never was."""
        detector = self._of(server)
        return detector.reason(server.name) if detector is not None else ""

    def admits(self, server: AttachedServer) -> bool:
        """Whether it may get one more session now."""
        detector = self._of(server)
        return detector is None or detector.admits(server.name)

    def placed(self, server: AttachedServer) -> None:
        """It was given a session."""
        if (detector := self._of(server)) is not None:
            detector.placed(server.name)

    def answered(self, server: AttachedServer, *, good: bool, seconds: float, now: float) -> None:
        """A request was answered after so many seconds, or was not."""
        self._seen(server, Kind.ANSWER, good, seconds, now)

    def loaded(self, server: AttachedServer, session_id: str, *, taken: bool, now: float) -> None:
        """The server has loaded a session, or has refused to.

        What it says with that does not tell whose fault it is (docs/facts.md, "Sessions and connections"). So a refusal
        counts once another server has taken the session; what all refuse is wrong with the session or its opener.
        """
        if (key := server.binding) is None:
            return
        if not taken:
            self._refusals.add((key, session_id), server.name, now)
            return
        refusers = self._refusals.pop((key, session_id), now) - {server.name}
        for other in [each for each in self._servers if each.name in refusers and each.binding == key]:
            self._seen(other, Kind.LOAD, False, 0.0, now)
        self._seen(server, Kind.LOAD, True, 0.0, now)

    def refused(self, key: RuntimeKey, session_id: str | None, now: float) -> frozenset[str]:
        """Names of the servers that have just refused the session."""
        return self._refusals.of((key, session_id), now) if session_id is not None else frozenset()

    def _seen(self, server: AttachedServer, kind: Kind, good: bool, seconds: float, now: float) -> None:
        if (detector := self._of(server)) is not None:
            before = self._all()
            detector.seen(server.name, good=good, seconds=seconds, now=now, kind=kind)
            self._tell(before)

    def look(self, now: float) -> None:
        """Judge what was seen since the last look."""
        before = self._all()
        for detector in self._detectors.values():
            detector.look(now)
        self._tell(before)

    def _of(self, server: AttachedServer) -> OutlierDetector | None:
        return self._detectors.get(server.binding) if server.binding is not None else None

    def _all(self) -> dict[AttachedServer, Standing]:
        return {server: self.standing(server) for server in self._servers}

    def _tell(self, before: dict[AttachedServer, Standing]) -> None:
        for server, standing in before.items():
            if self.standing(server) is not standing:
                self._on_change(server)
