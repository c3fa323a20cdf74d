"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aerodrome.model import valid_name

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration; by default ./aerodrome.toml or the one in the user's configuration directory.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def check_name(value: str | None) -> str | None:
    """A callback for options that name a tenant or a user."""
    if value is not None and not valid_name(value):
        raise typer.BadParameter("up to 100 letters, digits and . _ @ -, the first a letter or digit")
    return value
