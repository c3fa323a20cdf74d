"""How the commands print: results on standard output, everything else on standard error.

What is printed may have been written by anybody, such as the title of a session. A terminal would obey the control
characters in it, so they are spelt.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNLIMITED = 10_000
#: Controls, halves of characters, and what turns the direction of writing about.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, keep: str = "") -> str:
    """The text with control characters but those of `keep` as an escape sequence, such as ``\\x1b``."""
    return _CONTROL.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode("ascii"), text
    )


def out() -> Console:
    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A result, as it is: what looks like markup in it (a path, a name) is text."""
    out().print(printable(text, keep="\n"), markup=False)


def note(text: str, style: str = "dim") -> None:
    """Something beside the result."""
    err().print(Text(printable(text, keep="\n"), style=style))


def complain(text: str) -> None:
    message = Text("error: ", style="bold red")
    err().print(message.append(Text(printable(text, keep="\n"), style="default not bold")))


def print_json(value: Any) -> None:
    """For programs: one document, and no colours whatever standard output is."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Half a character, which a user has sent, can only be spelt, and so can what the encoding here does not have.
    text = _CONTROL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    sys.stdout.write(text + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(Text("-" if cell in (None, "") else printable(str(cell))) for cell in row))
    # As wide as it is: a narrow terminal breaks the lines. Cut off, an id or a finding would be of no use.
    Console(highlight=False, width=_UNLIMITED).print(table)


def moment(unix_seconds: float | None) -> str:
    """Local time, to the second."""
    if unix_seconds is None:
        return "-"
    return datetime.fromtimestamp(unix_seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
