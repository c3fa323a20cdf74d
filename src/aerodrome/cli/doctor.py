"""`aerodrome doctor`: checks what a node needs on this machine, and says how to mend what is wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.text import Text

from aerodrome.cli.console import out, print_json, print_table, printable, say
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.config import Settings, load_settings
from aerodrome.config.secret_references import GIVEN
from aerodrome.errors import AerodromeError, RuntimeUnavailable
from aerodrome.model import Isolation

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
#: Below this much free space a node soon fails writes: the CLI's unpacked package alone takes 235 MB.
_LITTLE_DISK = 1 << 30
#: Settings that may hold a password, and need not.
_ADDRESSES = ("coordination.url", "state.url", "state.tables")


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    #: `ok`, `warning` or `failed`.
    result: str
    detail: str


def doctor(
    config: ConfigOption = None,
    start: Annotated[bool, typer.Option(help="Also start a runtime and take a turn in it.")] = True,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at the whole fleet instead: every node, the stores, the sessions.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check configuration, CLI binary, provider, secrets, stores, addresses, telemetry, attached servers,
    runtime start. Exits 1 if anything failed.

    With `--cluster` it asks every node over the address that other nodes use, so run it on a machine of the fleet.
    """
    from aerodrome.observability.logging import configure_logging

    configure_logging("error", "console")
    settings = load_settings(config)
    if cluster:
        _cluster(settings, as_json)
        return
    findings = [Finding("configuration", "ok", "complete and consistent")]
    findings += asyncio.run(_examine(settings, start))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = Text(f"{finding.result:8}", style=_STYLES[finding.result])
            out().print(
                mark.append(Text(printable(f" {finding.check}: {finding.detail}", keep="\n"), style="default not bold"))
            )
    if any(finding.result == "failed" for finding in findings):
        raise typer.Exit(1)


def _cluster(settings: Settings, as_json: bool) -> None:
    from aerodrome.app.cluster_doctor import examine

    findings = asyncio.run(examine(settings))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(
            ("RESULT", "OF", "CHECK", "FOUND"),
            [(finding.result, finding.subject, finding.check, finding.detail) for finding in findings],
        )
        for finding in findings:
            if finding.mend is not None:
                say(f"{finding.subject}, {finding.check}: {finding.mend}")
    if any(finding.result == "failed" for finding in findings):
        raise typer.Exit(1)


async def _examine(settings: Settings, start: bool) -> list[Finding]:
    checks: dict[str, Callable[[Settings], Awaitable[str]]] = {
        "Copilot CLI": _binary,
        "SDK": _sdk,
        "provider": _provider,
        "secrets": _secrets,
        "stores": _stores,
        "addresses": _address,
        "telemetry": _telemetry,
        "disk": _disk,
        "process isolation": _isolation,
        "sandbox": _sandbox,
    }
    if settings.runtime.attach:
        checks["attached servers"] = _attached
    if start:
        checks["runtime"] = _runtime
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(name, "ok", await check(settings)))
        except _Warning as warning:
            findings.append(Finding(name, "warning", str(warning)))
        except AerodromeError as error:
            findings.append(Finding(name, "failed", error.detail))
        except OSError as error:
            findings.append(Finding(name, "failed", str(error)))
    return findings


class _Warning(Exception):
    """It works, and the operator should know."""


async def _binary(settings: Settings) -> str:
    from aerodrome.runtime.binary import resolve

    runtime = settings.runtime
    binary = await asyncio.to_thread(resolve, runtime.command, allow_version_mismatch=runtime.allow_version_mismatch)
    return f"{binary.version} at {binary.path} (from {binary.source})"


async def _sdk(settings: Settings) -> str:
    from aerodrome.runtime.release import sdk_pair_problem

    if (mismatch := sdk_pair_problem()) is not None:
        raise _Warning(mismatch)
    return "none installed, or the one that pairs with this CLI"


async def _provider(settings: Settings) -> str:
    from aerodrome.app.model_doctor import examine_models

    provider = settings.provider

    if problems := await examine_models(settings):
        # A warning: the machine may have reasons of its own, such as an authority that only runtimes trust.
        raise _Warning(f"turns will fail: {'; '.join(problems)}")
    tenants = f", and {len(provider.tenants)} tenants with their own" if provider.tenants else ""
    return f"{provider.type}{f' at {provider.base_url}' if provider.base_url else ''}{tenants}"


async def _secrets(settings: Settings) -> str:
    """Where each comes from. That all lead somewhere has been seen when the settings were loaded."""
    from aerodrome.config.secret_listing import cells_of
    from aerodrome.config.types import mask_passwords

    found = {
        name: cell
        for name, cell in cells_of(settings)
        # An address such as "sqlite" is no secret.
        if name not in _ADDRESSES or cell.where != GIVEN or mask_passwords(cell.current()) != cell.current()
    }
    listed = ", ".join(f"{name} from {cell.where}" for name, cell in found.items())
    if plain := [name for name, cell in found.items() if cell.where == GIVEN]:
        raise _Warning(f"{listed}; better a reference for {' and '.join(plain)} (docs/secrets.md)")
    return listed or "none"


async def _stores(settings: Settings) -> str:
    from aerodrome.app.stores import open_stores

    async with open_stores(settings) as stores:
        count = await stores.directory.count()
        nodes = await stores.coordination.nodes()
    where = str(settings.server.data_dir)
    if settings.state.tables_url != "sqlite":
        from aerodrome.app.stores import postgresql_stores

        where = f"{settings.state.tables_url.masked} (schema {settings.state.database_schema})"
        if weak := await postgresql_stores().durability(settings):
            raise _Warning(f"{where} has {'; and '.join(weak)}")
    if settings.state.volume is not None:
        where += f", session files on the volume {settings.state.volume}"
    coordination = settings.coordination
    if coordination.url != "sqlite":
        where += f", coordination in {coordination.url.masked}"
    return f"open in {where}; {count} sessions, {len(nodes)} running nodes"


async def _address(settings: Settings) -> str:
    server = settings.server
    addresses = {"server.http": server.http, "server.gateway": server.gateway}
    if settings.telemetry.metrics_address is not None:
        addresses["telemetry.metrics_address"] = settings.telemetry.metrics_address
    for setting, (host, port) in addresses.items():
        _try_to_bind(setting, host, port)
    return " and ".join(str(address) for address in addresses.values()) + " are free"


def _try_to_bind(setting: str, host: str, port: int) -> None:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise _Warning(
                f"{host}:{port} cannot be taken ({error.strerror}): a node runs already, or set {setting}"
            ) from None


async def _telemetry(settings: Settings) -> str:
    from aerodrome.app.observe import problem_with_collector

    options = settings.telemetry
    if options.traces is not None and (problem := await problem_with_collector(settings)) is not None:
        raise _Warning(f"no traces: {problem}")
    measured = options.metrics_address is not None or options.metrics_token is not None
    traces = f"traces go to {options.traces}" if options.traces is not None else "no traces are sent"
    return f"{'metrics are served' if measured else 'nothing is measured'}; {traces}"


async def _disk(settings: Settings) -> str:
    directory = settings.server.data_dir
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < _LITTLE_DISK:
        raise _Warning(f"{free >> 20} MiB free at {directory}: writes will soon fail")
    return f"{free >> 30} GiB free at {directory}"


async def _isolation(settings: Settings) -> str:
    if sys.platform != "linux":
        raise _Warning("no parent-death signal on this system: runtimes outlive a killed node until its next start")
    tenants = settings.isolation.tenants.values()
    shared = Isolation.TENANT in (settings.isolation.default, *tenants)
    if settings.policy.host_tools and not settings.contained:
        raise _Warning("users of host tools have a shell on this machine with the rights of the node")
    root = " (running as root: use an account of its own)" if os.geteuid() == 0 else ""
    return ("users of a tenant share a runtime" if shared else "a runtime for each user") + root


async def _sandbox(settings: Settings) -> str:
    """Also where it is not used: whether it could be is what somebody wants to know who thinks of it."""
    from aerodrome.app.launch import check_sandbox

    if sys.platform != "linux":
        return "not on this system: bubblewrap is for Linux"
    if settings.runtime.launcher == "sandbox":
        await check_sandbox(settings)
        sandbox = settings.sandbox
        return f"{sandbox.level}, network {sandbox.network if settings.contained else 'of this machine'}"
    try:
        await check_sandbox(settings)
    except AerodromeError as error:
        return f"not used, and could not be: {error.detail}"
    return 'not used; runtime.launcher = "sandbox" works here'


async def _attached(settings: Settings) -> str:
    from aerodrome.app.attached_doctor import examine_attached

    found = await examine_attached(settings)
    wrong = [f"{server}: {problem}" for server, problem in found.items() if problem is not None]
    well = f"{len(found) - len(wrong)} of {len(found)} can be used"
    if not wrong:
        return well
    told = "; ".join([well, *wrong])
    if len(wrong) == len(found):
        raise RuntimeUnavailable(told)
    raise _Warning(told)


async def _runtime(settings: Settings) -> str:
    from aerodrome.app.launch import try_runtime

    seconds = await try_runtime(settings)
    return f"started and took a turn in {seconds:.1f} s"
