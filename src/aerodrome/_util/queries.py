"""SQL in files of named blocks: a line ``-- name: what_it_is_called``, then the statement."""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_queries(package: str, file: str) -> dict[str, str]:
    """The statements of a file that lies in `package`, by name; what comes before the first name is for readers."""
    _, *blocks = _NAME.split(resources.files(package).joinpath(file).read_text(encoding="utf-8"))
    names, statements = blocks[::2], blocks[1::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{file}: a name is used twice")
    return dict(zip(names, (statement.strip().rstrip(";") for statement in statements), strict=True))
