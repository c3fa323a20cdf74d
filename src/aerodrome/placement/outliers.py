"""Which of several servers gets nothing for a while, because it does worse than the others. Pure: time is an argument.

Each server is `healthy`, `ejected` or on `probation`:

- A healthy one is ejected after so many failures in a row; or when, since the last look, it has done well less often
  than the others by a margin, or answered slower than their median by a factor. Comparison with the others is
  the point: when all are slow, the model or the network is, and nobody is to be ejected for it.
- Whether it answers and whether it loads sessions is counted apart: a server with a full disk answers every ping.
- Never more than a share of the servers that can be used at all is ejected, and never the last of these. A detector is
  for servers that do the same work for the same people, and can do that of each other.
- An ejection lasts twice as long as the one before, up to a limit; time in health makes up for earlier ones.
- Then it is on probation: it gets a few sessions. If it does well what it was ejected for it is healthy again; one
  failure ejects it anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from aerodrome._util.transitions import Machine

#: Latest answers that count for a server's latency.
_MEASURED = 200


@dataclass(frozen=True, slots=True)
class OutlierOptions:
    """Times in seconds."""

    #: Failures in a row that eject at once.
    consecutive_failures: int = 5
    #: Requests between two looks without which a server is neither judged nor taken as a measure for others.
    min_requests: int = 10
    #: By how much its share of good answers may be below the median of the others.
    success_margin: float = 0.3
    #: How many times slower than the median of the others it may be; differences below `latency_floor` do not count.
    latency_factor: float = 4.0
    latency_floor: float = 0.1
    ejection: float = 15.0
    max_ejection: float = 300.0
    #: Most of the servers that can be used that may be ejected at the same time.
    max_share: float = 0.5
    probation_requests: int = 3


class Standing(StrEnum):
    HEALTHY = "healthy"
    EJECTED = "ejected"
    PROBATION = "probation"


class Kind(StrEnum):
    """What a server was asked."""

    #: Something that takes no time.
    ANSWER = "answer"
    #: To load a session.
    LOAD = "load"


class Stimulus(StrEnum):
    OUTLIER = "outlier"
    TIME_SERVED = "time served"
    PROVED = "proved"


TRANSITIONS: dict[tuple[Standing, Stimulus], Standing] = {
    (Standing.HEALTHY, Stimulus.OUTLIER): Standing.EJECTED,
    (Standing.EJECTED, Stimulus.TIME_SERVED): Standing.PROBATION,
    (Standing.PROBATION, Stimulus.PROVED): Standing.HEALTHY,
    (Standing.PROBATION, Stimulus.OUTLIER): Standing.EJECTED,
}


#: What so many failures in a row, and these shares of good ones, are told as.
_IN_A_ROW = {Kind.ANSWER: "{} failures in a row", Kind.LOAD: "{} sessions in a row refused that others took"}
_RATE = {
    Kind.ANSWER: "{:.0%} of its answers were good, {:.0%} of the others'",
    Kind.LOAD: "it took {:.0%} of its sessions, the others {:.0%}",
}


@dataclass(slots=True)
class _Tally:
    """Of one kind of requests."""

    #: Since the last look.
    good: int = 0
    bad: int = 0
    failures_in_a_row: int = 0

    @property
    def requests(self) -> int:
        return self.good + self.bad

    @property
    def rate(self) -> float:
        return self.good / self.requests


@dataclass(slots=True)
class _Server:
    machine: Machine[Standing, Stimulus] = field(default_factory=lambda: Machine(Standing.HEALTHY, TRANSITIONS))
    #: Whether it can be used, apart from its standing.
    present: bool = True
    tallies: dict[Kind, _Tally] = field(default_factory=lambda: {kind: _Tally() for kind in Kind})
    #: Since the last look.
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_MEASURED))
    #: How often it was ejected, less what it has made up for.
    ejections: int = 0
    until: float = 0.0
    #: On probation: sessions that were handed to it, and requests that went well.
    given: int = 0
    proved: int = 0
    ejected_for: Kind = Kind.ANSWER
    reason: str = ""


class OutlierDetector:
    """Tell it who there is (`keep`), what became of requests (`seen`), and look from time to time (`look`)."""

    def __init__(self, options: OutlierOptions | None = None) -> None:
        self._options = options or OutlierOptions()
        self._servers: dict[str, _Server] = {}

    def keep(self, ids: Iterable[str], absent: Collection[str] = ()) -> None:
        """These are the servers there are; others are forgotten.

        Args:
            absent: Those that cannot be used now, for reasons of their own: they do nobody's work.
        """
        self._servers = {name: self._servers.get(name) or _Server() for name in sorted(ids)}
        for name, server in self._servers.items():
            server.present = name not in absent
        ejected = [s for s in self._present if s.machine.state is Standing.EJECTED]
        # Of fewer servers fewer may be ejected; those go first that would have come back first.
        for server in sorted(ejected, key=lambda s: s.until)[: max(0, len(ejected) - self._most_ejected)]:
            self._let_back(server)

    def standing(self, name: str) -> Standing:
        server = self._servers.get(name)
        return server.machine.state if server else Standing.HEALTHY

    def reason(self, name: str) -> str:
        """Why it was last ejected; empty when it never was."""
        server = self._servers.get(name)
        return server.reason if server else ""

    def admits(self, name: str) -> bool:
        """Whether it may get one more session now."""
        server = self._servers.get(name)
        if server is None or server.machine.state is Standing.HEALTHY:
            return True
        if server.machine.state is Standing.EJECTED:
            return False
        if server.given < self._options.probation_requests:
            return True
        # With nobody else to do the work, to be careful would be to refuse it.
        return not any(other.machine.state is Standing.HEALTHY for other in self._present)

    def placed(self, name: str) -> None:
        """It was given a session."""
        if (server := self._servers.get(name)) is not None:
            server.given += 1

    def seen(self, name: str, *, good: bool, seconds: float, now: float, kind: Kind = Kind.ANSWER) -> None:
        """A request went well after so many seconds, or did not.

        Args:
            seconds: Of an answer; how long it takes to load a session says more about the session.
        """
        server = self._servers.get(name)
        if server is None or server.machine.state is Standing.EJECTED:
            return
        tally, on_probation = server.tallies[kind], server.machine.state is Standing.PROBATION
        if good:
            tally.good += 1
            tally.failures_in_a_row = 0
            if kind is Kind.ANSWER:
                server.latencies.append(seconds)
            server.proved += kind is server.ejected_for
            if on_probation and server.proved >= self._options.probation_requests:
                server.machine.apply(Stimulus.PROVED)
            return
        tally.bad += 1
        tally.failures_in_a_row += 1
        if on_probation or tally.failures_in_a_row >= self._options.consecutive_failures:
            again = "failed on probation" if on_probation else _IN_A_ROW[kind].format(tally.failures_in_a_row)
            self._eject(name, again, now, kind)

    def look(self, now: float) -> None:
        """Judge what was seen since the last look, and let those on probation whose time is over."""
        for server in self._servers.values():
            if now < server.until:
                continue
            if server.machine.state is Standing.EJECTED:
                self._let_back(server)
            elif server.machine.state is not Standing.PROBATION or server.given < self._options.probation_requests:
                continue
            else:
                server.given = 0  # of what it was given nothing has come, neither good nor bad
            server.until = now + self._options.ejection
        healthy = {n: s for n, s in self._servers.items() if s.machine.state is Standing.HEALTHY}
        # All are judged by what was seen before any of them is ejected.
        found: dict[str, tuple[str, Kind]] = {}
        done: set[str] = set()
        for kind in Kind:
            judged = {n: s for n, s in healthy.items() if s.tallies[kind].requests >= self._options.min_requests}
            for name in judged:
                if name not in found and (verdict := self._verdict(name, judged, kind)):
                    found[name] = verdict, kind
            done |= judged.keys()
        for name in sorted(done):
            server = healthy[name]
            if name in found:
                self._eject(name, found[name][0], now, found[name][1])
            else:
                server.ejections = max(0, server.ejections - 1)
            for tally in server.tallies.values():
                if tally.requests >= self._options.min_requests:
                    tally.good = tally.bad = 0
            server.latencies.clear()

    def _verdict(self, name: str, judged: dict[str, _Server], kind: Kind) -> str:
        """Why it is an outlier; empty when it is none."""
        options, server = self._options, judged[name]
        others = [other for other in judged if other != name]
        if not others:
            return ""
        rate, usual = server.tallies[kind].rate, median(judged[o].tallies[kind].rate for o in others)
        if rate < usual - options.success_margin:
            return _RATE[kind].format(rate, usual)
        measured = [median(judged[o].latencies) for o in others if judged[o].latencies]
        if kind is Kind.LOAD or not server.latencies or not measured:
            return ""
        own, theirs = median(server.latencies), median(measured)
        if own > options.latency_factor * theirs and own - theirs > options.latency_floor:
            return f"it takes {own:.3g} s where the others take {theirs:.3g} s"
        return ""

    @property
    def _present(self) -> list[_Server]:
        return [server for server in self._servers.values() if server.present]

    @property
    def _most_ejected(self) -> int:
        present = len(self._present)
        return max(0, min(int(present * self._options.max_share), present - 1))

    @staticmethod
    def _let_back(server: _Server) -> None:
        server.machine.apply(Stimulus.TIME_SERVED)
        server.given = server.proved = 0
        for tally in server.tallies.values():
            tally.failures_in_a_row = 0

    def _eject(self, name: str, reason: str, now: float, kind: Kind) -> None:
        server = self._servers[name]
        ejected = sum(s.machine.state is Standing.EJECTED for s in self._present)
        if ejected + 1 > self._most_ejected:
            if server.machine.state is Standing.PROBATION:
                server.given = server.proved = 0  # it may try again: there is nobody to do its work
            return
        server.machine.apply(Stimulus.OUTLIER)
        server.reason, server.ejected_for = reason, kind
        server.ejections += 1
        server.until = now + min(
            self._options.max_ejection, self._options.ejection * 2.0 ** min(server.ejections - 1, 32)
        )
        server.tallies = {each: _Tally() for each in Kind}
        server.latencies.clear()
