"""How secrets are looked up that the settings refer to."""

from __future__ import annotations

from pydantic import Field

from aerodrome.config.section import Section
from aerodrome.config.types import Duration


class SecretSettings(Section):
    refresh: Duration = Field(
        default=60.0,
        gt=0,
        description="How often `vault:` and `command:` references are looked up again. Files are read again when they "
        "change.",
    )
    timeout: Duration = Field(
        default=10.0, gt=0, description="What Vault or a command gets for its answer, before the last good one is kept."
    )
