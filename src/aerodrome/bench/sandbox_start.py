"""What the sandbox costs: the start of a runtime until it is ready, and a turn in it, against the launcher `process`.

A start includes the readiness probe's turn, which goes through the sandbox's proxy like all of its traffic does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from aerodrome.app.launch import check_sandbox, launcher
from aerodrome.bench.lab import START_TIMEOUT, Lab
from aerodrome.bench.report import Row, compare, skipped
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale
from aerodrome.config.settings import Settings
from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime.binary import unpack
from aerodrome.runtime.ports import Launcher
from aerodrome.runtime.probe import ProbeModel
from aerodrome.runtime.supervisor import ManagedRuntime, RuntimeOptions

PROMPT = "Say hello."
_START = "start to ready, sandbox / process"
_TURN = "HTTP turn, sandbox / process"
_WARM_UP, _WARM_UP_TURNS = 1, 5


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    try:
        await check_sandbox(_settings(lab, "sandbox"))
        await asyncio.to_thread(unpack, lab.cli.path)
    except RuntimeUnavailable as error:
        return [skipped("sandbox-start", what, error.detail) for what in (_START, _TURN)]
    starts = await _starts(lab, scale.first_turns, lambda done: progress(done / 2))
    turns = await _turns(lab, scale.turns, lambda done: progress((1 + done) / 2))
    return [
        compare("sandbox-start", _START, ("sandbox", "process"), starts, target=1.15),
        compare("sandbox-start", _TURN, ("sandbox", "process"), turns),
    ]


async def _starts(lab: Lab, rounds: int, progress: Callable[[float], None]) -> dict[str, list[float]]:
    directory = lab.new_directory("sandbox")
    options = RuntimeOptions(
        lab.cli.path, directory / "homes", directory / "logs", env=lab.cli_env, start_timeout=START_TIMEOUT
    )
    probe = ProbeModel()
    await probe.start()
    started: list[ManagedRuntime] = []

    async def start(by: Launcher) -> None:
        runtime = ManagedRuntime(f"rt-{secrets.token_hex(4)}", options)
        started.append(runtime)
        await runtime.start(by, probe)

    async def stop() -> None:
        while started:
            await started.pop().stop()

    launchers = {name: launcher(_settings(lab, name)) for name in ("sandbox", "process")}
    try:
        return await interleave(
            {name: lambda by=by: start(by) for name, by in launchers.items()},  # type: ignore[misc]
            rounds,
            warm_up=_WARM_UP,
            prepare=stop,
            progress=progress,
        )
    finally:
        await stop()
        await probe.aclose()


async def _turns(lab: Lab, rounds: int, progress: Callable[[float], None]) -> dict[str, list[float]]:
    async with (
        lab.node(runtime={"warm": 0, "launcher": "sandbox"}) as sandbox,
        lab.node(runtime={"warm": 0, "launcher": "process"}) as process,
    ):
        users = {"sandbox": await sandbox.user(), "process": await process.user()}
        for user in users.values():
            await user.open("turns")
        return await interleave(
            {name: lambda user=user: user.turn("turns", PROMPT) for name, user in users.items()},  # type: ignore[misc]
            rounds,
            warm_up=_WARM_UP_TURNS,
            progress=progress,
        )


def _settings(lab: Lab, name: str) -> Settings:
    return Settings.model_validate(
        {
            "server": {"data_dir": str(lab.directory / "data")},
            "provider": {"type": "openai", "base_url": lab.model_url, "api_key": "bench"},
            "runtime": {"launcher": name},
        }
    )
