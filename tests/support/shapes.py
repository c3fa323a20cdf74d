"""The shape of JSON values: which fields there are and of which types, without what is in them.

A shape is JSON itself, made to be read. A scalar is the name of its type; an array has the shape of its items; a field
that not every object had is marked: ``{"id": "string", "data?": "null | string", "tags": ["string"]}``. Fields whose
names are ids of sessions or events count as one, `<id>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

#: Where one value may be of several kinds, not all of them scalar.
ANY_OF = "any of"
_ID = re.compile(r"(?:s-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class _Shape:
    """What a number of values have in common."""

    def __init__(self) -> None:
        self._scalars: set[str] = set()
        self._objects = 0
        self._fields: dict[str, _Shape] = {}
        #: In how many objects each field was.
        self._present: dict[str, int] = {}
        self._items: _Shape | None = None

    def add(self, value: Any) -> None:
        if isinstance(value, dict):
            self._objects += 1
            for field, item in value.items():
                name = "<id>" if _ID.fullmatch(field) else field
                self._fields.setdefault(name, _Shape()).add(item)
                self._present[name] = self._present.get(name, 0) + 1
        elif isinstance(value, list):
            self._items = self._items or _Shape()
            for item in value:
                self._items.add(item)
        else:
            self._scalars.add(_type_of(value))

    def render(self) -> Any:
        parts: list[Any] = [" | ".join(sorted(self._scalars))] if self._scalars else []
        if self._objects:
            parts.append({self._name(name): self._fields[name].render() for name in sorted(self._fields)})
        if self._items is not None:
            items = self._items.render()
            parts.append([] if items is None else [items])
        if len(parts) > 1:
            return {ANY_OF: parts}
        return parts[0] if parts else None

    def _name(self, name: str) -> str:
        return name if self._present[name] >= self._objects else f"{name}?"


def shape_of(values: Iterable[Any]) -> Any:
    """The one shape that all of them have; ``None`` of nothing."""
    shape = _Shape()
    for value in values:
        shape.add(value)
    return shape.render()


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case _:
            return "string"
