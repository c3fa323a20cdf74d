"""What can be set, told from the models: `docs/settings.md` and the file that `aerodrome init` writes.

python -m aerodrome.config.reference > docs/settings.md
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aerodrome.config.settings import Settings
from aerodrome.config.sources import PREFIX
from aerodrome.config.types import Kind

_INTRODUCTION = """\
# Settings

<!-- Made from the models by `python -m aerodrome.config.reference > docs/settings.md`; edit those. -->

Settings come from `aerodrome.toml` (the file given with `--config`; else `./aerodrome.toml`; else
`$XDG_CONFIG_HOME/aerodrome/aerodrome.toml`), then from environment variables `AERODROME_SECTION__KEY`, then from
flags; later ones win. `aerodrome init` writes a file with all of them. A setting that is unknown or wrong stops the
start; the message names file and line, and lists every problem.

- A **duration** is a text with units: `"500ms"`, `"30s"`, `"1h30m"`, `"30d"`. A bare number is seconds.
- A **size** is a text with a unit: `"512KiB"`, `"64MiB"`, `"1.5GB"`. A bare number is bytes.
- A **secret** is the secret itself, or better a reference to it: `"env:NAME"`, `"file:PATH"`, `"vault:PATH#KEY"` or
  `"command:PROGRAM ARG..."` ([secrets](secrets.md)).
- A **list** in an environment variable is names with commas between them, or JSON; a **table** is JSON, or one
  variable for each key, with the key's own spelling: `AERODROME_RUNTIME__ENV__HTTPS_PROXY`.
- Paths may start with `~`; relative ones start at the working directory.

`AERODROME_CACHE_DIR` is no setting: it moves the directory into which `aerodrome runtime install` puts the Copilot
CLI (default: `$XDG_CACHE_HOME/aerodrome`).
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting. `default` and `example` are TOML text; a setting without a default has an example."""

    section: str
    key: str
    type: str
    description: str
    default: str | None
    default_text: str | None
    example: str

    @property
    def variable(self) -> str:
        return f"{PREFIX}{self.section}__{self.key}".upper()


def entries(section: str) -> Iterator[Entry]:
    """The settings of one section, in the order of its class."""
    model = Settings.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    for key, info in model.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        default_text = extra.get("default_text")
        default = None if default_text else _default(info)
        yield Entry(
            section=section,
            key=key,
            type=_type_name(_annotated(info)),
            description=info.description or "",
            default=default,
            default_text=str(default_text) if default_text else None,
            example=str(extra.get("example", default)),
        )


def markdown() -> str:
    """The reference page."""
    parts = [_INTRODUCTION]
    for section, info in Settings.model_fields.items():
        parts.append(f"\n## [{section}]\n\n{info.description}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        parts.extend(_row(entry) for entry in entries(section))
    return "\n".join(parts) + "\n"


def _row(entry: Entry) -> str:
    default = entry.default_text or (f"`{entry.default}`" if entry.default is not None else "none")
    cells = [f"`{entry.key}`<br>`{entry.variable}`", entry.type, default, entry.description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def template() -> str:
    """An `aerodrome.toml` in which everything is commented out: `# ` begins prose, `#` alone a setting."""
    lines = [
        "# Configuration of Aerodrome. Every setting is here, commented out, with its default or an example.",
        "# Environment variables (AERODROME_SECTION__KEY) and flags override what is set here.",
    ]
    for section, info in Settings.model_fields.items():
        lines += ["", "", f"# {info.description}", f"[{section}]"]
        for entry in entries(section):
            lines += ["", *_comment(f"{entry.description} ({_plain(entry)})"), f"#{entry.key} = {entry.example}"]
    return "\n".join(lines) + "\n"


def _plain(entry: Entry) -> str:
    default = entry.default_text or entry.default or "none"
    return entry.type if default == entry.example else f"{entry.type}; default: {default}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=110,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _annotated(info: FieldInfo) -> Any:
    """The type with the `Kind` that pydantic has moved from the annotation to the field."""
    kinds = [item for item in info.metadata if isinstance(item, Kind)]
    return Annotated[info.annotation, kinds[0]] if kinds else info.annotation


def _kind(annotation: Any) -> Kind | None:
    if get_origin(annotation) is not Annotated:
        return None
    found = next((item for item in annotation.__metadata__ if isinstance(item, Kind)), None)
    return found or _kind(annotation.__origin__)


def _type_name(annotation: Any) -> str:
    if kind := _kind(annotation):
        return kind.name
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{_toml(choice)}`" for choice in arguments)
    if origin is list:
        return f"list of {_type_name(arguments[0])}s"
    if origin is dict:
        return f"table of {_plural(_type_name(arguments[1]))} by {_type_name(arguments[0])}"
    if type(None) in arguments:
        return _type_name(next(argument for argument in arguments if argument is not type(None)))
    return _class_name(annotation)


def _class_name(annotation: type) -> str:
    if issubclass(annotation, StrEnum):
        return " or ".join(f"`{_toml(choice)}`" for choice in annotation)
    if issubclass(annotation, BaseModel):
        return "table"
    return {bool: "true or false", int: "number", float: "number", str: "text"}[annotation]


def _plural(name: str) -> str:
    return f"{name}s" if name.isalpha() else name


def _default(info: FieldInfo) -> str | None:
    """The default as it is written in TOML; ``None`` when there is none."""
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return None
    kind = _kind(_annotated(info))
    return kind.write(value) if kind and kind.write is not str else _toml(value)


def _toml(value: Any) -> str:
    if value == {}:
        return "{}"
    # TOML's strings, numbers, booleans and lists of those are written as in JSON.
    return json.dumps(value)


if __name__ == "__main__":
    sys.stdout.write(markdown())
