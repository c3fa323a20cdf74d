"""What is wrong with a configuration, said so that it can be mended: place, key, value, what is expected, and
what was probably meant.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from aerodrome.config.sources import PREFIX, KeyPath
from aerodrome.config.types import mask_passwords

#: Messages of pydantic for which there are plainer words here.
_PLAIN = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "string_type": "expected a text in quotes",
    "list_type": 'expected a list such as ["a", "b"]',
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "path_type": "expected a path",
    "string_too_short": "expected a text that is not empty",
}


def describe(error: ValidationError, model: type[BaseModel], origins: Mapping[KeyPath, str]) -> list[str]:
    """One line for each problem, in the order of the sections."""
    return [_line(details, model, origins) for details in error.errors(include_url=False)]


def _line(details: ErrorDetails, model: type[BaseModel], origins: Mapping[KeyPath, str]) -> str:
    path = tuple(str(part) for part in details["loc"] if part != "[key]")
    value = details["input"]
    if details["type"] == "rule":
        value = _at(value, details["ctx"]["path"])
        path += details["ctx"]["path"]
    place = _place(path, origins)
    if details["type"] == "extra_forbidden":
        return f"{place}: {_unknown(path, model, place)}"
    name = _name(path)
    # What is missing has no value; what it is missing in may hold a secret.
    hidden = value is None or details["type"] == "missing" or _is_secret(path, model)
    shown = "" if hidden else f" = {_written(value)}"
    return f"{place}: {name}{shown}: {_expected(details)}{_meant(value, details)}"


def _name(path: Iterable[str]) -> str:
    """`runtime.attach[0].weight`."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(path))


def _place(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    """Where the key was written, or the nearest table around it, or (a table made of variables) a key in it."""
    for length in range(len(path), 0, -1):
        if origin := origins.get(path[:length]):
            return origin
        for key, origin in origins.items():
            if key[:length] == path[:length]:
                return origin
    return "configuration"


def _expected(details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in ("enum", "literal_error"):
        return "expected " + str(context["expected"]).replace("'", '"')
    if kind in _PLAIN:
        return _PLAIN[kind]
    return re.sub(r"^Input should be ", "expected ", details["msg"])


def _meant(value: Any, details: ErrorDetails) -> str:
    choices = re.findall(r"'([^']*)'", str(details.get("ctx", {}).get("expected", "")))
    return _suggestion(value, choices) if isinstance(value, str) else ""


def _suggestion(word: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def _unknown(path: KeyPath, model: type[BaseModel], place: str) -> str:
    """A key that no model has. Its value is not shown: it may be a secret under a misspelt name."""
    *above, key = path
    fields = list(_model_at(tuple(above), model).model_fields)
    if above:
        text = f'there is no setting "{key}" in {_name(above)}'
        # A table inside a section is hardly the wrong heading.
        guesses = (_elsewhere(key, model), _suggestion(key, fields))
        meant = next(filter(None, guesses if len(above) == 1 else reversed(guesses)), "")
        meant = meant or f"; expected one of {', '.join(fields)}"
    else:
        text = f'there is no section "{key}"'
        meant = _suggestion(key, fields) or _elsewhere(key, model) or f"; expected one of {', '.join(fields)}"
    close = difflib.get_close_matches(key.lower(), fields, n=1, cutoff=0.6)
    if close and place.startswith(PREFIX):
        parts = place.removeprefix(PREFIX).split("__")
        parts[len(above)] = close[0].upper()
        meant += f" ({PREFIX}{'__'.join(parts)})"
    return text + meant


def _elsewhere(key: str, model: type[BaseModel]) -> str:
    """A setting of exactly this name in other sections: the key was written under the wrong heading."""
    sections = [name for name in model.model_fields if key in _model_at((name,), model).model_fields]
    return "; did you mean " + " or ".join(f'"{name}.{key}"' for name in sections) + "?" if sections else ""


def _model_at(path: KeyPath, model: type[BaseModel]) -> type[BaseModel]:
    here: Any = model
    for key in path:
        is_table = isinstance(here, type) and issubclass(here, BaseModel)
        here = here.model_fields[key].annotation if is_table else _inside(here)
    assert isinstance(here, type)
    assert issubclass(here, BaseModel)
    return here


def _inside(here: Any) -> Any:
    """The type of what is in a table of free names, or in a list."""
    found = here.__args__[1] if get_origin(here) is dict else here.__args__[0]
    return found.__origin__ if get_origin(found) is Annotated else found


def _is_secret(path: KeyPath, model: type[BaseModel]) -> bool:
    """Whether the value at this path must not be printed: secrets, and what is handed to the runtimes."""
    here: Any = model
    for key in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            info = here.model_fields.get(key)
            if info is None or not info.repr:
                return True
            here = info.annotation
        elif get_origin(here) in (dict, list):
            here = _inside(here)
    return "SecretStr" in str(here) or here is SecretStr


def _at(value: Any, path: Iterable[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _written(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        text = repr(value)
    text = mask_passwords(text)
    return text if len(text) <= 80 else text[:77] + "..."
