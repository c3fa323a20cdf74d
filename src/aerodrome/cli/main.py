"""The `aerodrome` command: its verbs, and how it ends.

Exit codes: 0 done, 1 failed, 2 wrong usage. A failure is one message on standard error; with `--debug` the
traceback comes before it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Annotated

import typer

import aerodrome
from aerodrome.cli import (
    backup,
    bench,
    checkup,
    console,
    demo,
    doctor,
    init,
    keys,
    migrate,
    nodes,
    plan,
    runtime,
    runtimes,
    serve,
    sessions,
    top,
)
from aerodrome.errors import AerodromeError
from aerodrome.observability.logging import configure_logging
from aerodrome.runtime.release import PINNED

# Typer's own tracebacks would cut the frames in which a fault is.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


@dataclass(slots=True)
class _Options:
    debug: bool = False


def _print_version(wanted: bool) -> None:
    if wanted:
        console.say(f"aerodrome {aerodrome.__version__} (Copilot CLI {PINNED.version})")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Host GitHub Copilot CLI servers for many users: isolated, durable, fail-over included."""
    context.ensure_object(_Options).debug = debug
    # Before anything is logged: unconfigured, it would go to standard output, where results go.
    configure_logging("warning", "auto")


app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("init")(init.init)
app.command("migrate")(migrate.migrate)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("top")(top.top)
app.command("plan")(plan.planning)
app.command("bench")(bench.bench)
app.add_typer(keys.app, name="keys")
sessions.app.command("check")(checkup.check_sessions)
sessions.app.command("repair")(checkup.repair_sessions)
app.add_typer(sessions.app, name="sessions")
app.add_typer(runtimes.app, name="runtimes")
app.add_typer(nodes.app, name="nodes")
app.add_typer(runtime.app, name="runtime")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (without the program's name); ends with `SystemExit`."""
    options = _Options()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Names and titles have characters that a terminal of another encoding has not.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=arguments, prog_name="aerodrome", obj=options)
    except AerodromeError as error:
        if options.debug:
            traceback.print_exc()
        console.complain(error.detail)
        sys.exit(1)
    except OSError as error:
        # Something of the machine, such as a directory of somebody else, that nobody nearer has put into words.
        if options.debug:
            traceback.print_exc()
        console.complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)
