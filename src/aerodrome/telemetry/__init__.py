"""The port by which the parts of a node tell of their work: what is counted (`meter`) and what is traced (`trace`).

Everything here does nothing unless it is overridden: `observability` has the adapters, and `app` hands them out. A part
tells *what happened*, in the field's words; which metric, bucket or attribute that becomes is the adapter's business.
Nothing that is told contains prompts, answers, keys or file contents.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aerodrome.telemetry.meter import Meter, Traffic
from aerodrome.telemetry.trace import Tracer


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What is handed to the parts."""

    meter: Meter = field(default_factory=Meter)
    tracer: Tracer = field(default_factory=Tracer)
    #: Of the native gateway with its clients, and with runtimes and nodes in their name.
    client_traffic: Traffic = field(default_factory=Traffic)
    upstream_traffic: Traffic = field(default_factory=Traffic)


#: Nobody listens.
SILENT = Telemetry()

__all__ = ["SILENT", "Telemetry"]
