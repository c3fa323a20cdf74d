"""The OpenAPI document is true, complete, and the reference page says the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from aerodrome.http.api import routes_only
from aerodrome.http.encoding import encode
from aerodrome.http.problems import PROBLEMS
from aerodrome.http.reference import render
from support.http_front import Contract, Front, parse_events

DOCUMENT = routes_only().openapi()
PROBLEM = "application/problem+json"
REFERENCE = Path(__file__).parents[2] / "docs" / "http.md"


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


OPERATIONS = dict(operations())


def bodies(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "requestBody" in operation:
        yield "request", operation["requestBody"]["content"]["application/json"]
    for status, response in operation["responses"].items():
        for media_type, content in response.get("content", {}).items():
            yield f"{status} {media_type}", content


def examples(content: dict[str, Any]) -> list[Any]:
    found = [content["example"]] if "example" in content else []
    found += [example["value"] for example in content.get("examples", {}).values()]
    schema = content["schema"]
    for option in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if "$ref" in option and not content.keys() & {"example", "examples"}:
            name = option["$ref"].rsplit("/", 1)[1]
            found += DOCUMENT["components"]["schemas"][name].get("examples", ())
    return found


def test_the_routes_are_those_of_the_design() -> None:
    assert set(OPERATIONS) == {
        "GET /api/v1/admin/runtimes",
        "POST /api/v1/admin/runtimes/{runtime_id}/recycle",
        "POST /api/v1/admin/runtimes/{runtime_id}/drain",
        "GET /api/v1/admin/nodes",
        "POST /api/v1/admin/nodes/{name}/drain",
        "POST /api/v1/ask",
        "GET /api/v1/admin/servers",
        "POST /api/v1/admin/runtimes",
        "DELETE /api/v1/admin/runtimes/{address}",
        "POST /api/v1/admin/runtimes/{address}/undrain",
        "POST /api/v1/sessions",
        "GET /api/v1/sessions",
        "GET /api/v1/sessions/{session_id}",
        "PATCH /api/v1/sessions/{session_id}",
        "DELETE /api/v1/sessions/{session_id}",
        "POST /api/v1/sessions/{session_id}/messages",
        "GET /api/v1/sessions/{session_id}/messages",
        "GET /api/v1/sessions/{session_id}/events",
        "POST /api/v1/sessions/{session_id}/abort",
        "POST /api/v1/sessions/{session_id}/requests/{request_id}",
        "PUT /api/v1/sessions/{session_id}/members/{user}",
        "DELETE /api/v1/sessions/{session_id}/members/{user}",
        "GET /health",
        "GET /metrics",
        "GET /ready",
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_body_has_examples_and_they_are_valid(name: str) -> None:
    contract = Contract(DOCUMENT)
    for where, content in bodies(OPERATIONS[name]):
        found = examples(content)
        assert found, f"{name} {where} has no example"
        for example in found:
            contract.validate(content["schema"], example)
            if where.endswith("text/event-stream"):
                assert parse_events(example)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_errors_of_every_route_are_documented(name: str) -> None:
    responses = OPERATIONS[name]["responses"]
    assert "422" not in responses
    if name.startswith(("GET /health", "GET /ready")):
        assert "401" not in responses
        assert "security" not in OPERATIONS[name]
    else:
        assert {"401", "500"} <= set(responses)
        assert OPERATIONS[name]["security"] == [{"key": []}]
    for status, response in responses.items():
        for code, example in response.get("content", {}).get(PROBLEM, {}).get("examples", {}).items():
            assert example["value"]["code"] == code
            assert example["value"]["status"] == int(status) == PROBLEMS[code].status


def test_every_code_is_documented_somewhere() -> None:
    documented = {
        code
        for operation in OPERATIONS.values()
        for response in operation["responses"].values()
        for code in response.get("content", {}).get(PROBLEM, {}).get("examples", {})
    }
    assert documented == set(PROBLEMS)


def test_every_schema_is_a_schema_and_every_reference_leads_somewhere() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in references(DOCUMENT):
        assert reference.removeprefix("#/components/schemas/") in DOCUMENT["components"]["schemas"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_operation_ids_are_unique_names() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)
    assert all(name.isidentifier() for name in ids)


async def test_the_document_is_written_once(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has no key may ask for its hundred kilobytes as often as he likes."""
    written: list[Any] = []

    def write(value: Any) -> bytes:
        written.append(value)
        return encode(value)

    monkeypatch.setattr("aerodrome.http.api.encode", write)
    first, second = [await front.client.get("/openapi.json", headers={"Authorization": ""}) for _ in range(2)]
    assert first.headers["content-type"] == "application/json"
    assert first.json() == routes_only().openapi()
    assert first.content == second.content
    assert len(written) == 1


def test_the_reference_page_is_current() -> None:
    assert REFERENCE.read_text() == render(DOCUMENT), "run `python -m aerodrome.http.reference > docs/http.md`"


def test_the_reference_page_has_every_route_and_every_code() -> None:
    page = REFERENCE.read_text()
    for name in OPERATIONS:
        assert f"\n## {name}\n" in page
    for code, kind in PROBLEMS.items():
        assert f"| `{code}` | {kind.status} |" in page
