"""The sessions that one client takes part in: by which link each is reached, and what is told of it, each event once.

Pure: what is to be sent comes back as commands. What comes by a link that a session is not bound to is nobody's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec

from aerodrome.events import SessionEvent
from aerodrome.gateway.binding import WORK_ENDS, Binding, Event, decode_event, message_of
from aerodrome.gateway.commands import Command
from aerodrome.policy import readers
from aerodrome.wire.envelope import is_json

#: Events of a session's leaving one runtime and coming to another, of which the client knows nothing.
_OF_MOVES = frozenset({"session.shutdown", "session.resume"})


#: Ids of links to other nodes begin so.
NODE_LINK = "node:"


class EventHead(msgspec.Struct):
    """Of an event, what says what to do with it."""

    id: str = ""
    type: str = ""
    ephemeral: bool = False


class _EventFrame(msgspec.Struct):
    event: Event


class _EventNotification(msgspec.Struct):
    params: _EventFrame


_decode_notification = msgspec.json.Decoder(_EventNotification).decode


class Bindings:
    def __init__(self) -> None:
        self._bindings: dict[str, Binding] = {}

    def take_part(self, session_id: str) -> None:
        """The client is about to be attached to the session: its events concern it from now on."""
        self._bindings.setdefault(session_id, Binding())

    def bind(self, session_id: str, link: str) -> None:
        """The session is about to be loaded in the runtime behind the link, which tells its events from now on."""
        binding = self._bindings.setdefault(session_id, Binding())
        binding.link = binding.latest = link
        binding.elsewhere = link.startswith(NODE_LINK)
        binding.ready = False

    def ready(self, session_id: str) -> None:
        """It is loaded: requests may go there."""
        if (binding := self._bindings.get(session_id)) is not None:
            binding.ready = binding.link is not None

    def unbind(self, session_id: str) -> None:
        """The session is loaded nowhere, as far as this client goes."""
        if (binding := self._bindings.get(session_id)) is not None:
            binding.link = None

    def cut_off(self, session_id: str, link: str) -> None:
        """What comes by this link is not the session's any more: somebody else may run it."""
        binding = self._bindings.get(session_id)
        if binding is not None and binding.latest == link:
            binding.link = binding.latest = None

    def leave(self, session_id: str) -> None:
        """The client takes part no more."""
        self._bindings.pop(session_id, None)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._bindings

    def get(self, session_id: str | None) -> Binding | None:
        return self._bindings.get(session_id) if session_id is not None else None

    def uses(self, link: str) -> bool:
        """Whether a session is bound to this link."""
        return any(binding.link == link for binding in self._bindings.values())

    @property
    def under_way(self) -> bool:
        """Whether anything that the client was told of, or has sent, has not come to its end as far as it knows.

        Of what runs on this node others know better."""
        return any(
            binding.in_doubt or (binding.elsewhere and (binding.working or binding.sent))
            for binding in self._bindings.values()
        )

    def lost(self, link: str) -> None:
        """The link has gone."""
        for binding in self._bindings.values():
            if binding.link == link:
                binding.link = None

    def is_ready(self, session_id: str) -> bool:
        """It is loaded where it is bound to."""
        binding = self._bindings.get(session_id)
        return binding is not None and binding.link is not None and binding.ready

    def is_bound(self, session_id: str) -> bool:
        binding = self._bindings.get(session_id)
        return binding is not None and binding.link is not None

    # --- what is told ---

    def event(self, link: str, session_id: str, head: EventHead, body: bytes) -> Sequence[Command]:
        """A runtime, or the node behind it, has told an event on this link."""
        binding = self._bindings.get(session_id)
        if binding is None or (binding.link or binding.latest) != link:
            return ()
        if binding.withholds(head.id, head.type, body):
            return ()
        known = not binding.note(head.id, head.type, ephemeral=head.ephemeral)
        if binding.reads(head.type):
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                binding.note_fate(head.type, _decode_notification(binding.translate(body)).params.event)
        if known or (binding.unasked and readers.asks(head.type)):
            return ()
        said = binding.to_client(body, head.id)
        return said if binding.withheld is None else [*said, *_idle_after_all(binding)]

    def tell(self, session_id: str, events: Iterable[SessionEvent], *, from_host: bool = False) -> Sequence[Command]:
        """Events that others know of. Without `from_host` they are the runtime's own, and come by themselves as long
        as the session is bound."""
        binding = self._bindings.get(session_id)
        if binding is None or (binding.link is not None and not from_host):
            return ()
        commands: list[Command] = []
        for event in events:
            if event.type.startswith("aerodrome.") or event.type in _OF_MOVES:
                continue
            if event.is_trace and not is_json(event.raw):
                continue  # nobody has looked at it yet
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
                    binding.note_fate(event.type, decode_event(event.raw))
            if binding.unasked and readers.asks(event.type):
                continue
            commands.extend(binding.to_client(body, event.id))
        return [*commands, *_idle_after_all(binding)]

    def catch_up(self, session_id: str, kept: Sequence[SessionEvent]) -> Sequence[Command]:
        """The latest events that others know of, when the session has lost its runtime: those behind the last one that
        the client has. None, when it has none of them: it came later, or is far behind."""
        binding = self._bindings.get(session_id)
        if binding is None:
            return ()
        for place in range(len(kept) - 1, -1, -1):
            if binding.has(kept[place].id):
                return self.tell(session_id, kept[place + 1 :], from_host=True)
        return ()

    # --- sessions that change nodes ---

    def hold_back(self, session_id: str) -> None:
        """The session is about to come from another node: keep what is told of it until `release`."""
        if (binding := self._bindings.get(session_id)) is not None:
            binding.link = None
            binding.hold_back()

    @property
    def held_bytes(self) -> int:
        """Of bodies that are held back."""
        return sum(binding.held_bytes for binding in self._bindings.values())

    def known(self, session_id: str) -> list[str]:
        """Ids of the stored events that the client was told before `hold_back`, the latest first."""
        binding = self._bindings.get(session_id)
        return binding.known if binding is not None else []

    def release(self, session_id: str, missed: Sequence[SessionEvent]) -> Sequence[Command]:
        """Tell what the client has missed, and what was kept meanwhile, of which some may be among it."""
        binding = self._bindings.get(session_id)
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
                commands.append(binding.passed_on(body))
        return [*commands, *(binding.passed_on(body) for _, body in held)]

    def at_work(self, session_id: str) -> bool:
        """Whether the client was told of work in the session and not of its end."""
        binding = self._bindings.get(session_id)
        return binding is not None and binding.working

    def is_idle_withheld(self, session_id: str) -> bool:
        binding = self._bindings.get(session_id)
        return binding is not None and binding.withheld is not None

    def has_doubts(self, session_id: str) -> bool:
        """Whether it is not known yet what has become of prompts of the client."""
        binding = self._bindings.get(session_id)
        return binding is not None and bool(binding.in_doubt)

    def doubt(self, session_id: str, message_ids: Iterable[str]) -> None:
        """These prompts of the client were with a runtime that is lost."""
        if (binding := self._bindings.get(session_id)) is not None:
            binding.in_doubt.update(message_ids)

    def assured(self, session_id: str, message_ids: Iterable[str]) -> None:
        """It is known what has become of these prompts, and about to be told."""
        if (binding := self._bindings.get(session_id)) is not None:
            binding.in_doubt.difference_update(message_ids)

    def lost_prompts(self, session_id: str, history: Sequence[SessionEvent]) -> list[str]:
        """Message ids of the client's prompts in doubt that do not stand in the session's stored events. Those that do
        are in doubt no more; whoever asks tells the client of the others (`tell`)."""
        binding = self._bindings.get(session_id)
        if binding is None:
            return []
        stored = {message_of(event) for event in history if event.type == "user.message"}
        binding.in_doubt -= stored
        return sorted(binding.in_doubt)

    def settled(self, session_id: str) -> Sequence[Command]:
        """It is known of all that was in doubt."""
        binding = self._bindings.get(session_id)
        if binding is None:
            return ()
        binding.in_doubt = set()
        return _idle_after_all(binding)

    def alias(self, session_id: str, first_id: str, latest_id: str | None) -> Sequence[Command]:
        """A prompt is sent again (`latest_id` is ``None``): hold back what is told until its new id is known."""
        binding = self._bindings.get(session_id)
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
        return [*(binding.passed_on(body) for _, body in held), *_idle_after_all(binding)]


def _idle_after_all(binding: Binding) -> Sequence[Command]:
    """What was withheld, once nothing is in doubt any more."""
    if binding.in_doubt or binding.withheld is None:
        return ()
    (event_id, body), binding.withheld = binding.withheld, None
    if not binding.working or not binding.note(event_id, WORK_ENDS, ephemeral=True):
        return ()  # somebody else has said so
    return binding.to_client(body, event_id)
