"""How late the event loop is: everything in a node waits as long as that."""

from __future__ import annotations

import asyncio
import time

from aerodrome.telemetry.meter import Meter

#: Seconds between two looks.
_INTERVAL = 0.5


async def watch_loop(meter: Meter) -> None:
    """Tell the meter, for ever."""
    while True:
        planned = time.monotonic() + _INTERVAL
        await asyncio.sleep(_INTERVAL)
        meter.loop_lagged(max(0.0, time.monotonic() - planned))
