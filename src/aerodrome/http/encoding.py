"""JSON in and out of the front door."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from fastapi import Response
from pydantic_core import from_json

from aerodrome.errors import Invalid
from aerodrome.wire.readable import excess_in

#: Fields of a request's object. None has ten, and each that is wrong is named in the answer.
_MAX_FIELDS = 100

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
        Invalid: It is not JSON in UTF-8, and the detail says where; or it would keep the event loop, and with it
            everybody, for as long as millions of values take.
    """
    if (excess := excess_in(body)) is not None:
        raise Invalid(f"the body has {excess}")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(f"the body is not valid JSON: {error}") from None
    if isinstance(value, dict) and len(value) > _MAX_FIELDS:
        raise Invalid(f"the body has more than {_MAX_FIELDS} fields")
    return value


class JsonResponse(Response):
    """A response of values msgspec can encode, without a model in between.

    The shapes are checked by the tests against the served OpenAPI document instead of on every request.
    """

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)
