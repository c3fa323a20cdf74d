"""The gateway's data plane by itself: round trips through it to a peer that answers at once (`stub`).

With the gateway stand three others: nothing in between, and HAProxy in TCP mode, which passes bytes on without looking
at them. Rates are of one core: divided by the processor time that whoever stands between has used, so that neither the
peer, nor the client, nor others on the machine count.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

import psutil

from aerodrome.bench.children import python_child
from aerodrome.bench.lab import Lab, cpu_seconds
from aerodrome.bench.report import Row, skipped
from aerodrome.bench.scale import Scale
from aerodrome.bench.stats import difference_interval, percentile
from aerodrome.bench.trips import Trips

_NAME = "gateway-alone"
_TARGET_MS = 0.15
_TARGET_RATE = 25_000
_HAPROXY = """
global
  maxconn 64
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend front
  bind fd@{listener}
  default_backend back
backend back
  server stub {host}:{stub_port}
"""


@dataclass
class _Between:
    """Who stands between client and peer: its process, and what was measured."""

    trips: Trips
    process: psutil.Process | None = None
    #: Seconds of each round trip.
    times: list[float] = field(default_factory=list)
    #: A second of processor time, and of the clock.
    trip_rates: list[tuple[float, float]] = field(default_factory=list)
    event_rates: list[tuple[float, float]] = field(default_factory=list)

    def rate(self, work: Callable[[float], int], seconds: float) -> tuple[float, float]:
        assert self.process is not None
        before = cpu_seconds(self.process)
        done = work(seconds)
        return done / max(cpu_seconds(self.process) - before, 1e-3), done / seconds


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    async with (
        python_child("aerodrome.bench.stub") as peer,
        python_child("aerodrome.bench.standin") as gateway,
        _haproxy(lab, peer_at := await peer.ask()) as haproxy,
    ):
        gateway_at = await gateway.ask(**peer_at)
        with ExitStack() as stack:

            def connect(host: str, port: int) -> Trips:
                return stack.enter_context(Trips(host, port))

            measured = {
                "direct": _Between(connect(**peer_at)),
                "gateway": _Between(connect(**gateway_at), gateway.stats),
            }
            if haproxy is not None:
                port, process = haproxy
                measured["haproxy"] = _Between(connect("127.0.0.1", port), process)
            await asyncio.to_thread(_measure, measured, scale, progress)
    if haproxy is None:
        without = skipped(_NAME, "HAProxy in TCP mode", "haproxy is not installed")
        return [*_rows("gateway", measured, _TARGET_MS, _TARGET_RATE), without]
    return [*_rows("gateway", measured, _TARGET_MS, _TARGET_RATE), *_rows("HAProxy in TCP mode", measured)]


def _measure(measured: Mapping[str, _Between], scale: Scale, progress: Callable[[float], None]) -> None:
    """In a thread: the sockets block."""
    measured["gateway"].trips.open_session()
    order = list(measured.values())
    rounds = scale.trip_rounds + scale.pipe_rounds
    for between in order:
        between.trips.timed(scale.trips)
    for done in range(scale.trip_rounds):
        for between in order:
            between.times += between.trips.timed(scale.trips)
        order.reverse()
        progress((done + 1) / rounds)
    for done in range(scale.pipe_rounds):
        for between in order:
            if between.process is not None:
                between.trip_rates.append(between.rate(between.trips.piped, scale.pipe_seconds))
                between.event_rates.append(between.rate(between.trips.told, scale.pipe_seconds))
        order.reverse()
        progress((scale.trip_rounds + done + 1) / rounds)


def _rows(
    what: str,
    measured: Mapping[str, _Between],
    target_ms: float | None = None,
    target_rate: float | None = None,
) -> list[Row]:
    direct, between = measured["direct"], measured["gateway" if what == "gateway" else "haproxy"]
    low, high = difference_interval(between.times, direct.times)
    added = Row(
        _NAME,
        f"time added to a round trip, {what}",
        (median(between.times) - median(direct.times)) * 1e3,
        "ms",
        target_ms,
        (low * 1e3, high * 1e3),
        measured={
            "through_p50_ms": median(between.times) * 1e3,
            "through_p95_ms": percentile(between.times, 95) * 1e3,
            "direct_p50_ms": median(direct.times) * 1e3,
            "direct_p95_ms": percentile(direct.times, 95) * 1e3,
            "samples": len(direct.times),
        },
    )
    return [
        added,
        _rate(f"round trips a second of one core, {what}", between.trip_rates, target_rate),
        _rate(f"session events a second of one core, {what}", between.event_rates),
    ]


def _rate(what: str, rates: list[tuple[float, float]], target: float | None = None) -> Row:
    of_core = [rate for rate, _ in rates]
    by_clock = [rate for _, rate in rates]
    return Row(
        _NAME,
        what,
        median(of_core),
        "/s",
        target,
        measured={"by_the_clock_per_s": median(by_clock), "least_per_s": min(of_core), "most_per_s": max(of_core)},
        at_least=True,
    )


@asynccontextmanager
async def _haproxy(lab: Lab, peer: Mapping[str, str | int]) -> AsyncIterator[tuple[int, psutil.Process] | None]:
    """Its port and process; ``None``: it is not installed."""
    # Distributions put it where only root looks.
    command = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if command is None:
        yield None
        return
    config = lab.new_directory("haproxy") / "haproxy.cfg"
    # Handed over listening: a port that is free now may be somebody else's by the time that it is bound.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        number = listener.fileno()
        config.write_text(_HAPROXY.format(listener=number, host=peer["host"], stub_port=peer["port"]))
        process = await asyncio.create_subprocess_exec(
            *(command, "-db", "-q", "-f", str(config)),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(number,),
        )
    try:
        yield port, psutil.Process(process.pid)
    finally:
        process.kill()
        await process.wait()
