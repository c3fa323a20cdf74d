"""The calls of a store, timed and traced from outside, so that no store has to know of it."""

from __future__ import annotations

import inspect
import time
from typing import Any, TypeVar, cast

from aerodrome.errors import AerodromeError
from aerodrome.telemetry import Telemetry
from aerodrome.telemetry.trace import current

T = TypeVar("T")

#: What says something about the files, and nothing about the store.
_ANSWERS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)


def observed(port: T, store: str, telemetry: Telemetry) -> T:
    """The port, its asynchronous methods timed under the name of the store.

    Inside of patience: a call that is made again counts again, and what it takes is what the store takes.
    """
    return cast("T", _Observed(port, store, telemetry)) if telemetry.meter.on or telemetry.tracer.on else port


class _Observed:
    def __init__(self, port: Any, store: str, telemetry: Telemetry) -> None:
        self._port = port
        self._store = store
        self._telemetry = telemetry

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._call(name, method, args, kwargs)

        setattr(self, name, call)  # the next look-up finds it without coming here
        return call

    async def _call(self, name: str, method: Any, args: Any, kwargs: Any) -> Any:
        began, failure = time.monotonic(), None
        # Heartbeats and the like are part of nothing, and would be traces of one span.
        span = self._telemetry.tracer.span(f"{self._store}.{name}", kind="client") if current() is not None else None
        try:
            return await method(*args, **kwargs)
        except _ANSWERS:
            raise
        except Exception as error:
            failure = error.code if isinstance(error, AerodromeError) else AerodromeError.code
            raise
        finally:
            self._telemetry.meter.store_called(self._store, name, time.monotonic() - began, failure)
            if span is not None:
                span.end(failure)
