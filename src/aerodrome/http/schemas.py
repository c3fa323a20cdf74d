"""The bodies of requests and responses, with examples.

Requests are validated by these models. Responses are built as plain values in `objects.py`; here they are
described for the OpenAPI document, and the tests hold every answer against it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from aerodrome.model import OnBusy, Role, SessionKind, SessionState, TurnStatus

SessionId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_-]{1,200}$",
        description="1 to 200 of the characters A-Z a-z 0-9 _ -",
        examples=["support-42"],
    ),
]
Model = Annotated[str, Field(min_length=1, max_length=200, description="Model to use; default: the configured one")]
Title = Annotated[str, Field(min_length=1, max_length=200)]
SystemMessage = Annotated[str, Field(description="Appended to the runtime's own system message")]
Prompt = Annotated[str, Field(description="What to ask; may be empty only beside attachments")]
Attachments = Annotated[
    list[dict[str, Any]],
    Field(
        max_length=100,
        fail_fast=True,
        description="Attachments in the SDK's format, such as `{type: blob, data, mimeType}`",
    ),
]
Tools = Annotated[
    list[Annotated[str, Field(max_length=200)]],
    Field(max_length=200, fail_fast=True),
]
Timestamp = Annotated[float, Field(description="Unix seconds")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OpenSessionBody(_Request):
    id: SessionId | None = Field(None, description="Your own id; if you leave it out, one is made")
    model: Model | None = None
    kind: SessionKind = SessionKind.PERSISTENT
    title: Title | None = None
    system_message: SystemMessage | None = None
    tools: Tools | None = Field(
        None, description="Built-in tools the session may use, from what policy allows; default: policy's own set"
    )
    streaming: bool = Field(
        True,
        description="Whether answers come in pieces (`assistant.message_delta`); `false` costs the runtime less",
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"id": "support-42", "title": "Invoice questions", "system_message": "Answer briefly."}]
        }
    )


class RetitleBody(_Request):
    title: Title

    model_config = ConfigDict(json_schema_extra={"examples": [{"title": "Invoice questions, March"}]})


class MemberBody(_Request):
    role: Literal[Role.WRITER, Role.READER]

    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "writer"}]})


class AttachBody(_Request):
    address: str = Field(description="`HOST:PORT`; a name that leads to several addresses is a server each")
    token: str | None = Field(None, max_length=100, description="Name of one in `runtime.attach_tokens`, not the token")
    weight: float = Field(1.0, gt=0, le=1000, description="How much it should get beside the others")
    max_sessions: int | None = Field(None, ge=1, description="Default: `runtime.max_sessions`")
    workspace: str | None = Field(
        None, min_length=1, max_length=1000, description="Working directory of its sessions, on its machine"
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"address": "cli-4:4321", "weight": 2}]})


class _PromptBody(_Request):
    prompt: Prompt
    attachments: Attachments = []

    @model_validator(mode="after")
    def _says_something(self) -> _PromptBody:
        if not self.prompt and not self.attachments:
            raise ValueError("prompt is empty")
        return self


class SendBody(_PromptBody):
    on_busy: OnBusy | None = Field(
        None, description="What to do while a turn is running; default: the configured `sessions.on_busy`"
    )

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "What did I ask you before?", "on_busy": "enqueue"}]}
    )


class AskBody(_PromptBody):
    model: Model | None = None
    system_message: SystemMessage | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Name the largest moon of Saturn."}]})


class PermissionAnswer(_Request):
    """The answer to a `permission.requested` event."""

    decision: Literal["approve", "deny"]
    feedback: str | None = Field(None, description="Told to the model with a denial")

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"decision": "approve"}, {"decision": "deny", "feedback": "Use a copy."}]}
    )


class InputAnswer(_Request):
    """The answer to a `user_input.requested` event."""

    answer: str
    free_form: bool | None = Field(None, description="True if the answer is none of the offered choices")

    model_config = ConfigDict(json_schema_extra={"examples": [{"answer": "Version 2", "free_form": False}]})


def _answer_kind(value: Any) -> str:
    """The tag of the model to hold it against. In brackets, for `problems.py` to tell it from a field's name."""
    given = value if isinstance(value, dict) else {}
    return "<input>" if "answer" in given else "<permission>"


AnswerBody = Annotated[
    Annotated[PermissionAnswer, Tag("<permission>")] | Annotated[InputAnswer, Tag("<input>")],
    Discriminator(_answer_kind),
]


_SESSION: dict[str, JsonValue] = {
    "id": "support-42",
    "tenant": "acme",
    "owner": "alice",
    "kind": "persistent",
    "state": "hibernated",
    "model": "gpt-4.1",
    "title": "Invoice questions",
    "members": [{"user": "alice", "role": "owner"}, {"user": "bob", "role": "writer"}],
    "created_at": 1767225600.0,
    "last_used_at": 1767225642.5,
    "last_turn": {"id": "turn_01", "status": "completed"},
}
#: A turn's object, also the `turn` member of the problem documents of turns.
TURN_EXAMPLE: dict[str, JsonValue] = {
    "id": "turn_01",
    "status": "completed",
    "started_at": 1767225640.1,
    "ended_at": 1767225642.5,
    "retried": False,
}
RESULT_EXAMPLE: dict[str, JsonValue] = {
    "turn": TURN_EXAMPLE,
    "message": {"id": "8d7e0a4c-5a0f-4e39-9d5a-52f3b1c0a001", "content": "Titan."},
    "usage": {"input_tokens": 1843, "output_tokens": 4},
}


class Member(BaseModel):
    user: str
    role: Role


class LastTurn(BaseModel):
    id: str
    status: TurnStatus


class Session(BaseModel):
    id: str
    tenant: str
    owner: str
    kind: SessionKind
    state: SessionState
    model: str | None
    title: str | None
    members: list[Member] = Field(description="Everybody who has a role in it, the owner first")
    created_at: Timestamp
    last_used_at: Timestamp
    last_turn: LastTurn | None

    model_config = ConfigDict(json_schema_extra={"examples": [_SESSION]})


class SessionList(BaseModel):
    sessions: list[Session]
    next: str | None = Field(description="Cursor of the following page; null at the end")

    model_config = ConfigDict(json_schema_extra={"examples": [{"sessions": [_SESSION], "next": None}]})


class Turn(BaseModel):
    id: str
    status: TurnStatus
    started_at: Timestamp | None
    ended_at: Timestamp | None
    retried: bool = Field(description="The runtime was lost in mid-turn and the prompt was sent once more")


class Answer(BaseModel):
    id: str
    content: str


class TurnResult(BaseModel):
    turn: Turn
    message: Answer | None = Field(description="Null when the turn ended before there was an answer")
    usage: dict[str, Any] | None = Field(description="Tokens and cost as the runtime counts them")

    model_config = ConfigDict(json_schema_extra={"examples": [RESULT_EXAMPLE]})


class HistoryMessage(BaseModel):
    id: str
    role: str
    content: str
    author: str | None = Field(None, description="The user who wrote the prompt; absent where it is not known")
    turn_id: str | None
    created_at: Timestamp


class History(BaseModel):
    messages: list[HistoryMessage] = Field(description="The oldest first")
    next: str | None = Field(description="Cursor of the following page; null at the end")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [
                        {
                            "id": "u1",
                            "role": "user",
                            "content": "Name the largest moon of Saturn.",
                            "author": "alice",
                            "turn_id": "turn_01",
                            "created_at": 1767225640.0,
                        },
                        {
                            "id": "a1",
                            "role": "assistant",
                            "content": "Titan.",
                            "turn_id": "turn_01",
                            "created_at": 1767225642.4,
                        },
                    ],
                    "next": None,
                }
            ]
        }
    )


class Aborted(BaseModel):
    aborted: bool = Field(description="False: no turn was running")

    model_config = ConfigDict(json_schema_extra={"examples": [{"aborted": True}]})


class Attached(BaseModel):
    address: str
    tenant: str

    model_config = ConfigDict(json_schema_extra={"examples": [{"address": "cli-4:4321", "tenant": "acme"}]})


_SERVER: dict[str, JsonValue] = {
    "server": "10.0.0.7:4321",
    "address": "cli-4:4321",
    "state": "claimed",
    "reason": "",
    "tenant": "acme",
    "user": None,
    "sessions": 3,
    "turns": 17,
    "weight": 2.0,
    "attached_at_run_time": True,
}


class AttachedServer(BaseModel):
    server: str = Field(description="IP address and port")
    address: str = Field(description="What it is attached as")
    state: str = Field(
        description="`claimed`; `warm`: nobody has needed it yet; `ejected`: it does worse than the others, for a "
        "while; `probation`: and now gets a few sessions; `draining`; `drained`: by an operator; `failed`: it "
        "cannot be used; `unused`: the same server is attached by another name, or serves others"
    )
    reason: str = Field(description="Why it cannot be used, or was ejected; else empty")
    tenant: str | None
    user: str | None = Field(description="Under isolation `user`: whom it serves")
    sessions: int
    turns: int
    weight: float
    attached_at_run_time: bool = Field(description="False: it is in the settings")

    model_config = ConfigDict(json_schema_extra={"examples": [_SERVER]})


class AttachedServerList(BaseModel):
    servers: list[AttachedServer]

    model_config = ConfigDict(json_schema_extra={"examples": [{"servers": [_SERVER]}]})


class Alive(BaseModel):
    status: Literal["alive"]

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})


class Ready(BaseModel):
    status: Literal["ready"]
    detail: str

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ready", "detail": "accepting work"}]})


class RuntimeRow(BaseModel):
    id: str
    node: str = Field(description="The name of its node")
    pid: int | None
    state: str = Field(
        description="`starting`, `warm`, `claimed`, `retiring`, `draining`, `stopped` or `failed`; of an attached "
        "server as in the list of those"
    )
    tenant: str | None = Field(description="Whom it serves; null: nobody yet")
    user: str | None = Field(description="The one user whom it serves; null: all of the tenant")
    sessions: int = Field(description="Loaded in it, or about to be")
    turns: int = Field(description="Since its start")
    rss_bytes: int
    started_at: Timestamp

    model_config = ConfigDict(extra="allow")


class RuntimeList(BaseModel):
    runtimes: list[RuntimeRow]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "runtimes": [
                        {
                            "id": "rt-3f0c9a1b27",
                            "node": "n1",
                            "pid": 4711,
                            "state": "claimed",
                            "tenant": "acme",
                            "user": None,
                            "sessions": 12,
                            "turns": 340,
                            "rss_bytes": 312000000,
                            "started_at": 1767225600.0,
                        }
                    ]
                }
            ]
        }
    )


class NodeRow(BaseModel):
    name: str
    incarnation: str = Field(description="The name of this life of the node")
    address: str = Field(description="Where other nodes reach it")
    sessions: int = Field(description="Loaded, or with prompts that wait")
    runtimes: int
    turns: int = Field(description="Running")
    waiting: int = Field(description="Prompts that were accepted and have not begun")
    wait: float = Field(description="Seconds that turns have lately waited for a place")
    rss_bytes: int = Field(description="Of the node and its runtimes")
    draining: bool
    age: float | None = Field(description="Seconds since its start")


class NodeList(BaseModel):
    nodes: list[NodeRow]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "nodes": [
                        {
                            "name": "n1",
                            "incarnation": "n1-5d1f0a6c7b9e2f34",
                            "address": "10.0.0.7:4321",
                            "sessions": 120,
                            "runtimes": 4,
                            "turns": 7,
                            "waiting": 0,
                            "wait": 0.0,
                            "rss_bytes": 1400000000,
                            "draining": False,
                            "age": 86400.0,
                        }
                    ]
                }
            ]
        }
    )


class NodeDrain(BaseModel):
    name: str
    incarnation: str

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "n1", "incarnation": "n1-5d1f0a6c7b9e2f34"}]})


class RuntimeOperation(BaseModel):
    id: str
    verb: Literal["recycle", "drain"]
    runtime: str
    node: str = Field(description="The name of its node")
    state: Literal["running", "done"]
    started_at: Timestamp
    seconds: float | None = Field(description="How long it took; null while it is under way")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "op-8c1d2e3f4a5b6c7d",
                    "verb": "recycle",
                    "runtime": "rt-3f0c9a1b27",
                    "node": "n1",
                    "state": "done",
                    "started_at": 1767225600.0,
                    "seconds": 2.3,
                }
            ]
        }
    )


class FieldError(BaseModel):
    field: str = Field(description="Where: `body.prompt`, `query.limit`, `header.Idempotency-Key`")
    detail: str


class Problem(BaseModel):
    """RFC 9457, with the members a program acts on. Some codes carry more members, such as `turn` or `limit`."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    retryable: bool = Field(description="The same request may succeed later")
    retry_after: float | None = Field(None, description="Seconds; also sent as `Retry-After`. Absent: unknown")
    errors: list[FieldError] | None = Field(None, description="With code `invalid`: every field that is wrong")
    turn: Turn | str | None = Field(
        None,
        description="With the codes of turns: how the turn ended. With `session_busy`: the id of the turn that runs",
    )
    author: str | None = Field(None, description="With `session_busy`: the user whose turn runs")

    model_config = ConfigDict(extra="allow")
