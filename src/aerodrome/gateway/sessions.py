"""`session.create` and `session.resume` of a native client: a row in the directory, and an attachment to the session.

Both open the session, whichever the client says: an id that is new gets a session, one that is the client's own is
resumed with its history (trap 12: the CLI would begin an empty one in the same file), and one that is somebody else's
is not found. `session.resume` of an id that does not exist is an error, as with the CLI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from aerodrome.errors import Conflict, Invalid, Refused, TooLarge
from aerodrome.events import SessionEvent
from aerodrome.gateway.attachment import NativeAttachment
from aerodrome.gateway.problems import RuntimeRefused
from aerodrome.gateway.replay import Changes
from aerodrome.model import Principal, Role, SessionRow
from aerodrome.policy.open_params import client_open_params
from aerodrome.policy.shapes import Refusal
from aerodrome.sessions.api import OpenSession
from aerodrome.sessions.opening import MAX_SYSTEM_MESSAGE

if TYPE_CHECKING:
    from aerodrome.gateway.client import GatewayClient
    from aerodrome.gateway.server import Gateway

#: What a session is resumed with also when the client that opened it has gone: how it answers. Everything else belongs
#: to the client (tools, hooks, who is asked) or may hold its secrets, and is in memory as long as it is connected.
_LASTING = ("systemMessage", "reasoningEffort", "reasoningSummary", "contextTier", "infiniteSessions")


async def open_session(
    gateway: Gateway, client: GatewayClient, params: Mapping[str, Any], *, resume: bool
) -> bytes | Refusal:
    """The runtime's own answer, or why the parameters are not allowed.

    Raises:
        AerodromeError: The session cannot be opened.
    """
    assert client.router.profile is not None
    profile = client.router.profile
    who = client.who
    kept = client_open_params(
        params, resume=resume, profile=profile, isolation=gateway.isolation_of(who.tenant), tools=gateway.tools
    )
    if isinstance(kept, Refusal):
        return kept
    if _characters([kept.get(name) for name in _LASTING]) > MAX_SYSTEM_MESSAGE:
        raise TooLarge(f"`systemMessage` is over the limit of {MAX_SYSTEM_MESSAGE} characters")
    session_id = params.get("sessionId")
    if session_id is not None and not isinstance(session_id, str):
        raise Invalid("`sessionId` is not text")
    if resume:
        if session_id is None:
            raise Invalid("`sessionId` is missing")
        row = await gateway.sessions.get(who, session_id)
    else:
        row, created = await gateway.sessions.open_session(who, _opening(session_id, kept))
        if created:
            gateway.tell_lifecycle(row, "session.created", besides={client})
    return await _attach(gateway, client, row, kept, params)


async def resume_behind(
    gateway: Gateway, client: GatewayClient, params: Mapping[str, Any], known: Sequence[str]
) -> bytes | Refusal:
    """Resume it for a client that was attached elsewhere, and have it told what it has missed, in order.

    Args:
        known: Ids of events that it has, the latest first.
    """
    session_id, router = str(params.get("sessionId")), client.router
    new = session_id not in client.attachments
    router.sessions.take_part(session_id)
    router.sessions.hold_back(session_id)
    events: Sequence[SessionEvent] = ()
    try:
        result = await open_session(gateway, client, params, resume=True)
        # Now all that comes is told to the client, too; what came before is known here.
        events = await gateway.sessions.reading.events_behind(client.who, session_id, known)
    except BaseException:
        if new and session_id not in client.attachments:
            router.sessions.leave(session_id)
        raise
    finally:
        client.run(router.sessions.release(session_id, events))
    return result


async def _attach(
    gateway: Gateway, client: GatewayClient, row: SessionRow, kept: Mapping[str, Any], asked: Mapping[str, Any]
) -> bytes:
    """Have the client take part; the runtime's own answer."""
    assert client.router.profile is not None
    session_id, who, role = row.key.id, client.who, row.role_of(client.who)
    passive = role is Role.READER
    # Its own node takes it along when the session leaves this one.
    live = await gateway.sessions.native.session(who, session_id, leaving=client.relayed)
    attachment = client.attachments.get(session_id)
    anew = attachment is not None and attachment.live is live
    if attachment is not None and anew:
        attachment.ask_anew(kept, asked, passive=passive)
    else:
        context = gateway.open_context(who.tenant, client.router.profile)
        attachment = NativeAttachment(client, live, kept, context, client.router.profile, asked=asked, passive=passive)
        client.attachments[session_id] = attachment
        client.router.sessions.take_part(session_id)
    client.router.restrict(session_id, reads_only=passive, unasked=passive)
    try:
        await live.attach(attachment)
        await _still(gateway, who, row, role)
    except BaseException as error:
        if isinstance(error, _RoleLost):
            await live.detach(attachment)
        if anew:
            attachment.take_back()
        if client.attachments.get(session_id) is attachment and attachment not in live.attachments:
            del client.attachments[session_id]
            client.router.sessions.leave(session_id)
        gateway.sessions.native.let_go(live)
        if attachment.refused is not None and (isinstance(error, Refused) or isinstance(error.__cause__, Refused)):
            raise RuntimeRefused(attachment.refused.code, attachment.refused.message) from error
        raise
    result = attachment.result
    return b"{}" if result is None or result is UNSET else bytes(result)


async def open_again(
    gateway: Gateway, client: GatewayClient, session_id: str, asked: Mapping[str, Any], changes: Changes
) -> None:
    """Attach the client here to a session that it was attached to at another node. It is not told of it.

    Raises:
        AerodromeError: The session cannot be opened, or not any more.
    """
    profile, who = client.router.profile, client.who
    assert profile is not None
    kept = client_open_params(
        asked, resume=True, profile=profile, isolation=gateway.isolation_of(who.tenant), tools=gateway.tools
    )
    if isinstance(kept, Refusal):
        raise Refused(kept.reason)
    row = await gateway.sessions.get(who, session_id)
    role = row.role_of(who)
    passive = role is Role.READER
    live = await gateway.sessions.native.session(who, session_id)
    attachment = NativeAttachment(
        client,
        live,
        kept,
        gateway.open_context(who.tenant, profile),
        profile,
        asked=asked,
        changes=changes,
        passive=passive,
    )
    client.attachments[session_id] = attachment
    client.router.restrict(session_id, reads_only=passive, unasked=passive)
    try:
        await live.attach(attachment)
        await _still(gateway, who, row, role)
    except BaseException:
        if client.attachments.get(session_id) is attachment:
            del client.attachments[session_id]
        await live.detach(attachment)
        gateway.sessions.native.let_go(live)
        raise


class _RoleLost(Conflict):
    """What the client may do in the session was changed while it was being attached."""


async def _still(gateway: Gateway, who: Principal, row: SessionRow, role: Role | None) -> None:
    """Look again whether the principal has the role with which it was attached: who was made less in the meantime was
    not there yet to be told. Raises `NotFound` or `Conflict` otherwise."""
    if role is Role.OWNER:
        return  # for good
    now = await gateway.sessions.native.role(who, row.key.id)
    if now is not role:
        raise _RoleLost("your role in this session has changed meanwhile; resume it again")


def _characters(value: Any) -> int:
    """Of all texts in it: these are stored, and sent to the model with each prompt."""
    if isinstance(value, str):
        return len(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, items))


def _opening(session_id: str | None, kept: Mapping[str, Any]) -> OpenSession:
    model, name = kept.get("model"), kept.get("name")
    return OpenSession(
        id=session_id,
        model=model if isinstance(model, str) else None,
        title=name if isinstance(name, str) and name.strip() else None,
        streaming=bool(kept.get("streaming", False)),
        native={name: kept[name] for name in _LASTING if name in kept},
    )
