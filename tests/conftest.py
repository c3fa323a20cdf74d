from __future__ import annotations

from hypothesis import settings

# Other work on the machine must not fail a property; pytest-timeout ends what hangs.
settings.register_profile("aerodrome", deadline=None)
settings.load_profile("aerodrome")
