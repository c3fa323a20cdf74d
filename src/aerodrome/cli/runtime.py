"""`aerodrome runtime`: the Copilot CLI binary on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from aerodrome._util.durations import format_size
from aerodrome._util.xdg import aerodrome_cache
from aerodrome.cli.console import err, note, print_json, say
from aerodrome.cli.options import ConfigOption, JsonOption
from aerodrome.config import load_settings
from aerodrome.runtime.binary import resolve
from aerodrome.runtime.download import Progress
from aerodrome.runtime.install import Installation, install
from aerodrome.runtime.release import PINNED, host_platform

app = typer.Typer(no_args_is_help=True, help="The Copilot CLI binary on this machine.")


@app.command("install")
def install_command(
    archive: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE.tgz",
            exists=True,
            dir_okay=False,
            help="The package as a file, instead of a download.",
        ),
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The npm registry; by default NPM_CONFIG_REGISTRY or what npm is configured with."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Install again, over what is there.")] = False,
) -> None:
    """Install the pinned Copilot CLI into the user's cache (about 200 MB)."""
    target = Installation(PINNED, host_platform(), aerodrome_cache())
    with _progress() as progress:
        installed = install(target, progress, archive=archive, registry=registry, force=force)
    done = "installed" if installed else "already installed"
    say(f"Copilot CLI {PINNED.version} for {target.platform} is {done}: {target.binary}")


@app.command("path")
def path_command(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the path of the binary that `aerodrome serve` would start."""
    settings = load_settings(config, resolve_secrets=False).runtime
    binary = resolve(settings.command, allow_version_mismatch=settings.allow_version_mismatch)
    if as_json:
        print_json({"path": str(binary.path), "source": str(binary.source), "version": binary.version})
    else:
        say(str(binary.path))


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal; elsewhere (a log of a build) a line now and then."""
    console = err()
    if not console.is_terminal:
        yield PlainProgress()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        yield BarProgress(bars)


class BarProgress:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task = bars.add_task("Copilot CLI", total=None, visible=False)

    def bytes(self, done: int, total: int | None) -> None:
        self._bars.update(self._task, completed=done, total=total, visible=True)

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False)


class PlainProgress:
    """One line at the start and one for each tenth, or each 16 MiB when the size is unknown."""

    def __init__(self) -> None:
        self._next = 0

    def bytes(self, done: int, total: int | None) -> None:
        if done < self._next:
            return
        step = max(1, total // 10) if total else 16 << 20
        self._next = done + step
        of = f" of {_megabytes(total)}" if total else ""
        note(f"Copilot CLI: {_megabytes(done)}{of}")

    def note(self, text: str) -> None:
        note(text)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1_000_000 else format_size(size)
