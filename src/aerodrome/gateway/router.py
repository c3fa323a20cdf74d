"""What becomes of each frame of one client: to which link it goes, what is answered here, which ids are rewritten.

Pure: bodies in, commands out; the shell (`gateway.client`) does what the commands say and reports what has happened.
The rules:

- A client's request ids pass through: on a link to a runtime only this client's requests have them, and ours, which are
  strings that no client can have in flight because they are refused (`OWN_IDS`).
- A runtime's request ids are replaced by numbers of ours, since two runtimes may use the same ones. The answer goes to
  the link that asked; an answer to nobody goes nowhere.
- A session's frames go to the link it is *bound* to. While it is bound to none (hibernated, or its runtime was lost),
  requests wait in the shell (`Place`) and come back through `send`.
- A session's events are forwarded from the link it is bound to, byte for byte. Each event is told once: what the shell
  tells in a lost runtime's place (`tell`) leaves out what the client has already.
- A link may also lead to another node, which runs the session; then the client's own frames go there, and that node
  does what is done here for others. What it gives back, because the session has moved on, is placed anew.
- When a link is lost, requests that only read are placed anew; all others are answered with an error, because nobody
  knows whether they have happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from aerodrome.errors import (
    AerodromeError,
    Capacity,
    Forbidden,
    NotFound,
    RuntimeUnavailable,
    TooLarge,
    TurnInterrupted,
)
from aerodrome.gateway import problems
from aerodrome.gateway.bindings import NODE_LINK, Bindings, EventHead
from aerodrome.gateway.bodies import Incoming, read
from aerodrome.gateway.commands import (
    Changed,
    Command,
    Gone,
    Moved,
    Place,
    Relayed,
    Request,
    Serve,
    ToClient,
    ToOwn,
    ToRuntime,
)
from aerodrome.gateway.questions import HOOKS, Questions, refusing
from aerodrome.gateway.replay import REMEMBERED
from aerodrome.model import Role
from aerodrome.policy import readers
from aerodrome.policy.methods import Handling, checked_params, needs_check, refusal, rule_for
from aerodrome.policy.profiles import Profile
from aerodrome.policy.shapes import Refusal
from aerodrome.wire import envelope
from aerodrome.wire.envelope import RequestId
from aerodrome.wire.framing import Oversized, encode_frame
from aerodrome.wire.oversized import complaint, head_of

#: Ids of requests that we make ourselves on a client's link begin so.
OWN_IDS = "aerodrome:"
#: What another node answers with when it is not for it to answer; nothing has happened then.
_GIVEN_BACK = frozenset({"session_moved", "draining"})
_OPENING = frozenset({"session.create", "session.resume"})
_LEAVING = frozenset({"session.detach", "session.destroy", "session.delete"})
_MOVED = "aerodrome.moved"
_DELETED = "session.deleted"
#: Requests that are turns in all but name, and need a place among those that run at the same time.
ASK_THE_MODEL = frozenset(
    {"session.ui.ephemeralQuery", "session.history.compact", "session.history.summarizeForHandoff"}
)
#: Seconds that a runtime may take for a request, of those that only read and of others. It holds the session where it
#: is, and without an end would for ever.
_READS, _ACTS = 120.0, 3600.0
#: Notifications of a runtime that concern one session; others are about the host, or about everybody.
_TASK_TRANSITION = "task_transition"


class _Scope(msgspec.Struct):
    sessionId: str | None = None  # noqa: N815 - the wire's name


class _Params(msgspec.Struct):
    sessionId: str | None = None  # noqa: N815
    event: EventHead | None = None
    scope: _Scope | None = None
    kind: str | None = None
    type: str | None = None


class _ErrorData(msgspec.Struct):
    code: str | None = None


class _Error(msgspec.Struct):
    data: _ErrorData


class _Notification(msgspec.Struct):
    method: str
    params: _Params


_decode_notification = msgspec.json.Decoder(_Notification).decode
#: How the CLI begins a notification. Only a hint that saves decoding a frame twice.
_EVENT_PREFIX = b'{"jsonrpc":"2.0","method":"'


class Router:
    """Args:
    is_own: Whether a session that the client is not attached to is its user's own.
    hold: Keeps the session of a request that goes straight to its runtime loaded there until what it returns is called.
    max_requests, max_bytes: Requests that may be unanswered at the same time, and bytes of them.
    stranger_bytes: The same, as long as there is no profile.
    """

    def __init__(
        self,
        is_own: Callable[[str], bool],
        hold: Callable[[Request], Callable[[], None] | None] = lambda _: None,
        *,
        max_requests: int,
        max_bytes: int = 1 << 30,
        stranger_bytes: int = 1 << 16,
    ) -> None:
        #: What the client may do; ``None`` until it has authenticated.
        self.profile: Profile | None = None
        self._is_own = is_own
        self._hold = hold
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._stranger_bytes = stranger_bytes
        #: Of the unanswered requests.
        self._bytes = 0
        self._requests: dict[RequestId, Request] = {}
        self.sessions = Bindings()
        self.questions = Questions()

    @property
    def unanswered(self) -> int:
        return len(self._requests)

    # --- from the client ---

    def from_client(self, body: bytes) -> Sequence[Command]:
        try:
            return self.take(read(body))
        except envelope.EnvelopeError as error:
            return self.unreadable(error)

    def unreadable(self, error: envelope.EnvelopeError) -> Sequence[Command]:
        """A body of the client's is no message."""
        return [ToClient(_anonymous_error(problems.PARSE_ERROR, str(error)))]

    def take(self, incoming: Incoming) -> Sequence[Command]:
        """As `from_client`, of a body that has been read already."""
        message = incoming.message
        if message.method is UNSET:
            return self.questions.answer(message, incoming.flaw)
        if message.id is UNSET or message.id is None:
            return ()  # no notification of a client means anything to a runtime
        if not incoming.has_good_id:
            return [ToClient(_anonymous_error(problems.INVALID_REQUEST, "the id has more than 64 bits"))]
        if incoming.flaw is not None:
            text = f"the parameters of {message.method} cannot be passed on: {incoming.flaw}"
            return [ToClient(_error(message.id, problems.INVALID_PARAMS, text))]
        return self._request(message.id, message.method, message.params, incoming.body)

    def _request(self, request_id: RequestId, method: str, params: Raw | UnsetType, body: bytes) -> Sequence[Command]:
        if request_id in self._requests or (isinstance(request_id, str) and request_id.startswith(OWN_IDS)):
            return [ToClient(_error(request_id, problems.INVALID_REQUEST, f"the id {request_id!r} is in use"))]
        rule = rule_for(method)
        if self.profile is None and method != "connect":
            return [ToClient(problems.not_connected_frame(request_id))]
        if len(self._requests) >= self._max_requests:
            busy = Capacity(f"{self._max_requests} requests of this connection are not answered yet", retry_after=1.0)
            return [ToClient(problems.problem_frame(request_id, method, busy), busy.code)]
        if self.profile is not None and self.profile not in rule.profiles:
            refused = refusal(method, self.profile)
            assert refused is not None
            return [ToClient(problems.refusal_frame(request_id, method, refused.reason, refused.code), refused.code)]
        request = Request(request_id, method, rule, body, params, size=len(body))
        if self._bytes + request.size > (self._stranger_bytes if self.profile is None else self._max_bytes):
            busy = Capacity(f"{self._bytes} bytes of requests of this connection are not answered yet", retry_after=1.0)
            return [ToClient(problems.problem_frame(request_id, method, busy), busy.code)]
        if rule.handling is Handling.GATEWAY:
            self._note(request)
            return [Serve(request)]
        if rule.handling is Handling.FORWARD:
            request.session_id = envelope.session_of(params)
            if request.session_id is None:
                return [ToClient(_error(request_id, problems.INVALID_PARAMS, f"{method} needs a `sessionId`"))]
            binding = self.sessions.get(request.session_id)
            if binding is not None and binding.reads_only and rule.role is not Role.READER:
                return [ToClient(_of_reader(request))]
        if needs_check(method) and (wrong := self._check(request)) is not None:
            return [wrong]
        self._note(request)
        return self._forward(request)

    def _note(self, request: Request) -> None:
        self._requests[request.id] = request
        self._bytes += request.size

    def _check(self, request: Request) -> ToClient | None:
        """Put allowed parameters in the place of the client's. An error answer when they are refused."""
        assert self.profile is not None
        try:
            params = envelope.decode_value(request.params)
        except envelope.EnvelopeError as error:
            return ToClient(_error(request.id, problems.INVALID_PARAMS, str(error)))
        if not isinstance(params, dict):
            wrong = f"{request.method} takes an object of parameters"
            return ToClient(_error(request.id, problems.INVALID_PARAMS, wrong))
        checked = checked_params(request.method, self.profile, params)
        if isinstance(checked, Refusal):
            refused = problems.refusal_frame(request.id, request.method, checked.reason, checked.code)
            return ToClient(refused, checked.code)
        try:
            request.body = envelope.request_body(request.id, request.method, checked)
        except envelope.EnvelopeError as error:
            return ToClient(_error(request.id, problems.INVALID_PARAMS, str(error)))
        return None

    def _forward(self, request: Request) -> Sequence[Command]:
        binding = self.sessions.get(request.session_id)
        if binding is None or binding.link is None or not binding.ready or request.method in ASK_THE_MODEL:
            return [Place(request)]
        request.link = binding.link
        request.on_done = self._hold(request)
        return [ToRuntime(binding.link, encode_frame(request.body))]

    # --- from a runtime ---

    def from_runtime(self, link: str, body: bytes) -> Sequence[Command]:
        if isinstance(body, Oversized):
            return self._pass_over(link, body)
        if body.startswith(_EVENT_PREFIX):
            try:
                notification = _decode_notification(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # a request, or a shape that we do not know
            else:
                return self._notification(link, notification, body)
        try:
            message = envelope.decode(body)
        except envelope.EnvelopeError:
            return ()
        if message.is_response:
            return self._answer_of_runtime(link, message, body)
        if message.is_request:
            return self._request_of_runtime(link, message)
        try:
            return self._notification(link, _decode_notification(body), body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ()

    def _pass_over(self, link: str, body: Oversized) -> Sequence[Command]:
        """What is too large to be read is answered in the name of whoever it was for. Events are just missing: the
        control link has missed them, too, and ends the turn."""
        head, error = head_of(body), TooLarge(complaint(body))
        if head.method is not None:
            return (
                [ToRuntime(link, _error(head.id, problems.INTERNAL_ERROR, error.detail))] if head.id is not None else []
            )
        request = self._requests.get(head.id) if head.id is not None else None
        if head.id is not None and request is None:
            return [ToOwn(link, refusing(head.id, error.detail))]
        if request is None or request.link != link:
            return ()
        self._done(request)
        return [ToClient(problem_of(request, error))]

    def _answer_of_runtime(self, link: str, message: envelope.Message, body: bytes) -> Sequence[Command]:
        request = self._requests.get(message.id) if isinstance(message.id, (int, str)) else None
        if request is None or request.link != link:
            return [ToOwn(link, message)]
        if message.is_error and link.startswith(NODE_LINK) and problem_code(message) in _GIVEN_BACK:
            request.link = None
            request.returned += 1
            return [Place(request)]
        self._done(request)
        if request.expelled:
            return [ToClient(problem_of(request, NotFound("there is no such session")))]
        binding = self.sessions.get(request.session_id)
        if binding is not None and binding.aliases:
            body = binding.translate(body)
        answer = ToClient(encode_frame(body))
        if request.method == "session.send" and link.startswith(NODE_LINK) and binding is not None:
            binding.note_sent(message)
        if request.method in REMEMBERED and not message.is_error:
            request.result = message.result
            return [answer, Changed(request)]
        if link.startswith(NODE_LINK) and request.method in _OPENING | _LEAVING and not self._overtaken(request):
            return [answer, Relayed(request, not message.is_error)]
        return [answer]

    def _overtaken(self, request: Request) -> bool:
        """The client has left the session, and is on its way back already: what becomes of that decides."""
        return request.method in _LEAVING and any(
            other.method in _OPENING and other.session_id == request.session_id for other in self._requests.values()
        )

    def _request_of_runtime(self, link: str, message: envelope.Message) -> Sequence[Command]:
        assert isinstance(message.id, (int, str))
        assert isinstance(message.method, str)
        session_id = envelope.session_of(message.params)
        binding = self.sessions.get(session_id)
        if binding is None or binding.unasked or (binding.link or binding.latest) != link:
            text = f"{message.method}: nobody here takes part in that session"
            return [ToRuntime(link, _error(message.id, problems.METHOD_NOT_FOUND, text))]
        if message.method == HOOKS and binding.refuses_hooks is not None:
            return [ToRuntime(link, _error(message.id, problems.INTERNAL_ERROR, binding.refuses_hooks))]
        params = bytes(message.params) if message.params is not UNSET else b"{}"
        _, body = self.questions.ask(session_id, message.method, params, link=link, request_id=message.id)
        return binding.to_client(body)

    def _notification(self, link: str, notification: _Notification, body: bytes) -> Sequence[Command]:
        params = notification.params
        if notification.method == "session.event":
            if params.event is None or params.sessionId is None:
                return ()
            return self.sessions.event(link, params.sessionId, params.event, body)
        if notification.method == _MOVED:
            return [Moved(params.sessionId, link)] if params.sessionId and link.startswith(NODE_LINK) else ()
        if notification.method == "session.lifecycle":
            if link.startswith(NODE_LINK):
                # That node knows whose it is, also when the client takes part in it no more.
                told: list[Command] = [ToClient(encode_frame(body))]
                if params.type == _DELETED and params.sessionId:
                    told.append(Gone(params.sessionId, link))
                return told
            known = params.sessionId is not None and (
                params.sessionId in self.sessions or self._is_own(params.sessionId)
            )
            return [ToClient(encode_frame(body))] if known else ()
        if notification.method == "host.event" and params.kind == _TASK_TRANSITION and params.scope is not None:
            known = self.sessions.get(params.scope.sessionId) is not None
            return [ToClient(encode_frame(body))] if known else ()
        return ()

    # --- what the shell reports ---

    def answered(self, request: Request, frame: bytes) -> Sequence[Command]:
        """A request was served by the shell, or could not be placed."""
        if self._requests.get(request.id) is not request:
            return ()
        self._done(request)
        return [ToClient(frame)]

    def send(self, request: Request, link: str) -> Sequence[Command]:
        """The runtime of a placed request is behind this link."""
        if self._requests.get(request.id) is not request:
            return ()
        request.link = link
        return [ToRuntime(link, encode_frame(request.body))]

    def ask(self, session_id: str, method: str, params: bytes) -> tuple[int, Sequence[Command]]:
        """Ask the client something that a runtime has not asked on the client's own link; `Told` has its answer."""
        number, body = self.questions.ask(session_id, method, params)
        binding = self.sessions.get(session_id)
        return number, [ToClient(encode_frame(body))] if binding is None else binding.to_client(body)

    def refuse_hooks(self, session_id: str, reason: str | None) -> Sequence[Command]:
        """Answer with an error what was asked of the client's hooks, and is until ``None`` is said; its own answers
        come too late then."""
        binding = self.sessions.get(session_id)
        if binding is not None:
            binding.refuses_hooks = reason
        return self.questions.refuse_hooks(session_id, reason) if reason is not None else ()

    def restrict(self, session_id: str, *, reads_only: bool, unasked: bool) -> Sequence[Command]:
        """What the client may do in the session, and whether it is asked anything."""
        if (binding := self.sessions.get(session_id)) is not None:
            binding.reads_only, binding.unasked = reads_only, unasked
        return self.questions.withdraw(session_id) if unasked else ()

    def expel(self, session_id: str) -> Sequence[Command]:
        """The client's user may not know of the session any more, nor get the answers to what it has asked of it."""
        self.sessions.leave(session_id)
        for request in self._requests.values():
            request.expelled = request.expelled or request.session_id == session_id
        return self.questions.withdraw(session_id)

    def bound(self, link: str) -> bool:
        """Whether anything still goes by this link."""
        return self.sessions.uses(link) or any(request.link == link for request in self._requests.values())

    def lost(self, link: str) -> Sequence[Command]:
        """The link has gone, and with it what was asked on it and has not been answered."""
        commands: list[Command] = []
        self.sessions.lost(link)
        self.questions.lost(link)
        for request in [request for request in self._requests.values() if request.link == link]:
            request.link = None
            release(request)
            if request.rule.repeatable:
                commands.append(Place(request))
                continue
            self._done(request)
            error = TurnInterrupted(f"the runtime was lost before it answered {request.method}")
            commands.append(ToClient(problem_of(request, error)))
        return commands

    def overdue(self, seconds: float) -> Sequence[Command]:
        """So many seconds have passed since the last call."""
        commands: list[Command] = []
        for request in list(self._requests.values()):
            if request.link is None:
                continue
            request.age += seconds
            if request.age >= (_READS if request.rule.repeatable else _ACTS):
                self._done(request)
                error = RuntimeUnavailable(f"the runtime has not answered {request.method} for {request.age:g} s")
                commands.append(ToClient(problem_of(request, error)))
        return commands

    def close(self) -> None:
        """The client has gone: nothing is answered any more."""
        for request in list(self._requests.values()):
            self._done(request)
        self.questions.close()

    def _done(self, request: Request) -> None:
        if self._requests.pop(request.id, None) is not None:
            self._bytes -= request.size
        release(request)


def params_of(request: Request) -> dict[str, Any]:
    """The parameters as they were sent on. Raises `EnvelopeError` when they cannot be read."""
    params = envelope.decode_value(envelope.decode(request.body).params)
    return params if isinstance(params, dict) else {}


def result_of(request: Request) -> dict[str, Any]:
    """What a runtime has answered. Raises `EnvelopeError` when it cannot be read."""
    result = envelope.decode_value(request.result)
    return result if isinstance(result, dict) else {}


def problem_of(request: Request, error: AerodromeError) -> bytes:
    """The frame that answers a request with one of our errors."""
    session_id = request.session_id or envelope.session_of(request.params)
    return problems.problem_frame(request.id, request.method, error, session_id=session_id)


def release(request: Request) -> None:
    """What is held for it is needed no more, or no more there."""
    if request.on_done is not None:
        on_done, request.on_done = request.on_done, None
        on_done()


def problem_code(message: envelope.Message) -> str | None:
    """`error.data.code` of an answer, which our own errors have."""
    try:
        return msgspec.json.decode(message.error or b"", type=_Error).data.code
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _of_reader(request: Request) -> bytes:
    """The answer to what only writers may ask."""
    try:
        params = envelope.decode_value(request.params)
    except envelope.EnvelopeError:
        params = None
    if isinstance(params, dict) and (result := readers.answer_in_place(request.method, params)) is not None:
        return envelope.result_frame(request.id, result)
    return problem_of(request, Forbidden(f"{request.method} is for writers of the session, and you are a reader of it"))


def _error(request_id: RequestId, number: int, text: str) -> bytes:
    return envelope.error_frame(request_id, number, text)


def _anonymous_error(number: int, text: str) -> bytes:
    error: dict[str, Any] = {"code": number, "message": text}
    return encode_frame(msgspec.json.encode({"jsonrpc": "2.0", "id": None, "error": error}))
