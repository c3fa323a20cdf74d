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

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
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
from aerodrome.events import SessionEvent
from aerodrome.gateway import problems
from aerodrome.gateway.bodies import Incoming, answer_body, read
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
    Told,
    ToOwn,
    ToRuntime,
)
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
#: Ids of links to other nodes begin so.
NODE_LINK = "node:"
#: What another node answers with when it is not for it to answer; nothing has happened then.
_GIVEN_BACK = frozenset({"session_moved", "draining"})
_OPENING = frozenset({"session.create", "session.resume"})
_LEAVING = frozenset({"session.detach", "session.destroy", "session.delete"})
_MOVED = "aerodrome.moved"
_DELETED = "session.deleted"
#: Events between which a session is at work.
_WORK_BEGINS = frozenset({"user.message", "assistant.turn_start"})
_WORK_ENDS = "session.idle"
#: Events that say what becomes of a prompt.
_FATES = frozenset({"user.message", "session.error"})
#: How many of the latest events of a session are remembered as told. The sessions room keeps fewer for those who
#: missed some.
_REMEMBERED = 2048
#: The same, of those that are stored: one long answer may be made of more pieces than are remembered.
_STORED = 64
_HOOKS = "hooks.invoke"
#: Before these are answered a runtime does nothing else for their session.
_HELD_UP_BY = frozenset({_HOOKS, "systemMessage.transform"})
#: Requests that are turns in all but name, and need a place among those that run at the same time.
ASK_THE_MODEL = frozenset(
    {"session.ui.ephemeralQuery", "session.history.compact", "session.history.summarizeForHandoff"}
)
#: Seconds that a runtime may take for a request, of those that only read and of others. It holds the session where it
#: is, and without an end would for ever.
_READS, _ACTS = 120.0, 3600.0
#: Notifications of a runtime that concern one session; others are about the host, or about everybody.
_TASK_TRANSITION = "task_transition"
#: Events of a session's leaving one runtime and coming to another, of which the client knows nothing.
_OF_MOVES = frozenset({"session.shutdown", "session.resume"})


class _Data(msgspec.Struct):
    messageId: str | None = None  # noqa: N815 - the wire's names
    originatingMessageId: str | None = None  # noqa: N815


class _Head(msgspec.Struct):
    id: str = ""
    type: str = ""
    ephemeral: bool = False


class _Event(msgspec.Struct):
    data: _Data
    id: str = ""


class _Sent(msgspec.Struct):
    messageId: str  # noqa: N815 - the wire's name


class _EventFrame(msgspec.Struct):
    event: _Event


class _EventNotification(msgspec.Struct):
    params: _EventFrame


class _Scope(msgspec.Struct):
    sessionId: str | None = None  # noqa: N815 - the wire's name


class _Params(msgspec.Struct):
    sessionId: str | None = None  # noqa: N815
    event: _Head | None = None
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
_decode_event = msgspec.json.Decoder(_Event).decode
#: How the CLI begins a notification. Only a hint that saves decoding a frame twice.
_EVENT_PREFIX = b'{"jsonrpc":"2.0","method":"'


class _Asked(msgspec.Struct):
    """What the client was asked."""

    session_id: str | None
    method: str
    #: The runtime that asks, and its id; ``None``: we do.
    link: str | None = None
    id: RequestId | None = None


class _Binding:
    """A session that the client takes part in."""

    def __init__(self) -> None:
        #: Where its runtime is, if it has one.
        self.link: str | None = None
        #: Where it was last: what its runtime says in the moment in which it is unloaded still comes from there.
        self.latest: str | None = None
        #: The runtime has loaded it: before that it would answer that there is no such session.
        self.ready = False
        self._told: set[str] = set()
        self._order: deque[str] = deque()
        #: Message ids of prompts that were sent again: what the runtime says, and what the client knows.
        self.aliases: dict[bytes, bytes] = {}
        #: Why the client's hooks are not asked at this moment.
        self.refuses_hooks: str | None = None
        #: Bodies, events with their ids, held back until an alias is known, or until what was missed before them is
        #: told.
        self.held: list[tuple[str | None, bytes]] | None = None
        self.held_bytes = 0
        #: Bodies are held back for the sake of what was missed.
        self.moving = False
        #: Ids of the latest stored events that were told before that, the latest first.
        self.known: list[str] = []
        self._stored: deque[str] = deque(maxlen=_STORED)
        #: As far as the client was told, the session is at work.
        self.working = False
        #: Prompts of the client that another node has taken and whose end has not been told, by message id, and whether
        #: they have begun.
        self.sent: dict[str, bool] = {}
        #: Those that were with a runtime which the session has lost, until it is known what has become of them. As far
        #: as the client has seen they may be answered, and nothing of that may be stored.
        self.in_doubt: set[str] = set()
        #: That the session is idle, not told meanwhile: the client would take it for their end.
        self.withheld: tuple[str, bytes] | None = None
        #: The client's user may only read.
        self.reads_only = False
        #: The client is asked nothing: neither by a runtime's requests, nor by events.
        self.unasked = False

    def hold_back(self) -> None:
        # Also when the session has to be looked for again: what was held in between the client does not have.
        if not self.moving:
            self.moving, self.known = True, list(reversed(self._stored))
            self.in_doubt |= self.sent.keys()
            self.sent = {}
        self.held = self.held if self.held is not None else []

    def note(self, event_id: str, event_type: str, *, ephemeral: bool) -> bool:
        """Remember an event as told. ``False``: it was told before."""
        if event_id in self._told:
            return False
        if not ephemeral:
            self._stored.append(event_id)
        if event_type in _WORK_BEGINS:
            self.working = True
        elif event_type == _WORK_ENDS:
            self.working = False
            self.sent = {message_id: False for message_id, begun in self.sent.items() if not begun}
        self._told.add(event_id)
        self._order.append(event_id)
        if len(self._order) > _REMEMBERED:
            self._told.discard(self._order.popleft())
        return True

    def has(self, event_id: str) -> bool:
        return event_id in self._told

    def note_sent(self, answer: envelope.Message) -> None:
        """A prompt of the client's was taken by the node that runs the session."""
        if not answer.is_error and isinstance(answer.result, Raw):
            with suppress(msgspec.DecodeError):
                self.sent[msgspec.json.decode(answer.result, type=_Sent).messageId] = False

    def reads(self, event_type: str) -> bool:
        """Whether `note_fate` wants to know of an event of this type."""
        return event_type in _FATES and bool(self.sent or self.in_doubt)

    def note_fate(self, event_type: str, event: _Event) -> None:
        """One of the client's prompts has begun, or has ended with an error that says so."""
        if event_type == "user.message":
            message_id = event.data.messageId or event.id
            # Told anew: it is stored, or on its way again.
            self.in_doubt.discard(message_id)
            if message_id in self.sent:
                self.sent[message_id] = True
        elif event.data.originatingMessageId is not None:
            self.sent.pop(event.data.originatingMessageId, None)
            self.in_doubt.discard(event.data.originatingMessageId)

    def withholds(self, event_id: str, event_type: str, body: bytes) -> bool:
        """Whether the client is not to be told of this event now."""
        if event_type == _WORK_ENDS and self.in_doubt and event_id not in self._told:
            self.withheld = (event_id, body)
        elif event_type in _WORK_BEGINS:
            self.withheld = None  # the next end comes
        return self.withheld is not None and self.withheld[0] == event_id

    def translate(self, body: bytes) -> bytes:
        for latest, first in self.aliases.items():
            body = body.replace(latest, first)
        return body


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
        self._sessions: dict[str, _Binding] = {}
        #: Requests that the client has not answered, by our number.
        self._asked: dict[int, _Asked] = {}
        self._numbers = 0

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
            return self._answer_of_client(message, incoming.flaw)
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
            binding = self._sessions.get(request.session_id)
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
        binding = self._sessions.get(request.session_id) if request.session_id is not None else None
        if binding is None or binding.link is None or not binding.ready or request.method in ASK_THE_MODEL:
            return [Place(request)]
        request.link = binding.link
        request.on_done = self._hold(request)
        return [ToRuntime(binding.link, encode_frame(request.body))]

    def _answer_of_client(self, message: envelope.Message, flaw: str | None) -> Sequence[Command]:
        if not isinstance(message.id, int) or message.id not in self._asked:
            return ()
        asked = self._asked.pop(message.id)
        # What has a flaw the runtime would not read, and wait for ever.
        text = f"the client's answer cannot be passed on: {flaw}"
        if asked.link is None or asked.id is None:
            return [Told(message.id, _refusing(message.id, text) if flaw is not None else message)]
        if flaw is not None:
            return [ToRuntime(asked.link, _error(asked.id, problems.INTERNAL_ERROR, text))]
        return [ToRuntime(asked.link, encode_frame(answer_body(asked.id, message)))]

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
            return [ToOwn(link, _refusing(head.id, error.detail))]
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
        binding = self._sessions.get(request.session_id) if request.session_id is not None else None
        if binding is not None and binding.aliases:
            body = binding.translate(body)
        answer = ToClient(encode_frame(body))
        if request.method == "session.send" and link.startswith(NODE_LINK) and binding is not None:
            binding.note_sent(message)
        if request.method in REMEMBERED and not message.is_error:
            return [answer, Changed(request)]
        if link.startswith(NODE_LINK) and request.method in _OPENING | _LEAVING:
            return [answer, Relayed(request, not message.is_error)]
        return [answer]

    def _request_of_runtime(self, link: str, message: envelope.Message) -> Sequence[Command]:
        assert isinstance(message.id, (int, str))
        assert isinstance(message.method, str)
        session_id = envelope.session_of(message.params)
        binding = self._sessions.get(session_id) if session_id is not None else None
        if binding is None or binding.unasked or (binding.link or binding.latest) != link:
            text = f"{message.method}: nobody here takes part in that session"
            return [ToRuntime(link, _error(message.id, problems.METHOD_NOT_FOUND, text))]
        if message.method == _HOOKS and binding.refuses_hooks is not None:
            return [ToRuntime(link, _error(message.id, problems.INTERNAL_ERROR, binding.refuses_hooks))]
        self._numbers += 1
        self._asked[self._numbers] = _Asked(session_id, message.method, link, message.id)
        params = bytes(message.params) if message.params is not UNSET else b"{}"
        method = msgspec.json.encode(message.method)
        body = b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b}' % (self._numbers, method, params)
        return self._to_client(binding, body)

    def _notification(self, link: str, notification: _Notification, body: bytes) -> Sequence[Command]:
        params = notification.params
        if notification.method == "session.event":
            binding = self._sessions.get(params.sessionId or "")
            if binding is None or (binding.link or binding.latest) != link or params.event is None:
                return ()
            if binding.withholds(params.event.id, params.event.type, body):
                return ()
            known = not binding.note(params.event.id, params.event.type, ephemeral=params.event.ephemeral)
            if binding.reads(params.event.type):
                with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    translated = binding.translate(body)
                    event = msgspec.json.decode(translated, type=_EventNotification).params.event
                    binding.note_fate(params.event.type, event)
            if known or (binding.unasked and readers.asks(params.event.type)):
                return ()
            said = self._to_client(binding, body, params.event.id)
            return said if binding.withheld is None else [*said, *self._idle_after_all(binding)]
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
                params.sessionId in self._sessions or self._is_own(params.sessionId)
            )
            return [ToClient(encode_frame(body))] if known else ()
        if notification.method == "host.event" and params.kind == _TASK_TRANSITION and params.scope is not None:
            return [ToClient(encode_frame(body))] if params.scope.sessionId in self._sessions else ()
        return ()

    def _to_client(self, binding: _Binding, body: bytes, event_id: str | None = None) -> Sequence[Command]:
        if binding.held is not None:
            binding.held.append((event_id, body))
            binding.held_bytes += len(body)
            return ()
        return [self._passed_on(binding, body)]

    @staticmethod
    def _passed_on(binding: _Binding, body: bytes) -> ToClient:
        return ToClient(encode_frame(binding.translate(body) if binding.aliases else body))

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
        self._numbers += 1
        self._asked[self._numbers] = _Asked(session_id, method)
        body = b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b}' % (
            self._numbers,
            msgspec.json.encode(method),
            params,
        )
        binding = self._sessions.get(session_id)
        return self._numbers, [ToClient(encode_frame(body))] if binding is None else self._to_client(binding, body)

    def forget(self, number: int) -> None:
        """Nobody waits any more for what we have asked ourselves."""
        self._asked.pop(number, None)

    def owes(self, session_id: str) -> bool:
        """Whether the client has not answered something before which a runtime does nothing else for the session."""
        return any(asked.session_id == session_id and asked.method in _HELD_UP_BY for asked in self._asked.values())

    def refuse_hooks(self, session_id: str, reason: str | None) -> Sequence[Command]:
        """Answer with an error what was asked of the client's hooks, and is until ``None`` is said; its own answers
        come too late then."""
        binding = self._sessions.get(session_id)
        if binding is not None:
            binding.refuses_hooks = reason
        commands: list[Command] = []
        if reason is None:
            return commands
        for number, asked in list(self._asked.items()):
            if asked.session_id == session_id and asked.method == _HOOKS and asked.link is not None:
                assert asked.id is not None
                del self._asked[number]
                commands.append(ToRuntime(asked.link, _error(asked.id, problems.INTERNAL_ERROR, reason)))
        return commands

    def take_part(self, session_id: str) -> None:
        """The client is about to be attached to the session: its events concern it from now on."""
        self._sessions.setdefault(session_id, _Binding())

    def bind(self, session_id: str, link: str) -> None:
        """The session is about to be loaded in the runtime behind the link, which tells its events from now on."""
        binding = self._sessions.setdefault(session_id, _Binding())
        binding.link = binding.latest = link
        binding.ready = False

    def ready(self, session_id: str) -> None:
        """It is loaded: requests may go there."""
        if (binding := self._sessions.get(session_id)) is not None:
            binding.ready = binding.link is not None

    def unbind(self, session_id: str) -> None:
        """The session is loaded nowhere, as far as this client goes."""
        if (binding := self._sessions.get(session_id)) is not None:
            binding.link = None

    def cut_off(self, session_id: str, link: str) -> None:
        """What comes by this link is not the session's any more: somebody else may run it."""
        binding = self._sessions.get(session_id)
        if binding is not None and binding.latest == link:
            binding.link = binding.latest = None

    def leave(self, session_id: str) -> None:
        """The client takes part no more."""
        self._sessions.pop(session_id, None)

    def restrict(self, session_id: str, *, reads_only: bool, unasked: bool) -> Sequence[Command]:
        """What the client may do in the session, and whether it is asked anything."""
        if (binding := self._sessions.get(session_id)) is not None:
            binding.reads_only, binding.unasked = reads_only, unasked
        return self._withdraw(session_id) if unasked else ()

    def expel(self, session_id: str) -> Sequence[Command]:
        """The client's user may not know of the session any more, nor get the answers to what it has asked of it."""
        self.leave(session_id)
        for request in self._requests.values():
            request.expelled = request.expelled or request.session_id == session_id
        return self._withdraw(session_id)

    def _withdraw(self, session_id: str) -> Sequence[Command]:
        """What the client was asked and has not answered is answered for it: nobody shall wait for it."""
        commands: list[Command] = []
        for number in [number for number, asked in self._asked.items() if asked.session_id == session_id]:
            asked = self._asked.pop(number)
            text = "the client may not answer that any more"
            if asked.link is not None and asked.id is not None:
                commands.append(ToRuntime(asked.link, _error(asked.id, problems.METHOD_NOT_FOUND, text)))
            else:
                error = Raw(msgspec.json.encode({"code": problems.METHOD_NOT_FOUND, "message": text}))
                commands.append(Told(number, envelope.Message(id=number, error=error)))
        return commands

    def bound(self, link: str) -> bool:
        """Whether anything still goes by this link."""
        return any(binding.link == link for binding in self._sessions.values()) or any(
            request.link == link for request in self._requests.values()
        )

    def is_ready(self, session_id: str) -> bool:
        """It is loaded where it is bound to."""
        binding = self._sessions.get(session_id)
        return binding is not None and binding.link is not None and binding.ready

    def is_bound(self, session_id: str) -> bool:
        binding = self._sessions.get(session_id)
        return binding is not None and binding.link is not None

    def lost(self, link: str) -> Sequence[Command]:
        """The link has gone, and with it what was asked on it and has not been answered."""
        commands: list[Command] = []
        for binding in self._sessions.values():
            if binding.link == link:
                binding.link = None
        for number in [number for number, asked in self._asked.items() if asked.link == link]:
            del self._asked[number]
        for request in [request for request in self._requests.values() if request.link == link]:
            request.link = None
            _release(request)
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
        self._asked.clear()

    # --- events that the runtime could not tell ---

    def tell(self, session_id: str, events: Iterable[SessionEvent], *, from_host: bool = False) -> Sequence[Command]:
        """Events that others know of. Without `from_host` they are the runtime's own, and come by themselves as long
        as the session is bound."""
        binding = self._sessions.get(session_id)
        if binding is None or (binding.link is not None and not from_host):
            return ()
        commands: list[Command] = []
        for event in events:
            if event.type.startswith("aerodrome.") or event.type in _OF_MOVES:
                continue
            body = b'{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"%b","event":%b}}' % (
                session_id.encode(),
                event.raw,
            )
            if binding.withholds(event.id, event.type, body):
                continue
            if not binding.note(event.id, event.type, ephemeral=event.ephemeral):
                continue
            if binding.reads(event.type):
                with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    binding.note_fate(event.type, _decode_event(event.raw))
            if binding.unasked and readers.asks(event.type):
                continue
            commands.extend(self._to_client(binding, body, event.id))
        return [*commands, *self._idle_after_all(binding)]

    def _idle_after_all(self, binding: _Binding) -> Sequence[Command]:
        """What was withheld, once nothing is in doubt any more."""
        if binding.in_doubt or binding.withheld is None:
            return ()
        (event_id, body), binding.withheld = binding.withheld, None
        if not binding.working or not binding.note(event_id, _WORK_ENDS, ephemeral=True):
            return ()  # somebody else has said so
        return self._to_client(binding, body, event_id)

    def catch_up(self, session_id: str, kept: Sequence[SessionEvent]) -> Sequence[Command]:
        """The latest events that others know of, when the session has lost its runtime: those behind the last one that
        the client has. None, when it has none of them: it came later, or is far behind."""
        binding = self._sessions.get(session_id)
        if binding is None:
            return ()
        for place in range(len(kept) - 1, -1, -1):
            if binding.has(kept[place].id):
                return self.tell(session_id, kept[place + 1 :], from_host=True)
        return ()

    # --- sessions that change nodes ---

    def hold_back(self, session_id: str) -> None:
        """The session is about to come from another node: keep what is told of it until `release`."""
        if (binding := self._sessions.get(session_id)) is not None:
            binding.link = None
            binding.hold_back()

    @property
    def held_bytes(self) -> int:
        """Of bodies that are held back."""
        return sum(binding.held_bytes for binding in self._sessions.values())

    def known(self, session_id: str) -> list[str]:
        """Ids of the stored events that the client was told before `hold_back`, the latest first."""
        binding = self._sessions.get(session_id)
        return binding.known if binding is not None else []

    def release(self, session_id: str, missed: Sequence[SessionEvent]) -> Sequence[Command]:
        """Tell what the client has missed, and what was kept meanwhile, of which some may be among it."""
        binding = self._sessions.get(session_id)
        if binding is None:
            return ()
        held, binding.held = deque(binding.held or ()), None
        binding.moving, binding.held_bytes = False, 0
        waiting = {event_id for event_id, _ in held if event_id is not None}
        commands: list[Command] = []
        for event in missed:
            if event.id not in waiting:
                commands += self.tell(session_id, [event], from_host=True)
            while event.id in waiting:  # in the order of the history, and what is not stored where it was told
                event_id, body = held.popleft()
                waiting.discard(event_id or "")
                commands.append(self._passed_on(binding, body))
        return [*commands, *(self._passed_on(binding, body) for _, body in held)]

    def at_work(self, session_id: str) -> bool:
        """Whether the client was told of work in the session and not of its end."""
        binding = self._sessions.get(session_id)
        return binding is not None and binding.working

    def is_idle_withheld(self, session_id: str) -> bool:
        binding = self._sessions.get(session_id)
        return binding is not None and binding.withheld is not None

    def has_doubts(self, session_id: str) -> bool:
        """Whether it is not known yet what has become of prompts of the client."""
        binding = self._sessions.get(session_id)
        return binding is not None and bool(binding.in_doubt)

    def doubt(self, session_id: str, message_ids: Iterable[str]) -> None:
        """These prompts of the client were with a runtime that is lost."""
        if (binding := self._sessions.get(session_id)) is not None:
            binding.in_doubt.update(message_ids)

    def lost_prompts(self, session_id: str, history: Sequence[SessionEvent]) -> list[str]:
        """Message ids of the client's prompts in doubt that do not stand in the session's stored events. Those that do
        are in doubt no more; whoever asks tells the client of the others (`tell`)."""
        binding = self._sessions.get(session_id)
        if binding is None:
            return []
        stored = {_message_of(event) for event in history if event.type == "user.message"}
        binding.in_doubt -= stored
        return sorted(binding.in_doubt)

    def settled(self, session_id: str) -> Sequence[Command]:
        """It is known of all that was in doubt."""
        binding = self._sessions.get(session_id)
        if binding is None:
            return ()
        binding.in_doubt = set()
        return self._idle_after_all(binding)

    def alias(self, session_id: str, first_id: str, latest_id: str | None) -> Sequence[Command]:
        """A prompt is sent again (`latest_id` is ``None``): hold back what is told until its new id is known."""
        binding = self._sessions.get(session_id)
        if binding is None:
            return ()
        if latest_id is None:
            binding.held = binding.held if binding.held is not None else []
            return ()
        if latest_id != first_id:
            binding.aliases[latest_id.encode()] = first_id.encode()
            binding.in_doubt.discard(first_id)
        if binding.moving:
            return ()  # the session is changing nodes
        held, binding.held, binding.held_bytes = binding.held or [], None, 0
        return [*(self._passed_on(binding, body) for _, body in held), *self._idle_after_all(binding)]

    def _done(self, request: Request) -> None:
        if self._requests.pop(request.id, None) is not None:
            self._bytes -= request.size
        _release(request)


def _message_of(event: SessionEvent) -> str | None:
    """The message id of a stored `user.message`."""
    try:
        return _decode_event(event.raw).data.messageId or event.id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return event.id


def params_of(request: Request) -> dict[str, Any]:
    """The parameters as they were sent on. Raises `EnvelopeError` when they cannot be read."""
    params = envelope.decode_value(envelope.decode(request.body).params)
    return params if isinstance(params, dict) else {}


def problem_of(request: Request, error: AerodromeError) -> bytes:
    """The frame that answers a request with one of our errors."""
    session_id = request.session_id or envelope.session_of(request.params)
    return problems.problem_frame(request.id, request.method, error, session_id=session_id)


def _release(request: Request) -> None:
    """What was held for it is needed no more, or no more there."""
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


def _refusing(number: RequestId, text: str) -> envelope.Message:
    """As if whoever was asked had refused."""
    error = msgspec.json.encode({"code": problems.INTERNAL_ERROR, "message": text})
    return envelope.Message(id=number, error=Raw(error))


def _anonymous_error(number: int, text: str) -> bytes:
    error: dict[str, Any] = {"code": number, "message": text}
    return encode_frame(msgspec.json.encode({"jsonrpc": "2.0", "id": None, "error": error}))
