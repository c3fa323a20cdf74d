"""What is read out of the runtime's accounts of a model call."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aerodrome.events import SessionEvent
from aerodrome.observability.prometheus import Exposition, PrometheusMeter, new_registry
from aerodrome.sessions.usage import model_call_of
from aerodrome.telemetry.meter import ModelCall

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.just(10**400) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)


def usage(data: Any) -> SessionEvent:
    return SessionEvent("e1", "assistant.usage", json.dumps({"type": "assistant.usage", "data": data}).encode())


def test_a_call_is_read() -> None:
    said = {"model": "gpt-4.1", "modelProvider": "openai", "inputTokens": 12, "outputTokens": 3, "duration": 250}
    assert model_call_of("acme", usage(said)) == ModelCall("acme", "openai", "gpt-4.1", 12, 3, 0.25)


@given(
    st.dictionaries(
        st.sampled_from(["model", "modelProvider", "inputTokens", "outputTokens", "duration"]),
        JSON,
    )
)
def test_whatever_is_said_counts_as_something_or_nothing(data: dict[str, Any]) -> None:
    call = model_call_of("acme", usage(data))
    assert call.input_tokens >= 0
    assert call.output_tokens >= 0
    assert call.seconds is None or call.seconds >= 0
    assert len(call.model) <= 100


def test_half_a_character_in_a_name_does_not_make_all_metrics_unreadable() -> None:
    call = model_call_of("acme", usage({"model": "gpt\ud800", "modelProvider": "\udfff"}))
    assert (call.model, call.provider) == ("gpt\ufffd", "\ufffd")
    registry = new_registry()
    PrometheusMeter(registry).model_called(call)
    assert "gpt\ufffd" in Exposition(registry).exposition("")[0].decode()
