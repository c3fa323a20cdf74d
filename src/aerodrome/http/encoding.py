"""JSON in and out of the front door."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from fastapi import Response
from pydantic_core import from_json

from aerodrome.errors import Invalid

_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """One line of JSON in UTF-8."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        # JavaScript strings, and so the runtime's texts, may hold half a surrogate pair. UTF-8 cannot say
        # that, but a JSON escape can, and the reader gets what the runtime said.
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def decode(body: bytes) -> Any:
    """The value of a request body.

    Raises:
        Invalid: It is not JSON in UTF-8; the detail says where.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(f"the body is not valid JSON: {error}") from None


class JsonResponse(Response):
    """A response of values msgspec can encode, without a model in between.

    The shapes are checked by the tests against the served OpenAPI document instead of on every request.
    """

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)
