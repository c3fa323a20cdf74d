"""A user of the official Python SDK, with a tool of their own, who makes a new client when the node is lost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from copilot import CopilotClient, RuntimeConnection
from copilot._jsonrpc import JsonRpcError

from support.fleet_chaos.options import PATIENCE
from support.fleet_chaos.transcript import Outcome, Prompt
from support.fleet_chaos.users import SILENCE, Placed, World
from support.sdk_clients import Chat, Client, Endpoint, custom_tool


def tool_of(user: str) -> str:
    """What the scripted model is told to call. A session has no two tools of one name (docs/facts.md)."""
    return f'look_{user} {{"x": "there"}}'


class Gone(Exception):
    """The connection is lost, or as good as lost: nothing comes from the node."""


class SdkUser(Placed):
    def __init__(self, world: World, user: str) -> None:
        super().__init__(world, user)
        self._client: Client | None = None
        self._chats: dict[str, Chat] = {}

    async def aclose(self) -> None:
        await self._drop()

    async def say(self, prompt: Prompt) -> None:
        transcript = self.world.transcript
        while True:
            try:
                chat = await self._chat(prompt.session)
                break
            except Gone:
                await self._move()
        try:
            # Nobody who has gone on to another node is told what becomes of it.
            message = await _within(SILENCE, chat.send(prompt.text))
            outcome, detail = await self._outcome(chat, prompt, message)
        except asyncio.CancelledError:
            transcript.say(f"{prompt} at {self.node} has seen {_seen(chat)}")
            raise
        except Gone as error:
            transcript.counts["connections lost of SDK clients"] += 1
            transcript.end(prompt, Outcome.UNKNOWN, str(error))
            await self._move()
            return
        except JsonRpcError as error:
            code = _code(error)
            self.refused(code)
            transcript.end(prompt, Outcome.INTERRUPTED if code == "turn_interrupted" else Outcome.REFUSED, str(error))
            if code not in ("turn_interrupted", "session_busy"):
                await self._move()
            return
        transcript.end(prompt, outcome, detail)

    async def _outcome(self, chat: Chat, prompt: Prompt, message: str) -> tuple[Outcome, str]:
        """Raises `Gone`."""
        seen = 0
        ours = answered = False
        error: Any = None
        quiet = time.monotonic()
        while True:
            for event in chat.events[seen:]:
                kind, data = event.type.value, event.data
                if ours or kind == "user.message":
                    prompt.seen.append((kind, str(event.id)))
                if kind == "user.message" and data.content == prompt.text:
                    ours, answered, error = True, False, None
                elif kind == "assistant.message" and data.content == prompt.answer:
                    answered = True
                elif kind == "session.error" and (ours or data.originating_message_id == message):
                    ours, error = True, data
                elif kind == "session.idle" and ours and (answered or error is not None):
                    if error is None:
                        prompt.told = prompt.answer
                    return self._end(error)
            if len(chat.events) > seen:
                seen, quiet = len(chat.events), time.monotonic()
            await asyncio.sleep(0.05)
            if time.monotonic() - quiet > 2.0:
                await self._ping()
                quiet = time.monotonic()

    def _end(self, error: Any) -> tuple[Outcome, str]:
        if error is None:
            return Outcome.ACKNOWLEDGED, ""
        detail = f"{error.error_type}: {error.message}"
        self.refused(error.error_type)
        return (Outcome.INTERRUPTED if error.error_type == "turn_interrupted" else Outcome.FAILED), detail

    async def _chat(self, session: str) -> Chat:
        """Raises `Gone`."""
        if self._client is None:
            endpoint = Endpoint("gateway", self.world.fleet.nodes[self.node].gateway, self.world.keys[self.user])
            connection = RuntimeConnection.for_uri(endpoint.address, connection_token=endpoint.token)
            sdk = CopilotClient(connection=connection, mode="empty")
            self._client = Client(sdk, endpoint, "empty")
            try:
                await _within(SILENCE, sdk.start())
            except JsonRpcError as error:
                raise Gone(str(error)) from error
        if session not in self._chats:
            tool = custom_tool(f"look_{self.user}", skip_permission=True)
            self._chats[session] = await self._refusable(self._client.resume(session, tools=[tool]))
        return self._chats[session]

    async def _refusable(self, asked: Any) -> Any:
        """However long it takes, as long as the node shows that it is there."""
        asking = asyncio.ensure_future(_within(PATIENCE, asked))
        try:
            while not (await asyncio.wait({asking}, timeout=2.0))[0]:
                await self._ping()
            return asking.result()
        except JsonRpcError as error:
            self.refused(_code(error))
            raise Gone(str(error)) from error
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    async def _ping(self) -> None:
        assert self._client is not None
        await _within(SILENCE - 2.0, self._client.sdk.ping())

    async def _move(self) -> None:
        await self._drop()
        self.switch()
        await self.rest()

    async def _drop(self) -> None:
        client, self._client = self._client, None
        self._chats.clear()
        if client is not None:
            client.forget()
            await client.vanish()


def _seen(chat: Chat) -> list[str]:
    """The events since the prompt, but for pieces."""
    kinds = [(event.type.value, event.data) for event in chat.events]
    return [
        f"{kind} {getattr(data, 'content', '')}{getattr(data, 'originating_message_id', '')}"
        for kind, data in kinds
        if "delta" not in kind
    ][-60:]


def _code(error: JsonRpcError) -> str:
    return str((error.data or {}).get("code", error.code)) if isinstance(error.data, dict) else str(error.code)


async def _within(seconds: float, asked: Any) -> Any:
    """Raises `Gone` when it is not answered, and `JsonRpcError` when it is refused."""
    try:
        async with asyncio.timeout(seconds):
            return await asked
    except JsonRpcError:
        raise
    except TimeoutError:
        raise Gone(f"nothing within {seconds:g} s") from None
    except Exception as error:
        # The SDK has many ways to say that a connection is lost.
        raise Gone(f"{type(error).__name__}: {error}") from error
