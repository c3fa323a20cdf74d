"""The trace context of a client's request: where it stands in one, and what it hands on to another node."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aerodrome.gateway.commands import Request
from aerodrome.telemetry.trace import Span, TraceContext, Tracer, current
from aerodrome.wire import envelope

#: Bytes of a request up to which it is looked through for the sake of the log.
_SMALL = 64 * 1024


class _Traced(msgspec.Struct):
    traceparent: str | None = None
    tracestate: str | None = None


_decode = msgspec.json.Decoder(_Traced).decode


def trace_of(params: Raw | UnsetType) -> TraceContext | None:
    """What SDKs send with `session.create`, `session.resume` and `session.send`."""
    if params is UNSET:
        return None
    try:
        found = _decode(params)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return TraceContext.parse(found.traceparent, found.tracestate)


def traced(tracer: Tracer, request: Request) -> Span:
    """The span of a request that this node answers, or looks for the place of."""
    if not tracer.on and request.size > _SMALL:
        return Span()  # the turn finds its context by itself, and the log can do without
    context = trace_of(request.params)
    if not tracer.on:
        return Span(context)
    # The name is from the policy's table of methods, which is of a known size.
    attributes = {"rpc.system.name": "jsonrpc", "rpc.method": request.method}
    if request.session_id is not None:
        attributes["gen_ai.conversation.id"] = request.session_id
    return tracer.span(request.method, kind="server", parent=context, attributes=attributes)


def hand_on(request: Request) -> None:
    """Have the node that a prompt is sent on to make its spans a part of ours, which is a part of the client's."""
    context = current()
    if context is None or request.method != "session.send":
        return
    params = envelope.decode_value(request.params)
    if isinstance(params, dict):
        params.pop("tracestate", None)
        request.body = envelope.request_body(request.id, request.method, {**params, **context.fields()})
