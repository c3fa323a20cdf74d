"""What a JSON value must look like to be passed on. Pure.

A shape takes a value and its path, and returns what is passed on or raises `Denied`. What a value does not need to say
is dropped: a field that nobody knows is dropped when it is empty and refused otherwise, because nobody knows what a
later runtime makes of it.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

#: Values in messages are cut to this length, in characters.
_QUOTE = 60
# Never writes out more of a value than that, however large it is.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _QUOTE
_LONGEST = 600


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the client is told: what was refused, why, and what to do instead."""

    reason: str
    #: `forbidden`, or `invalid` when the request is not one that any profile would allow.
    code: str = "forbidden"


class Denied(Exception):
    """Carries a `Refusal` out of a nested value."""

    def __init__(self, reason: str, code: str = "forbidden") -> None:
        super().__init__(reason)
        # Names of fields are the client's, and may be long.
        self.refusal = Refusal(reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}...", code)


Shape: TypeAlias = Callable[[Any, str], Any]


def is_empty(value: Any) -> bool:
    """It asks for nothing: absent, null, false, or without content. Zero is a value."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def quoted(value: Any) -> str:
    text = _SHORT.repr(value)
    return text if len(text) <= _QUOTE else f"{text[:_QUOTE]}..."


def anything(value: Any, path: str) -> Any:
    return value


def boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise Denied(f"`{path}` is {quoted(value)}; expected true or false", "invalid")
    return value


def number(value: Any, path: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Denied(f"`{path}` is {quoted(value)}; expected a number", "invalid")
    return value


def text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise Denied(f"`{path}` is {quoted(value)}; expected a text", "invalid")
    return value


def mapping(value: Any, path: str) -> dict[str, Any]:
    """Any object, as it is: its content is not interpreted by the runtime."""
    if not isinstance(value, dict):
        raise Denied(f"`{path}` is {quoted(value)}; expected an object", "invalid")
    return value


def matching(pattern: str, what: str) -> Shape:
    compiled = re.compile(pattern)

    def check(value: Any, path: str) -> str:
        if not compiled.fullmatch(text(value, path)):
            raise Denied(f"`{path}` is {quoted(value)}; expected {what}", "invalid")
        return str(value)

    return check


def one_of(*values: str, otherwise: str = "") -> Shape:
    """One of these texts. `otherwise` says why a value that the protocol has is not among them."""

    def check(value: Any, path: str) -> str:
        if value not in values:
            code = "forbidden" if otherwise else "invalid"
            reason = f"; {otherwise}" if otherwise else ""
            raise Denied(f"`{path}` is {quoted(value)}; expected {' or '.join(values)}{reason}", code)
        return str(value)

    return check


def list_of(shape: Shape) -> Shape:
    def check(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise Denied(f"`{path}` is {quoted(value)}; expected a list", "invalid")
        return [shape(item, f"{path}[{index}]") for index, item in enumerate(value)]

    return check


def table_of(shape: Shape) -> Shape:
    def check(value: Any, path: str) -> dict[str, Any]:
        return {key: shape(item, f"{path}.{key}") for key, item in mapping(value, path).items()}

    return check


def record(known: Mapping[str, Shape], *, refused: Mapping[str, str] | None = None, nulls: bool = False) -> Shape:
    """An object of which these fields are passed on.

    Args:
        known: Their shapes.
        refused: What to say of other fields, where there is more to say.
        nulls: Whether null is passed on; some methods take it for "reset this".
    """

    def check(value: Any, path: str) -> dict[str, Any]:
        passed = {}
        for name, item in mapping(value, path).items():
            here = f"{path}.{name}" if path else name
            if name in known:
                if item is not None:
                    passed[name] = known[name](item, here)
                elif nulls:
                    passed[name] = None
            elif not is_empty(item):
                why = (refused or {}).get(name, "not a field that is passed on here; leave it out")
                raise Denied(f"`{here}`: {why}")
        return passed

    return check


def fields(shape: Shape, *names: str) -> dict[str, Shape]:
    """Several fields of one shape, for `record`."""
    return dict.fromkeys(names, shape)


texts: Shape = list_of(text)
