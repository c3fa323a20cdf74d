"""How an accepted prompt is answered: as JSON when it is done, or as a stream while it happens.

Whoever asked may go away in the meantime; the turn is told so once, and only while it runs. A server that
stops is another matter: the caller is told, the turn is not.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request, Response
from starlette.types import Receive

from aerodrome.errors import Draining
from aerodrome.http import sse
from aerodrome.http.door import Door, caller_of, door_of, wants_stream
from aerodrome.http.encoding import JsonResponse
from aerodrome.http.middleware import CLIENT_GONE
from aerodrome.http.objects import turn_object, turn_problem, turn_result
from aerodrome.http.problems import problem_of, problem_response
from aerodrome.http.shutdown import Signal
from aerodrome.model import TurnRow
from aerodrome.sessions.api import Turn


async def answer(request: Request, turn: Turn, *, trace: bool) -> Response:
    door = door_of(request)
    reader = caller_of(request).user
    if wants_stream(request):
        return _stream(door, turn, reader, trace)
    row = await _outcome(turn, reader, request.receive, door.shutdown.expired)
    if row is None:
        # Nobody reads this; the server drops what is written to a lost connection.
        return Response(status_code=CLIENT_GONE)
    document = turn_problem(row)
    return JsonResponse(turn_result(row)) if document is None else problem_response(document)


async def _outcome(turn: Turn, reader: str, receive: Receive, expired: Signal) -> TurnRow | None:
    """The final row; ``None`` when the caller has gone.

    Raises:
        NotFound: The caller is a member of the session no more.
        Draining: The server's time is up before the turn's.
    """
    done = asyncio.create_task(turn.wait(reader), name="http:turn-wait")
    gone = asyncio.create_task(_disconnect(receive), name="http:turn-watch")
    stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    unsubscribe = expired.subscribe(lambda: None if stopped.done() else stopped.set_result(None))
    try:
        waiting: set[asyncio.Future[Any]] = {done, gone, stopped}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        if stopped.done():
            raise _stopping(turn)
        gone.result()
        _abandon(turn)
        return None
    finally:
        unsubscribe()
        done.cancel()
        gone.cancel()
        await asyncio.gather(done, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _stream(door: Door, turn: Turn, reader: str, trace: bool) -> Response:
    events = turn.events(reader)

    async def produce(outbox: sse.Outbox) -> None:
        await sse.relay(events, outbox, trace=trace)
        row = await turn.wait(reader)
        result = turn_result(row)
        document = turn_problem(row)
        if document is not None:
            result["error"] = document
        await outbox.put(sse.frame("end", result))

    return sse.SseResponse(
        produce,
        on_close=events.close,
        on_disconnect=lambda: _abandon(turn),
        stop=door.shutdown.expired,
        farewell=lambda: sse.frame("error", problem_of(_stopping(turn))),
        limits=door.limits,
    )


def _abandon(turn: Turn) -> None:
    if not turn.row.status.is_final:
        turn.abandon()


def _stopping(turn: Turn) -> Draining:
    return Draining(
        "this node stops before the turn has ended; look for the outcome in the session's messages,"
        " or repeat the request with the same Idempotency-Key",
        retry_after=1,
        turn=turn_object(turn.row),
    )
