"""`python -m aerodrome.cli.reference > docs/cli.md`: the command line reference, from the commands themselves."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from aerodrome.cli.main import app

PROGRAM = "aerodrome"

_HEAD = f"""\
# Command line

<!-- Written by `python -m aerodrome.cli.reference > docs/cli.md`; change the commands, not this page. -->

`{PROGRAM}` has one verb for each job. Results go to standard output, everything else to standard error. Listings take
`--json`, which prints one document for programs.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 ended with Ctrl-C. A failure is one message on standard error.

The commands that take `--config` read the same settings as `serve` ([settings](settings.md)). Those about keys,
sessions, runtimes and nodes go to the stores themselves, those in `server.data_dir` or where `state.url` and
`coordination.url` say: they work beside a running server and without one, and ask for no API key. They need what the
server needs for that: the account that may use its files, and its way to the stores. Told another configuration than
the server has, they work on other stores.
"""

# Click's and Typer's own classes carry no common type, so the tree is walked as `Any`.
Command = Any


def render() -> str:
    """The page in Markdown."""
    root, context = _root()
    lines = [_HEAD, *_parameters(root, context)]
    for command, inner in commands():
        lines += _section(command, inner)
    return "\n".join(lines).rstrip() + "\n"


def commands() -> Iterator[tuple[Command, typer.Context]]:
    """Every command that does something, in the order of the help; its words are the context's `command_path`."""
    yield from _below(*_root())


def _root() -> tuple[Command, typer.Context]:
    root: Command = typer.main.get_command(app)
    return root, typer.Context(root, info_name=PROGRAM)


def _below(command: Command, context: typer.Context) -> Iterator[tuple[Command, typer.Context]]:
    for name, inner in command.commands.items():
        child = typer.Context(inner, info_name=name, parent=context)
        if inner.hidden:
            continue
        elif hasattr(inner, "commands"):
            yield from _below(inner, child)
        else:
            yield inner, child


def _section(command: Command, context: typer.Context) -> Iterator[str]:
    yield f"## {context.command_path}"
    yield ""
    yield "```text"
    yield " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield "```"
    yield ""
    yield inspect.cleandoc(command.help or "")
    yield ""
    yield from _parameters(command, context)


def _parameters(command: Command, context: typer.Context) -> Iterator[str]:
    """A table of arguments and options; nothing when there are none. `--help` is everywhere and stays out."""
    records = [parameter.get_help_record(context) for parameter in command.params if parameter.name != "help"]
    rows = [record for record in records if record is not None]
    if not rows:
        return
    yield "| argument or option | meaning |"
    yield "|---|---|"
    for name, meaning in rows:
        yield f"| {_code(name)} | {_cell(meaning)} |"
    yield ""


def _code(text: str) -> str:
    return f"`{text}`".replace("|", r"\|")


def _cell(text: str) -> str:
    """One line of a table. Two spaces stand before what Click appends (`[default: 100]`)."""
    return re.sub(r"\s+", " ", text).replace("|", r"\|").strip()


if __name__ == "__main__":
    sys.stdout.write(render())
