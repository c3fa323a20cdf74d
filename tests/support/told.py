"""A meter that remembers what it was told."""

from __future__ import annotations

from typing import Any

from aerodrome.telemetry.meter import EndedTurn, Meter


class Told(Meter):
    on = True

    def __init__(self) -> None:
        #: Names of what happened, in order.
        self.events: list[str] = []
        self.turns: list[EndedTurn] = []

    def __getattribute__(self, name: str) -> Any:
        if name in vars(Meter) and not name.startswith("_") and name not in ("on", "turn_ended"):
            return lambda *_, **__: self.events.append(name)
        return super().__getattribute__(name)

    def turn_ended(self, turn: EndedTurn) -> None:
        self.events.append("turn_ended")
        self.turns.append(turn)
