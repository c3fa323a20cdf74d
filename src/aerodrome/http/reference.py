"""`python -m aerodrome.http.reference > docs/http.md`: the HTTP reference, from the OpenAPI document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from aerodrome.http.api import routes_only
from aerodrome.http.problems import MEDIA_TYPE, PROBLEMS

_Json = dict[str, Any]


def render(document: _Json) -> str:
    """The page in Markdown."""
    lines: list[str] = [
        "# HTTP reference",
        "",
        "<!-- Written by `python -m aerodrome.http.reference`; change the routes, not this page. -->",
        "",
        document["info"]["description"].strip(),
        "",
        "The same in machine-readable form, with a schema for every body: `GET /openapi.json`.",
        "",
        *_error_table(),
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += ["", f"## {method.upper()} {path}", "", *_operation(operation, document)]
    lines += ["", "## Objects", "", *_objects(document)]
    return "\n".join(lines).rstrip() + "\n"


def _error_table() -> Iterator[str]:
    yield "## Errors"
    yield ""
    yield "| code | status | retryable | for example |"
    yield "|---|---|---|---|"
    for code, kind in PROBLEMS.items():
        yield f"| `{code}` | {kind.status} | {'yes' if kind.retryable else 'no'} | {kind.example} |"
    yield ""
    yield "A wrong method on a known route is `invalid` with status 405."


def _operation(operation: _Json, document: _Json) -> Iterator[str]:
    yield operation["description"]
    if parameters := operation.get("parameters"):
        yield ""
        yield "| parameter | in | type | |"
        yield "|---|---|---|---|"
        for parameter in parameters:
            schema = parameter["schema"]
            name, where = parameter["name"], parameter["in"]
            yield f"| `{name}` | {where} | {_type(schema)} | {parameter.get('description', '')}{_bounds(schema)} |"
    if body := operation.get("requestBody"):
        schema = body["content"]["application/json"]["schema"]
        yield ""
        yield f"Body: {_type(schema)}{'' if body.get('required') else ' (optional)'}"
        for model in _referred(schema):
            for example in document["components"]["schemas"][model].get("examples", ()):
                yield from _block("json", json.dumps(example, indent=2))
    yield ""
    errors = []
    for status, response in operation["responses"].items():
        content = response.get("content", {})
        if MEDIA_TYPE in content:
            errors += [f"{code} ({status})" for code in response["description"].split(", ")]
            continue
        yield f"**{status}** {response['description']}"
        for media_type, body in content.items():
            yield from _success_example(media_type, body, document)
        yield ""
    if errors:
        yield f"Errors: {', '.join(errors)}"


def _success_example(media_type: str, body: _Json, document: _Json) -> Iterator[str]:
    yield ""
    yield f"`{media_type}`: {_type(body['schema'])}"
    examples = [body["example"]] if "example" in body else []
    for model in _referred(body["schema"]) if not examples else ():
        examples += document["components"]["schemas"][model].get("examples", ())
    for example in examples:
        if isinstance(example, str):
            yield from _block("text", example.rstrip())
        else:
            yield from _block("json", json.dumps(example, indent=2))


def _objects(document: _Json) -> Iterator[str]:
    for name, schema in sorted(document["components"]["schemas"].items()):
        if "properties" not in schema or name.startswith("_"):
            continue  # a base class is no object of its own
        yield f"### {name}"
        yield ""
        yield "| field | type | |"
        yield "|---|---|---|"
        required = schema.get("required", ())
        for field, value in schema["properties"].items():
            note = _description(value)
            if field not in required:
                note = f"Optional. {note}".strip()
            yield f"| `{field}` | {_type(value)} | {note}{_bounds(value)} |"
        yield ""
    for name, schema in sorted(document["components"]["schemas"].items()):
        if "enum" in schema:
            yield f"### {name}"
            yield ""
            yield f"One of {', '.join(f'`{value}`' for value in schema['enum'])}."
            yield ""


def _description(schema: _Json) -> str:
    """Its own, or that of the type that it is if it is not null."""
    found: list[str] = [option.get("description", "") for option in (schema, *schema.get("anyOf", ()))]
    return next(filter(None, found), "")


def _type(schema: _Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(_type(option) for option in schema[union])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", "any"))


def _bounds(schema: _Json) -> str:
    """The limits of a value, as a suffix of its description."""
    keys = ("minimum", "maximum", "minLength", "maxLength", "maxItems")
    found: _Json = {}
    for option in (schema, *schema.get("anyOf", ())):
        found |= {key: option[key] for key in keys if key in option}
    parts = [f"{key} {value}" for key, value in found.items()]
    if schema.get("default") is not None:
        parts.append(f"default `{json.dumps(schema['default'])}`")
    return f" ({', '.join(parts)})" if parts else ""


def _referred(schema: _Json) -> list[str]:
    options = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return [option["$ref"].rsplit("/", 1)[1] for option in options if "$ref" in option]


def _block(language: str, text: str) -> Iterator[str]:
    yield ""
    yield f"```{language}"
    yield text
    yield "```"


if __name__ == "__main__":
    sys.stdout.write(render(routes_only().openapi()))
