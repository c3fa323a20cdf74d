"""Spans, and the W3C trace context that joins those of several processes (https://www.w3.org/TR/trace-context/).

Off, a tracer makes no spans and still passes on the context that it is given: whoever called us and whoever we call may
trace without us, and the log has the trace's id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Self, TypeVar

T = TypeVar("T")

Kind = Literal["internal", "server", "client"]
Value = str | int | float | bool

#: Version 00. What a later version appends is not ours to pass on.
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
#: A member of a `tracestate` (section 3.3.1.3), or an empty one.
_MEMBER = re.compile(
    r" *(?:([a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])? *"
)
_MOST_MEMBERS = 32
#: Characters. Longer ones may be dropped (section 3.3.1.5 asks for 512 to be kept).
_LONGEST_STATE = 512


class TraceContext(NamedTuple):
    """A place in a trace, as `traceparent` and `tracestate` name it."""

    traceparent: str
    tracestate: str = ""

    @classmethod
    def parse(cls, traceparent: object, tracestate: object = None) -> TraceContext | None:
        """``None``: it is none, and is passed over, as the specification has it."""
        if not isinstance(traceparent, str) or _TRACEPARENT.fullmatch(traceparent) is None:
            return None
        return cls(traceparent, tracestate if isinstance(tracestate, str) and _is_state(tracestate) else "")

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        return self.traceparent[36:52]

    @property
    def sampled(self) -> bool:
        return bool(int(self.traceparent[53:55], 16) & 1)

    def fields(self) -> dict[str, str]:
        """As members of a message, or as headers."""
        return {"traceparent": self.traceparent, **({"tracestate": self.tracestate} if self.tracestate else {})}


def _is_state(text: str) -> bool:
    """Whatever else is said there is not passed on; a tracer would complain of it, in its words, in the log."""
    if len(text) > _LONGEST_STATE:
        return False
    members = [_MEMBER.fullmatch(member) for member in text.split(",")]
    names = [member[1] for member in members if member is not None and member[1] is not None]
    return None not in members and len(names) <= _MOST_MEMBERS and len(set(names)) == len(names)


_current: ContextVar[TraceContext | None] = ContextVar("aerodrome_trace", default=None)


def current() -> TraceContext | None:
    """Where in a trace the work that runs now is."""
    return _current.get()


@contextmanager
def within(context: TraceContext | None) -> Iterator[None]:
    """What runs inside is part of that span."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


async def carried(work: Callable[[], Coroutine[Any, Any, T]], context: TraceContext | None) -> T:
    """Do the work as a part of that span, for a task of its own, which knows nothing of whoever starts it."""
    with within(context):
        return await work()


class Span:
    """A piece of work. As a context manager it is current inside, and ends with the block."""

    __slots__ = ("_token", "context")

    def __init__(self, context: TraceContext | None = None) -> None:
        #: What is passed on to whatever is part of it.
        self.context = context

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Names and numbers only: never what was said."""

    def end(self, error: str | None = None) -> None:
        """The first call counts.

        Args:
            error: An error code, when the work failed.
        """

    def __enter__(self) -> Self:
        self._token = _current.set(self.context)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        _current.reset(self._token)
        self.end(None if kind is None else str(getattr(error, "code", None) or kind.__name__))


class Tracer:
    """Makes no spans."""

    #: Whether spans are made.
    on = False

    def shutdown(self) -> None:
        """Send what is left. Blocks."""

    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        parent: TraceContext | None = None,
        attributes: Mapping[str, Value] | None = None,
    ) -> Span:
        """Begin a span.

        Args:
            name: One of few: no ids.
            parent: ``None``: the one that is current.
        """
        return Span(parent if parent is not None else _current.get())
