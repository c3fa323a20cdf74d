"""The shapes of OpenAI chat completions: requests as received, bodies and stream chunks as sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aerodrome.demo.script import Message, Reply, ToolCall, prompts_of, text_of

# Characters of tool arguments in one chunk of a stream.
_ARGUMENT_PIECE = 16


class BadRequest(ValueError):
    """The body is not a chat completion request."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request as the client sent it."""

    #: The decoded body.
    body: dict[str, Any]
    #: Names in lower case.
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def decode(cls, body: bytes | bytearray, headers: dict[str, str]) -> ChatRequest:
        """Raises `BadRequest` when the body is not a request with messages."""
        try:
            decoded = json.loads(body)
        except (ValueError, RecursionError):
            raise BadRequest("the body is not JSON") from None
        if not isinstance(decoded, dict):
            raise BadRequest("the body is not a JSON object")
        messages = decoded.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise BadRequest("`messages` is not a list of objects")
        return cls(decoded, headers)

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def messages(self) -> list[Message]:
        messages: list[Message] = self.body["messages"]
        return messages

    @property
    def prompts(self) -> list[str]:
        """The user messages without what the CLI adds to them, oldest first."""
        return prompts_of(self.messages)

    @property
    def prompt(self) -> str:
        prompts = self.prompts
        return prompts[-1] if prompts else ""

    @property
    def asks(self) -> bool:
        """Whether this request opens a turn; the others bring the results of tool calls."""
        return bool(self.messages) and self.messages[-1].get("role") == "user"

    @property
    def tools(self) -> list[str]:
        """The names of the tools the model may call."""
        return [str(tool.get("function", {}).get("name", "")) for tool in self.body.get("tools") or []]

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with a chunk that carries the usage."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply in the protocol's terms."""

    request: ChatRequest
    reply: Reply
    id: str
    #: The text as tokens; empty when the reply is tool calls only.
    pieces: list[str]

    def body(self) -> bytes:
        """The whole answer, not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if self.reply.text is not None:
            message["content"] = "".join(self.pieces)
        if self.reply.calls:
            message["tool_calls"] = [_call(call, call.arguments) for call in self.reply.calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return _encode({**self._head("chat.completion"), "choices": [choice], "usage": self.usage()})

    def deltas(self) -> list[bytes]:
        """The frames that carry content, one a token."""
        deltas: list[dict[str, Any]] = [{"content": piece} for piece in self.pieces]
        for index, call in enumerate(self.reply.calls):
            deltas.append({"tool_calls": [{"index": index, **_call(call, "")}]})
            deltas += (
                {"tool_calls": [{"index": index, "function": {"arguments": part}}]} for part in _parts(call.arguments)
            )
        return [self._frame(delta, None) for delta in deltas]

    def opening(self) -> bytes:
        """The first frame of a stream: the role."""
        return self._frame({"role": "assistant", "content": None if self.reply.text is None else ""}, None)

    def closing(self) -> bytes:
        """The last frames of a stream: the reason of its end, the usage if asked for, and the end mark."""
        frames = self._frame({}, self._finish_reason)
        if self.request.wants_usage:
            frames += _event({**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage()})
        return frames + b"data: [DONE]\n\n"

    def usage(self) -> dict[str, int]:
        prompt = sum(len(text_of(message)) for message in self.request.messages) // 4 + 1
        completion = len(self.pieces) + sum(len(call.arguments) // 4 + 1 for call in self.reply.calls)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self.reply.calls else "stop"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": int(time.time()), "model": self.request.model}

    def _frame(self, delta: dict[str, Any], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice]})


def error_body(message: str, kind: str) -> bytes:
    return _encode({"error": {"message": message, "type": kind, "param": None, "code": None}})


def models_body(names: list[str]) -> bytes:
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "aerodrome"} for name in names]
    return _encode({"object": "list", "data": data})


def _call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _parts(arguments: str) -> Iterator[str]:
    for start in range(0, len(arguments), _ARGUMENT_PIECE):
        yield arguments[start : start + _ARGUMENT_PIECE]


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def _encode(value: Any) -> bytes:
    # ASCII only: a prompt may hold lone surrogates, which UTF-8 cannot carry.
    return json.dumps(value, separators=(",", ":")).encode()
