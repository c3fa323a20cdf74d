"""Trace context as the W3C has it, and spans that are not made."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.telemetry.trace import Span, TraceContext, Tracer, carried, current, within

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_context_is_read() -> None:
    context = TraceContext.parse(GOOD, "vendor=1")
    assert context is not None
    assert (context.trace_id, context.span_id, context.sampled) == (TRACE, SPAN, True)
    assert context.fields() == {"traceparent": GOOD, "tracestate": "vendor=1"}
    unsampled = TraceContext.parse(f"00-{TRACE}-{SPAN}-00")
    assert unsampled is not None
    assert not unsampled.sampled
    assert unsampled.fields() == {"traceparent": f"00-{TRACE}-{SPAN}-00"}


@pytest.mark.parametrize(
    "tracestate",
    ["a=1", "a=1,b=2", " a=1 , b=2,, c=3", "1t@v=x", "a-b*c/d_=!~ +", ",".join(f"k{number}=1" for number in range(32))],
)
def test_a_state_is_passed_on_as_it_is(tracestate: str) -> None:
    context = TraceContext.parse(GOOD, tracestate)
    assert context is not None
    assert context.tracestate == tracestate


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        7,
        "",
        "nonsense",
        f"01-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"{GOOD}\n",
    ],
)
def test_what_is_none_is_passed_over(traceparent: object) -> None:
    assert TraceContext.parse(traceparent, "vendor=1") is None


@pytest.mark.parametrize(
    "tracestate",
    [
        None,
        7,
        "a" * 513,
        f"a={'x' * 510}",
        "ü=1",
        "a=1\r\nx-evil: 1",
        "my own words",
        "a=1,b",
        "A=1",
        "a=1,a=2",
        "a==1",
        "a=",
        "a@=1",
        ",".join(f"k{number}=1" for number in range(33)),
    ],
)
def test_a_state_that_cannot_be_passed_on_is_dropped(tracestate: object) -> None:
    context = TraceContext.parse(GOOD, tracestate)
    assert context is not None
    assert context.fields() == {"traceparent": GOOD}


@given(st.text(), st.text())
def test_whatever_is_said_is_read_or_passed_over(traceparent: str, tracestate: str) -> None:
    context = TraceContext.parse(traceparent, tracestate)
    if context is not None:
        again = TraceContext.parse(context.traceparent, context.tracestate)
        assert again == context
        assert all(value.isascii() and value.isprintable() for value in context.fields().values())


def test_without_spans_the_context_goes_on() -> None:
    tracer, parent = Tracer(), TraceContext(GOOD)
    with tracer.span("work", parent=parent) as span:
        assert span.context is current() is parent
        with tracer.span("part") as part:
            assert part.context is parent
    assert current() is None
    assert tracer.span("alone").context is None


def test_a_span_ends_with_the_code_of_what_ended_it() -> None:
    ends: list[str | None] = []

    class Noted(Span):
        def end(self, error: str | None = None) -> None:
            ends.append(error)

    class Broken(Exception):
        code = "broken"

    for error in (None, Broken(), ValueError("the text of it")):
        try:
            with Noted():
                if error is not None:
                    raise error
        except (Broken, ValueError):
            pass
    assert ends == [None, "broken", "ValueError"]


async def test_a_task_can_be_given_its_place() -> None:
    async def look() -> TraceContext | None:
        await asyncio.sleep(0)
        return current()

    context = TraceContext(GOOD)
    assert await asyncio.create_task(carried(look, context)) is context
    with within(context):
        assert await asyncio.create_task(carried(look, None)) is None
    # One that never starts leaves nothing behind that was never awaited: warnings are errors here.
    carried(look, context).close()
