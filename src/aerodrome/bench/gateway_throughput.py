"""Turns per second of one CLI with many sessions at work, through the gateway and without it.

Both CLIs have as many sessions, of SDK clients in processes of their own. They work in turns, a window each, and who is
not at work is idle. Whether it is the CLI that limits the rate, and not the machine, is said with the result: how busy
all the cores were meanwhile, and the processor time of everybody for one turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import psutil

from aerodrome.bench.children import Child, python_child
from aerodrome.bench.lab import Lab, cpu_seconds
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale
from aerodrome.bench.sdk import Endpoint
from aerodrome.bench.stats import ratio_interval

PROMPT = "Say hello."
_NAME = "gateway-throughput"
_TARGET = 0.97
#: Part of the cores' time from which on they are called full.
_FULL = 0.95


@dataclass
class _Side:
    """One of the compared: its load, the processes that serve it, and what was measured."""

    load: Child
    served_by: Mapping[str, psutil.Process]
    rates: list[float] = field(default_factory=list)
    #: Part of the cores' time that was in use, by anybody.
    busy: list[float] = field(default_factory=list)
    turns: int = 0
    #: Seconds by process.
    cpu: dict[str, float] = field(default_factory=dict)

    async def window(self, turns: int, *, measured: bool = True) -> None:
        processes = {**self.served_by, "load": self.load.stats}
        before = {name: cpu_seconds(process) for name, process in processes.items()}
        machine = psutil.cpu_times()
        answer = await self.load.ask(do="turns", count=turns, prompt=PROMPT)
        if not measured:
            return
        self.busy.append(_busy(machine, psutil.cpu_times()))
        self.rates.append(turns / answer["seconds"])
        self.turns += turns
        for name, process in processes.items():
            self.cpu[name] = self.cpu.get(name, 0.0) + cpu_seconds(process) - before[name]

    def cpu_ms(self, name: str) -> float:
        """Processor time of one turn."""
        return self.cpu[name] / self.turns * 1e3


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    sessions = scale.busy_sessions
    limits = {"max_turns": 10 * sessions}  # of which a tenant has a fifth
    async with AsyncExitStack() as stack:
        cli = await stack.enter_async_context(lab.bare_cli())
        node = await stack.enter_async_context(
            lab.node(runtime={"warm": 0, "max_sessions": sessions + 1}, limits=limits)
        )

        async def load(endpoint: Endpoint) -> Child:
            process = await stack.enter_async_context(python_child("aerodrome.bench.load"))
            directory = str(lab.new_directory("load"))
            await process.ask(do="open", endpoint=asdict(endpoint), directory=directory, sessions=sessions)
            return process

        direct = _Side(await load(Endpoint.of_cli(lab, cli)), {"cli": psutil.Process(cli.pid)})
        through = await load(await Endpoint.of_node(lab, node))
        gateway = _Side(through, {"cli": await node.runtime(), "node": node.stats})
        order = [direct, gateway]
        for side in order:
            await side.window(sessions, measured=False)
        for done in range(scale.windows):
            for side in order:
                await side.window(scale.window_turns)
            order.reverse()
            progress((done + 1) / scale.windows)
    return [_rates(sessions, direct, gateway), _cli_cpu(direct, gateway), _node_cpu(gateway)]


def _rates(sessions: int, direct: _Side, gateway: _Side) -> Row:
    full = [name for name, side in (("direct", direct), ("gateway", gateway)) if median(side.busy) >= _FULL]
    return Row(
        _NAME,
        f"turns a second of one CLI with {sessions} sessions: gateway / direct",
        median(gateway.rates) / median(direct.rates),
        target=_TARGET,
        at_least=True,
        interval=ratio_interval(gateway.rates, direct.rates),
        measured={
            "gateway_turns_per_s": median(gateway.rates),
            "direct_turns_per_s": median(direct.rates),
            "gateway_busy_percent": median(gateway.busy) * 100,
            "direct_busy_percent": median(direct.busy) * 100,
            "gateway_load_cpu_ms": gateway.cpu_ms("load"),
            "direct_load_cpu_ms": direct.cpu_ms("load"),
            "turns": direct.turns,
        },
        note=f"the cores were full ({', '.join(full)}): the rate is the machine's and not the CLI's" if full else "",
    )


def _cli_cpu(direct: _Side, gateway: _Side) -> Row:
    """What the rates would be to each other on a machine with cores to spare."""
    measured = {"gateway_ms": gateway.cpu_ms("cli"), "direct_ms": direct.cpu_ms("cli"), "turns": direct.turns}
    ratio = measured["gateway_ms"] / measured["direct_ms"]
    return Row(_NAME, "processor time of the CLI for a turn: gateway / direct", ratio, measured=measured)


def _node_cpu(gateway: _Side) -> Row:
    measured = {"node_ms": gateway.cpu_ms("node"), "cli_ms": gateway.cpu_ms("cli"), "turns": gateway.turns}
    ratio = measured["node_ms"] / measured["cli_ms"]
    return Row(_NAME, "processor time of the node / of the CLI, native turn", ratio, measured=measured)


def _busy(before: Any, after: Any) -> float:
    """The part of all cores' time between two `psutil.cpu_times` in which they were not idle."""
    spent = {name: getattr(after, name) - getattr(before, name) for name in ("user", "nice", "system", "idle")}
    return float(1 - spent["idle"] / max(sum(spent.values()), 1e-9))
