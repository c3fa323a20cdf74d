"""Which secrets a configuration has, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from aerodrome.config.secret_cells import Cell, LiveSecret
from aerodrome.config.types import StoreUrl


def cells_of(settings: BaseModel, path: str = "") -> Iterator[tuple[str, Cell]]:
    """Every setting that is a secret, or may hold one, with its name: `provider.tenants.acme.api_key`."""
    for name in type(settings).model_fields:
        yield from _cells(getattr(settings, name), f"{path}.{name}" if path else name)


def _cells(value: Any, path: str) -> Iterator[tuple[str, Cell]]:
    if isinstance(value, BaseModel):
        yield from cells_of(value, path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _cells(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _cells(inner, f"{path}[{number}]")
    elif isinstance(value, LiveSecret | StoreUrl) and value.cell is not None:
        yield path, value.cell
