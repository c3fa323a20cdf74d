"""What every table of `aerodrome.toml` has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

MIB = 1 << 20


def written(text: object) -> str:
    return f'"{text}"'


class Section(BaseModel):
    """A table of the file. Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


def broken_rule(*path: str, message: str) -> PydanticCustomError:
    """A rule over several settings that does not hold; `path` is the setting to point at, from the class on."""
    # A custom error's message is a template: the text goes in as a value, so that braces in it stay as they are.
    return PydanticCustomError("rule", "{message}", {"message": message, "path": path})
