"""What the runtime says that a call of the model took (its event `assistant.usage`). Pure."""

from __future__ import annotations

from aerodrome._util.surrogates import replace_lone_surrogates
from aerodrome.events import SessionEvent
from aerodrome.telemetry.meter import ModelCall

#: Characters of a name that is anybody's choice.
_LONGEST = 100
#: What is more is no count of anything. Python's integers have no end, and its floats do.
_MOST = 1e15


def model_call_of(tenant: str, event: SessionEvent) -> ModelCall:
    """What is missing, or is another thing than we know, counts as nothing."""
    data = event.data
    return ModelCall(
        tenant=tenant,
        provider=_name(data.get("modelProvider")),
        model=_name(data.get("model")),
        input_tokens=int(_number(data.get("inputTokens")) or 0),
        output_tokens=int(_number(data.get("outputTokens")) or 0),
        seconds=_seconds(data.get("duration")),
    )


def _name(value: object) -> str:
    # Half a surrogate pair cannot be written, and with it none of the metrics could.
    return replace_lone_surrogates(value[:_LONGEST]) if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        return None
    return float(value)


def _seconds(milliseconds: object) -> float | None:
    number = _number(milliseconds)
    return None if number is None else number / 1e3
