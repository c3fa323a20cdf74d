from __future__ import annotations

from typing import Any

import pytest

from support.shapes import shape_of


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (["a"], "string"),
        ([1, 2.5], "number"),
        ([True, None], "boolean | null"),
        ([{"b": 1, "a": "x"}], {"a": "string", "b": "number"}),
        ([{"a": 1}, {"a": 2, "b": 3}], {"a": "number", "b?": "number"}),
        ([[1, 2]], ["number"]),
        ([[]], []),
        ([[{"a": 1}, {}]], [{"a?": "number"}]),
        ([None, {"a": 1}, []], {"any of": ["null", {"a": "number"}, []]}),
        (
            [{"8d5e8f3a-16c4-4d51-9b3b-6c0f6d7f3c55": 1, "s-8d5e8f3a-16c4-4d51-9b3b-6c0f6d7f3c56": 1}],
            {"<id>": "number"},
        ),
        ([], None),
    ],
)
def test_shapes(values: list[Any], shape: Any) -> None:
    assert shape_of(values) == shape
