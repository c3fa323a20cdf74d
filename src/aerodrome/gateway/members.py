"""What becomes of a native client's part in a session when its user's role there is changed.

The router is told first, at once: from then on the client hears nothing that it may not, and reaches nothing. That its
runtime is told follows, and may have to wait for a session that is being loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerodrome.gateway.client import GatewayClient
from aerodrome.model import Principal, Role, SessionRow

if TYPE_CHECKING:
    from aerodrome.gateway.server import Gateway


def role_changed(gateway: Gateway, row: SessionRow, user: str, before: Role | None, now: Role | None) -> None:
    """A `sessions.members.RoleListener`."""
    who = Principal(row.key.tenant, user)
    for client in gateway.clients:
        if not client.is_of(who) or client.gone:
            continue
        if now is None:
            _expel(gateway, client, row.key.id)
        elif before is None:
            client.tell_lifecycle("session.created", row.key.id)
        else:
            _change(gateway, client, row.key.id, now)
            client.tell_lifecycle("session.updated", row.key.id)


def _expel(gateway: Gateway, client: GatewayClient, session_id: str) -> None:
    attachment = client.attachments.pop(session_id, None)
    client.away.forget(session_id)
    client.run(client.router.expel(session_id))
    client.tell_lifecycle("session.deleted", session_id)
    if attachment is not None:
        gateway.start_task(attachment.live.detach(attachment), "detach member")


def _change(gateway: Gateway, client: GatewayClient, session_id: str, role: Role) -> None:
    attachment = client.attachments.get(session_id)
    if attachment is None:
        return
    if role.covers(Role.WRITER):
        # What it brings along, and whether it is asked, are matters of its next resume.
        client.router.restrict(session_id, reads_only=False, unasked=attachment.passive)
        return
    client.run(client.router.restrict(session_id, reads_only=True, unasked=True))
    if not attachment.passive:
        tools = attachment.tools
        attachment.demote()
        gateway.start_task(attachment.live.rejoin(attachment, tools), "demote member")
