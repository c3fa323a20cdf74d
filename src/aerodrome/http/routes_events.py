"""What happens in a session, and the answers it asks for: events, abort, requests."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from aerodrome.errors import Draining
from aerodrome.events import SessionEvent
from aerodrome.http import schemas, sse
from aerodrome.http.door import caller_of, door_of
from aerodrome.http.encoding import JsonResponse
from aerodrome.http.middleware import bearer
from aerodrome.http.openapi import EVENT_STREAM, body_codes, responses
from aerodrome.http.problems import problem_of
from aerodrome.http.readers import Place
from aerodrome.http.routing import After, ApiRoute, LastEventId, RequestId, SessionId, Trace
from aerodrome.sessions.api import EventStream

router = APIRouter(prefix="/api/v1/sessions/{session_id}", tags=["events"], route_class=ApiRoute)


@router.get(
    "/events",
    response_class=Response,
    responses=responses(
        {200: EVENT_STREAM}, "invalid", "not_found", "rate_limited", "capacity", "draining", "store_unavailable"
    ),
)
async def read_events(
    request: Request,
    session_id: SessionId,
    last_event_id: LastEventId = None,
    after: After = None,
    trace: Trace = False,
) -> Response:
    """Follow a session: a stream of everything that happens in it, which can be resumed.

    Event `aerodrome.gap` comes first when the events behind the given one are no longer all there; event
    `reconnect` comes last when the session leaves this server, which stops: connect again with `Last-Event-ID`, which
    its `last_event_id` repeats (`null`: there was none to continue from).
    """
    door = door_of(request)
    after = last_event_id or after
    who = caller_of(request)
    place = door.readers.join(bearer(request.headers.get("authorization")), who)
    try:
        events = await door.sessions.events(who, session_id, after=after)
    except BaseException:
        place.leave()
        raise
    reader = _Reader(events, after or events.position, place)
    response = sse.SseResponse(
        lambda outbox: reader.read(outbox, trace=trace),
        on_close=reader.close,
        stop=door.shutdown.draining,
        farewell=reader.farewell,
        limits=door.limits,
    )
    place.on_end(lambda revoked: response.end(sse.frame("error", problem_of(revoked))))
    return response


class _Reader:
    """Reads a subscription, and knows where it could be continued."""

    def __init__(self, events: EventStream, last: str, place: Place) -> None:
        self._events = events
        self._last = last
        self._place = place

    def close(self) -> None:
        self._place.leave()
        self._events.close()

    async def read(self, outbox: sse.Outbox, *, trace: bool) -> None:
        try:
            await sse.relay(self._events, outbox, trace=trace, on_event=self._note)
        except Draining:
            outbox.add(self.farewell())

    def _note(self, event: SessionEvent) -> None:
        self._last = event.cursor or event.id

    def farewell(self) -> bytes:
        return sse.frame("reconnect", {"last_event_id": self._last or None})


@router.post(
    "/abort",
    responses=responses(
        {200: {"model": schemas.Aborted, "description": "Done"}},
        "forbidden",
        "not_found",
        "runtime_unavailable",
        "store_unavailable",
    ),
)
async def abort(request: Request, session_id: SessionId) -> Response:
    """End the running turn."""
    return JsonResponse({"aborted": await door_of(request).sessions.abort(caller_of(request), session_id)})


@router.post(
    "/requests/{request_id}",
    status_code=204,
    response_class=Response,
    responses=responses(
        {204: {"description": "The answer is on its way to the runtime"}},
        *body_codes("forbidden", "not_found", "runtime_unavailable"),
    ),
)
async def answer_request(
    request: Request, session_id: SessionId, request_id: RequestId, body: schemas.AnswerBody
) -> Response:
    """Answer a permission or user-input request; the first answer counts."""
    await door_of(request).sessions.answer(
        caller_of(request), session_id, request_id, body.model_dump(exclude_none=True)
    )
    return Response(status_code=204)
