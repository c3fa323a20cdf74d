"""`aerodrome top`: a fleet at work, as its nodes tell it with their heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.live import Live

from aerodrome.cli.administration import administration
from aerodrome.cli.console import out, print_json
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.cli.top_view import screen, trouble
from aerodrome.config import Settings, load_settings
from aerodrome.errors import StoreUnavailable

if TYPE_CHECKING:
    from aerodrome.operators.administration import Administration


def top(
    once: Annotated[bool, typer.Option("--once", help="Print it once, and end.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="With --json: a line of JSON every so often.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Between two looks.")] = 1.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show nodes, tenants and runtimes at work, and refresh it every second; q or Ctrl-C ends it.

    It asks the coordination store alone and so works from any machine with the configuration. WAIT is how long turns
    have lately waited for a place, in seconds. Without a terminal it is printed once.
    """
    if watch and not as_json:
        raise typer.BadParameter("goes with --json", param_hint="--watch")
    settings = load_settings(config, resolve_secrets=False)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            asyncio.run(_print_json(settings, interval if watch else None))
        elif once or not sys.stdout.isatty():
            asyncio.run(_print_once(settings))
        else:
            asyncio.run(_live(settings, interval))


async def _print_json(settings: Settings, interval: float | None) -> None:
    async with administration(settings) as operators:
        if interval is None:
            print_json(await operators.snapshot())
            return
        while True:
            sys.stdout.write(json.dumps(await operators.snapshot(), ensure_ascii=False) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(interval)


async def _print_once(settings: Settings) -> None:
    async with administration(settings) as operators:
        out().print(screen(await operators.snapshot(), rows=None))


async def _live(settings: Settings, interval: float) -> None:
    console = out()
    with _quit_key() as quit_asked, Live(console=console, screen=True, auto_refresh=False) as live:
        async with administration(settings) as operators:
            while not quit_asked.is_set():
                live.update(await _look(operators, console.size.height), refresh=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval):
                        await quit_asked.wait()


async def _look(operators: Administration, height: int) -> RenderableType:
    try:
        return screen(await operators.snapshot(), rows=height)
    except StoreUnavailable as error:
        return trouble(error.detail)  # it may come back


@contextmanager
def _quit_key() -> Iterator[asyncio.Event]:
    """Is set when q is pressed. Keys are read as they come, and not shown, until the terminal is given back."""
    asked = asyncio.Event()
    if not sys.stdin.isatty():
        yield asked
        return
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def read() -> None:
        pressed = os.read(fd, 64)
        if not pressed or b"q" in pressed.lower():
            loop.remove_reader(fd)
            asked.set()

    tty.setcbreak(fd)
    loop.add_reader(fd, read)
    try:
        yield asked
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
