"""The three places settings come from: a TOML file, `AERODROME_*` variables, flags.

Each is read into a `Layer`: a nested dictionary as the models want it, and for each key the place where it was
written, so that whatever is wrong with a value can be said with file and line.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel

from aerodrome.errors import ConfigError

PREFIX = "AERODROME_"
#: Variables with our prefix that are no settings.
NOT_SETTINGS = frozenset({"AERODROME_CACHE_DIR"})
#: What Kubernetes puts into every container of a namespace that has a service called aerodrome or aerodrome-*.
_SERVICE_LINK = re.compile(r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)")

KeyPath = tuple[str, ...]


@dataclass(slots=True)
class Layer:
    """What one source says. `origins` maps the path of a key to where it stands, such as `aerodrome.toml:12`."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def put(self, path: KeyPath, value: Any, origin: str) -> None:
        table = self.values
        for key in path[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{origin}: {'.'.join(path)} is set here, and {key} as a whole elsewhere")
        table[path[-1]] = value
        self.origins[path] = origin


def read_file(path: Path) -> Layer:
    """The settings of a TOML file.

    Raises:
        ConfigError: It can not be read, or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: can not be read: {error.strerror}") from None
    # TOML ends lines with LF or CRLF; `splitlines` would also split at the separators that text may contain.
    text = text.replace("\r\n", "\n")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_error(path, str(error))) from None
    origins = {key: f"{path}:{line}" for key, line in key_lines(text).items()}
    return Layer(values, origins)


def _syntax_error(path: Path, message: str) -> str:
    if match := re.search(r" \(at line (\d+), column (\d+)\)$", message):
        return f"{path}:{match[1]}: not valid TOML, at column {match[2]}: {message[: match.start()]}"
    return f"{path}: not valid TOML: {message}"


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line on which each key and table of a *valid* TOML document starts.

    The standard library's parser keeps no positions. A statement ends where the lines since its start parse by
    themselves: no proper part of one does, because it leaves a bracket or a string open.
    """
    lines = text.split("\n")
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    start = 0
    for end in range(1, len(lines) + 1):
        try:
            statement = tomllib.loads("\n".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
        paths = list(_paths(statement))
        if lines[start].lstrip().startswith("["):
            table = paths[-1]
            for length in range(1, len(table) + 1):
                found.setdefault(table[:length], start + 1)
        else:
            for path in paths:
                found.setdefault(table + path, start + 1)
        start = end
    return found


def _paths(value: Any, prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key in nested tables; for a table header, `[a.b]` or `[[a.b]]`, the last one is the table itself."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*prefix, key)
            yield from _paths(inner, (*prefix, key))


def read_environment(env: Mapping[str, str], model: type[BaseModel]) -> Layer:
    """`AERODROME_SECTION__KEY` variables. Names of sections and keys are matched without regard to case; what
    follows in a table of free names (`AERODROME_RUNTIME__ENV__HTTP_PROXY`) is taken as it is written.
    """
    layer = Layer()
    for name in sorted(env):
        rest = name.removeprefix(PREFIX)
        if rest == name or name in NOT_SETTINGS or _SERVICE_LINK.fullmatch(rest):
            continue
        path, annotation = _setting_path(rest, model)
        layer.put(path, _decode(env[name], annotation), name)
    return layer


def _setting_path(rest: str, model: type[BaseModel]) -> tuple[KeyPath, Any]:
    """The path of a variable, and the type found there (``None`` where the models end)."""
    path: list[str] = []
    here: Any = model
    for part in rest.split("__"):
        if isinstance(here, type) and issubclass(here, BaseModel):
            key = part.lower()
            known = here.model_fields.get(key)
            here = known.annotation if known else None
        else:
            key, here = part, here.__args__[1] if get_origin(here) is dict else None
        path.append(key)
    return tuple(path), here


def _decode(text: str, annotation: Any) -> Any:
    """A variable's text for a list or table: JSON, TOML, or for lists names with commas between them."""
    kind = get_origin(annotation)
    if kind not in (list, dict):
        return text
    for parse in (json.loads, lambda value: tomllib.loads(f"value = {value}")["value"]):
        try:
            return parse(text)
        except ValueError:
            continue
    return [part.strip() for part in text.split(",") if part.strip()] if kind is list else text


def read_overrides(overrides: Mapping[str, Any]) -> Layer:
    """Flags, by dotted name: `{"server.http": "127.0.0.1:0"}`. ``None`` is a flag that was not given."""
    layer = Layer()
    for name, value in overrides.items():
        if value is not None:
            layer.put(tuple(name.split(".")), value, "command line")
    return layer


def merge(layers: list[Layer]) -> Layer:
    """The layers in one, later ones over earlier ones, key by key."""
    result = Layer()
    for layer in layers:
        _merge_into(result.values, layer.values)
        result.origins.update(layer.origins)
    return result


def _merge_into(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        present = target.get(key)
        if isinstance(value, dict):
            inner = present if isinstance(present, dict) else {}
            target[key] = inner
            _merge_into(inner, value)
        else:
            target[key] = value
