"""A user over HTTP, who takes JSON or a stream, and repeats under the same key whatever was refused or lost."""

from __future__ import annotations

import json
from typing import Any

import httpx

from support.fleet_chaos.transcript import Outcome, Prompt
from support.fleet_chaos.users import SILENCE, Placed, World
from support.host import sse_events

#: Answers with the same ended turn, after which it is what the caller is told.
_SAME = 3


class HttpUser(Placed):
    def __init__(self, world: World, user: str, *, streams: bool) -> None:
        super().__init__(world, user)
        self._streams = streams
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {world.keys[user]}"}, timeout=httpx.Timeout(SILENCE, connect=2.0)
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    def url(self, path: str) -> str:
        return f"http://{self.world.fleet.nodes[self.node].http}/api/v1{path}"

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One that may be repeated, until it is answered."""
        async with self.world.watch.waiting(f"{method} {path} of {self.user}", 60):
            while True:
                try:
                    response = await self._http.request(method, self.url(path), json=body)
                    if response.is_success:
                        return response.json() if response.content else None
                    problem = response.json()
                    assert problem["retryable"], problem
                    self.refused(problem["code"])
                except httpx.TransportError:
                    self.world.transcript.counts["connections lost over HTTP"] += 1
                self.switch()
                await self.rest()

    async def say(self, prompt: Prompt) -> None:
        transcript = self.world.transcript
        earlier: list[str] = []
        while True:
            try:
                answer = await self._try(prompt)
            except httpx.TransportError:
                # The key finds out what has become of it.
                transcript.counts["connections lost over HTTP"] += 1
                answer = None
            if answer is not None:
                turn = answer.get("turn")
                problem = answer.get("error") or ({} if "code" not in answer else answer)
                if not problem:
                    assert isinstance(turn, dict), answer
                    self._served(prompt, answer)
                    return
                code = problem["code"]
                self.refused(code)
                transcript.say(f"{prompt} at {self.node}: {code}: {problem.get('detail')}")
                ended = _ended(problem.get("turn"))
                if ended is not None:
                    earlier.append(ended)
                if code == "turn_interrupted" and ended is not None:
                    transcript.end(prompt, Outcome.INTERRUPTED, problem.get("detail", ""))
                    return
                if ended is not None and (not problem["retryable"] or earlier.count(ended) >= _SAME):
                    transcript.end(prompt, Outcome.FAILED, f"{code}: {problem.get('detail')}")
                    return
                assert problem["retryable"], (str(prompt), problem)
            transcript.counts["prompts sent again"] += 1
            self.switch()
            await self.rest()

    def _served(self, prompt: Prompt, answer: dict[str, Any]) -> None:
        turn = answer["turn"]
        assert turn["status"] in ("completed", "aborted"), answer
        if turn["status"] == "completed":
            said = (answer["message"] or {}).get("content")
            assert said == prompt.answer, f"{prompt} was answered {answer}"
            prompt.told = said
        self.world.transcript.end(prompt, Outcome.ACKNOWLEDGED, turn["status"])

    async def _try(self, prompt: Prompt) -> dict[str, Any] | None:
        """What was answered; ``None`` when a stream broke off."""
        url = self.url(f"/sessions/{prompt.session}/messages")
        headers = {"Idempotency-Key": prompt.answer}
        body = {"prompt": prompt.text}
        if not self._streams:
            return dict((await self._http.post(url, json=body, headers=headers)).json())
        headers["Accept"] = "text/event-stream"
        async with self._http.stream("POST", url, json=body, headers=headers) as response:
            if not response.headers["content-type"].startswith("text/event-stream"):
                return dict(json.loads(await response.aread()))
            async for event in sse_events(response):
                if event["event"] in ("end", "error"):
                    return dict(event["data"])
        return None


def _ended(turn: Any) -> str | None:
    """The id of a turn that a problem is the end of."""
    return turn["id"] if isinstance(turn, dict) and turn["status"] in ("failed", "interrupted") else None
