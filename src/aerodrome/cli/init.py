"""`aerodrome init`: a configuration file to start from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aerodrome.cli.console import say
from aerodrome.config.load import FILE_NAME
from aerodrome.config.reference import template
from aerodrome.errors import ConfigError

_NEXT = """\
Wrote {path}: every setting, commented out. Next:
  1. set [provider] in it: where models come from
  2. aerodrome runtime install
  3. aerodrome keys create --tenant acme --user alice
  4. aerodrome serve"""


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path(FILE_NAME),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a configuration file with every setting explained."""
    # Only for the owner: people put secrets into it, whatever its comments say. Exclusive creation leaves no
    # moment between a check and the write in which a file of somebody else could be lost.
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    made = False
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            made = not force
            file.write(template())
    except FileExistsError:
        raise ConfigError(f"{path} exists; --force replaces it") from None
    except OSError as error:
        if made:
            # Half of it would stand in the way of the next try, and might be taken for the whole.
            path.unlink(missing_ok=True)
        raise ConfigError(f"{path} can not be written: {error.strerror}") from None
    say(_NEXT.format(path=path))
