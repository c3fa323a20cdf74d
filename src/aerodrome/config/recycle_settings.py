"""When a Copilot CLI process is worn out: `runtime.recycle`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from aerodrome.config.section import MIB, Section
from aerodrome.config.types import ByteSize, Duration, Kind


def _times_slower(value: float) -> float:
    if 0 < value <= 1:
        raise ValueError("expected 0, or more than 1: so many times slower than in its youth")
    return value


class RecycleSettings(Section):
    """0 switches a limit off."""

    turns: int = Field(default=5000, ge=0)
    age: Duration = Field(default=86400.0, ge=0)
    memory: ByteSize = Field(default=2048 * MIB, ge=0)
    descriptors: int = Field(default=2000, ge=0)
    children: int = Field(default=100, ge=0)
    drift: Annotated[float, AfterValidator(_times_slower)] = Field(default=4.0, ge=0)
    interval: Duration = Field(default=15.0, gt=0)
    at_once: int = Field(default=1, ge=1)
    patience: Duration = Field(default=1800.0, ge=0)


def written(value: Any) -> str:
    """A table of settings as it is written in one line of TOML."""
    assert isinstance(value, Section)
    keys = []
    for key, info in type(value).model_fields.items():
        kind = next((item for item in info.metadata if isinstance(item, Kind)), None)
        text = getattr(value, key)
        keys.append(f"{key} = {kind.write(text) if kind else text}")
    return "{ " + ", ".join(keys) + " }"
