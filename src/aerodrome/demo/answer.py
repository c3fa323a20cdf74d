"""How one reply goes out: its waits, its failure, or its text, whole or streamed."""

from __future__ import annotations

import asyncio
import itertools
import math

from aerodrome.demo.completions import ChatRequest, Completion, error_body
from aerodrome.demo.connection import Connection
from aerodrome.demo.gates import Gates
from aerodrome.demo.script import Failure, Reply, Step

_STREAM = {"content-type": "text/event-stream", "cache-control": "no-cache"}
_JSON = "application/json"


class Answerer:
    """Answers completions. `delay` (seconds), `rate` (tokens a second), `tokens`: where the prompt says nothing."""

    def __init__(self, gates: Gates, *, delay: float, rate: float | None, tokens: int | None) -> None:
        self._gates = gates
        self._delay = delay
        self._rate = rate
        self._tokens = tokens
        self._serial = itertools.count(1)

    async def answer(self, request: ChatRequest, reply: Reply, failure: Failure | None, out: Connection) -> None:
        """Carry out `reply`, or `failure` in its place, after the waits of its step."""
        step = reply.step
        await self._wait(step)
        if failure := failure or step.fail:
            await _fail(out, failure)
        elif step.garbage:
            await _garble(out, streamed=request.streams)
        elif step.cut and step.cut_after == 0:
            await out.drop()
        else:
            pieces = reply.pieces(self._tokens if step.tokens is None else step.tokens)
            completion = Completion(request, reply, f"chatcmpl-{next(self._serial)}", pieces)
            await (self._stream if request.streams else self._send)(completion, out)

    async def _wait(self, step: Step) -> None:
        delay = self._delay if step.delay is None else step.delay
        if delay:
            await asyncio.sleep(delay)
        if step.gate is not None:
            await self._gates.passed(step.gate)
        if step.hang:
            # Ends when the client goes away: the connection cancels this task.
            await asyncio.Event().wait()

    async def _send(self, completion: Completion, out: Connection) -> None:
        step, body = completion.reply.step, completion.body()
        half = len(body) // 2
        out.start(200, {"content-type": _JSON, "content-length": str(len(body))})
        await out.send(body[:half])
        await self._hold(step, out)
        if step.cut:
            await out.drop()
            return
        await out.send(body[half:])
        await out.finish()

    async def _stream(self, completion: Completion, out: Connection) -> None:
        step, deltas = completion.reply.step, completion.deltas()
        # At least one token comes before a gate or a cut, so that the client is in the middle of the answer.
        half = math.ceil(len(deltas) / 2)
        end = len(deltas)
        if step.cut:
            end = half if step.cut_after is None else min(step.cut_after, end)
        out.start(200, _STREAM)
        await out.send(completion.opening())
        await self._send_paced(deltas[: min(half, end)], step, out)
        if end >= half:
            await self._hold(step, out)
        await self._send_paced(deltas[half:end], step, out)
        if step.cut:
            await out.drop()
            return
        await out.send(completion.closing())
        await out.finish()

    async def _send_paced(self, deltas: list[bytes], step: Step, out: Connection) -> None:
        rate = self._rate if step.rate is None else step.rate
        loop = asyncio.get_running_loop()
        due = loop.time()
        for delta in deltas:
            if rate:
                # Against the clock and not one sleep after the other, whose lateness would add up.
                due += 1 / rate
                await out.flush()
                await asyncio.sleep(max(0.0, due - loop.time()))
            await out.send(delta)

    async def _hold(self, step: Step, out: Connection) -> None:
        if step.gate_stream is not None:
            await out.flush()
            await self._gates.passed(step.gate_stream)


async def _fail(out: Connection, failure: Failure) -> None:
    headers = {} if failure.retry_after is None else {"retry-after": str(failure.retry_after)}
    kind = "server_error" if failure.status >= 500 else "rate_limit_error" if failure.status == 429 else "request_error"
    await out.respond(failure.status, error_body(f"scripted failure {failure.status}", kind), headers)


async def _garble(out: Connection, *, streamed: bool) -> None:
    if streamed:
        await out.respond(200, b'data: {"choices": [{"delta\n\n', kind="text/event-stream")
    else:
        await out.respond(200, b'{"choices": [{"message')
