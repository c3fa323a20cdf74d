"""What a client has been told of one session, and where the session is, as far as that client goes. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import msgspec
from msgspec import Raw

from aerodrome.events import SessionEvent
from aerodrome.gateway.commands import Command, ToClient
from aerodrome.wire import envelope
from aerodrome.wire.framing import encode_frame

#: Events between which a session is at work.
_WORK_BEGINS = frozenset({"user.message", "assistant.turn_start"})
WORK_ENDS = "session.idle"
_ABORTS = "abort"
#: Events that say what becomes of a prompt.
_FATES = frozenset({"user.message", "session.error"})
#: How many of the latest events of a session are remembered as told. The sessions room keeps fewer for those who
#: missed some.
_REMEMBERED = 2048
#: The same, of those that are stored: one long answer may be made of more pieces than are remembered.
_STORED = 64
#: How many of the latest prompts.
_BEGUN = 64


class _Data(msgspec.Struct):
    messageId: str | None = None  # noqa: N815 - the wire's names
    originatingMessageId: str | None = None  # noqa: N815


class Event(msgspec.Struct):
    """Of an event, what says whose prompt it is about."""

    data: _Data
    id: str = ""


class _Sent(msgspec.Struct):
    messageId: str  # noqa: N815 - the wire's name


decode_event = msgspec.json.Decoder(Event).decode


def message_of(event: SessionEvent) -> str | None:
    """The message id of a stored `user.message`."""
    try:
        return decode_event(event.raw).data.messageId or event.id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return event.id


class Binding:
    """One session that the client takes part in."""

    def __init__(self) -> None:
        #: Where its runtime is, if it has one.
        self.link: str | None = None
        #: Where it was last: what its runtime says in the moment in which it is unloaded still comes from there.
        self.latest: str | None = None
        #: That is another node: what has become of the client's prompts only events say.
        self.elsewhere = False
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
        #: Message ids of the latest prompts that have begun, and whether they are still worked on. The answer to the
        #: client that sent one may come behind its first event, or its last.
        self._begun: dict[str, bool] = {}
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
        elif event_type == _ABORTS:
            self.sent = dict.fromkeys(self.sent, True)  # those that wait in the runtime end with it
        elif event_type == WORK_ENDS:
            self.working = False
            self.sent = {message_id: False for message_id, begun in self.sent.items() if not begun}
            self._begun = dict.fromkeys(self._begun, False)
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
                message_id = msgspec.json.decode(answer.result, type=_Sent).messageId
                begun = message_id in self._begun
                if not begun or self._begun[message_id]:
                    self.sent[message_id] = begun

    def reads(self, event_type: str) -> bool:
        """Whether `note_fate` wants to know of an event of this type."""
        return event_type in _FATES and (self.elsewhere or bool(self.sent or self.in_doubt))

    def note_fate(self, event_type: str, event: Event) -> None:
        """One of the client's prompts has begun, or has ended with an error that says so."""
        if event_type == "user.message":
            message_id = event.data.messageId or event.id
            # Told anew: it is stored, or on its way again.
            self.in_doubt.discard(message_id)
            self._note_begun(message_id, at_work=True)
            if message_id in self.sent:
                self.sent[message_id] = True
        elif (ended := event.data.originatingMessageId) is not None:
            self._note_begun(ended, at_work=False)
            self.sent.pop(ended, None)
            self.in_doubt.discard(ended)

    def _note_begun(self, message_id: str, *, at_work: bool) -> None:
        self._begun[message_id] = at_work
        if len(self._begun) > _BEGUN:
            del self._begun[next(iter(self._begun))]

    def withholds(self, event_id: str, event_type: str, body: bytes) -> bool:
        """Whether the client is not to be told of this event now."""
        if event_type == WORK_ENDS and self.in_doubt and event_id not in self._told:
            self.withheld = (event_id, body)
        elif event_type in _WORK_BEGINS:
            self.withheld = None  # the next end comes
        return self.withheld is not None and self.withheld[0] == event_id

    def translate(self, body: bytes) -> bytes:
        for latest, first in self.aliases.items():
            body = body.replace(latest, first)
        return body

    def to_client(self, body: bytes, event_id: str | None = None) -> Sequence[Command]:
        """Pass a body on, or hold it back.

        Args:
            event_id: When it is an event's.
        """
        if self.held is not None:
            self.held.append((event_id, body))
            self.held_bytes += len(body)
            return ()
        return [self.passed_on(body)]

    def passed_on(self, body: bytes) -> ToClient:
        return ToClient(encode_frame(self.translate(body) if self.aliases else body))
