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

from msgspec import UNSET, Raw, UnsetType

from aerodrome.errors import (
    Draining,
    Forbidden,
    NotFound,
    RateLimited,
    RuntimeUnavailable,
    TooLarge,
    TurnInterrupted,
)
from aerodrome.gateway import problems
from aerodrome.gateway.bindings import NODE_LINK, Bindings
from aerodrome.gateway.bodies import Incoming, read
from aerodrome.gateway.commands import (
    Changed,
    Command,
    Place,
    Relayed,
    Request,
    Serve,
    ToClient,
    ToOwn,
    ToRuntime,
    release,
)
from aerodrome.gateway.notifications import Notifications, may_be_notification, read_notification
from aerodrome.gateway.questions import HOOKS, Questions, refusing
from aerodrome.gateway.replay import REMEMBERED
from aerodrome.gateway.unanswered import Unanswered
from aerodrome.model import Role
from aerodrome.peers.shapes import SESSION_MOVED
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
_GIVEN_BACK = frozenset({SESSION_MOVED, Draining.code})
_OPENING = frozenset({"session.create", "session.resume"})
_LEAVING = frozenset({"session.detach", "session.destroy", "session.delete"})
#: Requests that are turns in all but name, and need a place among those that run at the same time.
ASK_THE_MODEL = frozenset(
    {"session.ui.ephemeralQuery", "session.history.compact", "session.history.summarizeForHandoff"}
)


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
        self._hold = hold
        self.unanswered = Unanswered(max_requests=max_requests, max_bytes=max_bytes, stranger_bytes=stranger_bytes)
        self.sessions = Bindings()
        self.questions = Questions()
        self._notifications = Notifications(self.sessions, is_own)

    # --- from the client ---

    def from_client(self, body: bytes) -> Sequence[Command]:
        try:
            return self.take(read(body))
        except envelope.EnvelopeError as error:
            return self.unreadable(error)

    def unreadable(self, error: envelope.EnvelopeError) -> Sequence[Command]:
        """A body of the client's is no message."""
        return [ToClient(problems.anonymous_error_frame(problems.PARSE_ERROR, str(error)))]

    def take(self, incoming: Incoming) -> Sequence[Command]:
        """As `from_client`, of a body that has been read already."""
        message = incoming.message
        if message.method is UNSET:
            return self.questions.answer(message, incoming.flaw)
        if message.id is UNSET or message.id is None:
            return ()  # no notification of a client means anything to a runtime
        if not incoming.has_good_id:
            return [ToClient(problems.anonymous_error_frame(problems.INVALID_REQUEST, "the id has more than 64 bits"))]
        if incoming.flaw is not None:
            text = f"the parameters of {message.method} cannot be passed on: {incoming.flaw}"
            return [ToClient(_error(message.id, problems.INVALID_PARAMS, text))]
        return self._request(message.id, message.method, message.params, incoming.body)

    def _request(self, request_id: RequestId, method: str, params: Raw | UnsetType, body: bytes) -> Sequence[Command]:
        ours = isinstance(request_id, str) and request_id.startswith(OWN_IDS)
        if ours or self.unanswered.get(request_id) is not None:
            return [ToClient(_error(request_id, problems.INVALID_REQUEST, f"the id {request_id!r} is in use"))]
        rule = rule_for(method)
        if self.profile is None and method != "connect":
            return [ToClient(problems.not_connected_frame(request_id))]
        try:
            self.unanswered.check_count()
        except RateLimited as full:
            return [ToClient(problems.problem_frame(request_id, method, full), full.code)]
        if self.profile is not None and self.profile not in rule.profiles:
            refused = refusal(method, self.profile)
            assert refused is not None
            return [ToClient(problems.refusal_frame(request_id, method, refused.reason, refused.code), refused.code)]
        request = Request(request_id, method, rule, body, params, size=len(body))
        try:
            self.unanswered.check_bytes(request.size, stranger=self.profile is None)
        except RateLimited as full:
            return [ToClient(problems.problem_frame(request_id, method, full), full.code)]
        if rule.handling is Handling.GATEWAY:
            self.unanswered.add(request)
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
        self.unanswered.add(request)
        return self._forward(request)

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
        if may_be_notification(body) and (notification := read_notification(body)) is not None:
            return self._notifications.take(link, notification, body)
        try:
            message = envelope.decode(body)
        except envelope.EnvelopeError:
            return ()
        if message.is_response:
            return self._answer_of_runtime(link, message, body)
        if message.is_request:
            return self._request_of_runtime(link, message)
        notification = read_notification(body)
        return self._notifications.take(link, notification, body) if notification is not None else ()

    def _pass_over(self, link: str, body: Oversized) -> Sequence[Command]:
        """What is too large to be read is answered in the name of whoever it was for. Events are just missing: the
        control link has missed them, too, and ends the turn."""
        head, error = head_of(body), TooLarge(complaint(body))
        if head.method is not None:
            return (
                [ToRuntime(link, _error(head.id, problems.INTERNAL_ERROR, error.detail))] if head.id is not None else []
            )
        request = self.unanswered.get(head.id)
        if head.id is not None and request is None:
            return [ToOwn(link, refusing(head.id, error.detail))]
        if request is None or request.link != link:
            return ()
        self.unanswered.remove(request)
        return [ToClient(problems.problem_of(request, error))]

    def _answer_of_runtime(self, link: str, message: envelope.Message, body: bytes) -> Sequence[Command]:
        request = self.unanswered.get(message.id) if isinstance(message.id, (int, str)) else None
        if request is None or request.link != link:
            return [ToOwn(link, message)]
        if message.is_error and link.startswith(NODE_LINK) and problems.problem_code(message) in _GIVEN_BACK:
            request.link = None
            request.returned += 1
            return [Place(request)]
        self.unanswered.remove(request)
        if request.expelled:
            return [ToClient(problems.problem_of(request, NotFound("there is no such session")))]
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
            other.method in _OPENING and other.session_id == request.session_id for other in self.unanswered
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

    # --- what the shell reports ---

    def answered(self, request: Request, frame: bytes) -> Sequence[Command]:
        """A request was served by the shell, or could not be placed."""
        if request not in self.unanswered:
            return ()
        self.unanswered.remove(request)
        return [ToClient(frame)]

    def send(self, request: Request, link: str) -> Sequence[Command]:
        """The runtime of a placed request is behind this link."""
        if request not in self.unanswered:
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
        for request in self.unanswered:
            request.expelled = request.expelled or request.session_id == session_id
        return self.questions.withdraw(session_id)

    def bound(self, link: str) -> bool:
        """Whether anything still goes by this link."""
        return self.sessions.uses(link) or bool(self.unanswered.on_link(link))

    def lost(self, link: str) -> Sequence[Command]:
        """The link has gone, and with it what was asked on it and has not been answered."""
        commands: list[Command] = []
        self.sessions.lost(link)
        self.questions.lost(link)
        for request in self.unanswered.on_link(link):
            request.link = None
            release(request)
            if request.rule.repeatable:
                commands.append(Place(request))
                continue
            self.unanswered.remove(request)
            error = TurnInterrupted(f"the runtime was lost before it answered {request.method}")
            commands.append(ToClient(problems.problem_of(request, error)))
        return commands

    def overdue(self, seconds: float) -> Sequence[Command]:
        """So many seconds have passed since the last call."""
        commands: list[Command] = []
        for request in self.unanswered.overdue(seconds):
            self.unanswered.remove(request)
            error = RuntimeUnavailable(f"the runtime has not answered {request.method} for {request.age:g} s")
            commands.append(ToClient(problems.problem_of(request, error)))
        return commands

    def close(self) -> None:
        """The client has gone: nothing is answered any more."""
        for request in self.unanswered:
            self.unanswered.remove(request)
        self.questions.close()


def _of_reader(request: Request) -> bytes:
    """The answer to what only writers may ask."""
    try:
        params = envelope.decode_value(request.params)
    except envelope.EnvelopeError:
        params = None
    if isinstance(params, dict) and (result := readers.answer_in_place(request.method, params)) is not None:
        return envelope.result_frame(request.id, result)
    return problems.problem_of(
        request, Forbidden(f"{request.method} is for writers of the session, and you are a reader of it")
    )


def _error(request_id: RequestId, number: int, text: str) -> bytes:
    return envelope.error_frame(request_id, number, text)
