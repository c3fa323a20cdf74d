"""Writes docs/kubernetes-values.md from the chart's values.yaml and values.schema.json: each value, and what it does.

    .venv/bin/python scripts/chart_values.py > docs/kubernetes-values.md

A value is documented by the comment above it in values.yaml; its type comes from the schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "aerodrome"
_HEADER = """# Values of the chart

<!-- Made from deploy/helm/aerodrome by `python scripts/chart_values.py > docs/kubernetes-values.md`; edit that. -->

How they belong together is in [Kubernetes](kubernetes.md). A value that is unknown or of the wrong type is refused.

| value | type | default | meaning |
|---|---|---|---|
"""
_KEY = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<rest>.*)")
_INDENT = 2


class Value(NamedTuple):
    name: str
    type: str
    default: str
    meaning: str


def values() -> Iterator[Value]:
    """Every value of the chart that stands for itself, in the order of the file.

    Raises:
        ValueError: One has no comment, or is not in the schema.
    """
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    defaults = yaml.safe_load(text)
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
        elif (match := _KEY.match(line)) is not None:
            del path[len(match["indent"]) // _INDENT :]
            path.append(match["key"])
            kind = _schema_of(schema, path)
            if kind is not None and not _is_group(kind):
                if not comment:
                    raise ValueError(f"{'.'.join(path)}: no comment says what it does")
                yield Value(".".join(path), _type(kind), _default(defaults, path), " ".join(comment))
            comment = []
        else:
            comment = []


def leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every value that the schema knows."""
    if not _is_group(schema):
        yield ".".join(path)
        return
    for key, inner in schema["properties"].items():
        yield from leaves(inner, (*path, key))


def _is_group(schema: dict[str, Any]) -> bool:
    return "properties" in schema and schema.get("additionalProperties") is False


def _schema_of(schema: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    """``None`` for what is inside a value, such as a list's entry."""
    for number, key in enumerate(path):
        if not _is_group(schema):
            return None
        if key not in schema["properties"]:
            raise ValueError(f"{'.'.join(path[: number + 1])}: not in values.schema.json")
        schema = schema["properties"][key]
    return schema


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    kind = schema["type"]
    if isinstance(kind, list):
        kind = next(each for each in kind if each != "null")
    if kind == "array":
        return "list of texts" if schema["items"]["type"] == "string" else "list of tables"
    return {"string": "text", "integer": "number", "boolean": "true or false", "object": "table"}[kind]


def _default(defaults: Any, path: list[str]) -> str:
    for key in path:
        defaults = defaults[key]
    return "none" if defaults in (None, "") else f"`{json.dumps(defaults)}`"


def render() -> str:
    rows = [f"| `{each.name}` | {each.type} | {each.default} | {each.meaning} |" for each in values()]
    return _HEADER + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(render(), end="")
