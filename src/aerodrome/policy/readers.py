"""What is different for a native client whose user may only read the session it is attached to. Pure.

Unmodified SDKs say at each resume what they bring along and want to be asked, whoever their user is. Of a reader
nothing of that holds: it attaches with an empty hand, is told what happens, and is asked nothing. What an SDK sends
behind a resume and fails without is answered in the runtime's place; all else that a reader may not do is refused by
the role in the method's rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aerodrome.policy.session_params import SAFE_OPTIONS

#: Events that ask something of whoever hears them: SDKs run a handler and answer (docs/facts.md, "SDKs").
_ASKING = frozenset({"command.execute", "command.queued", "mcp.headers_refresh_required", "mcp.oauth_required"})


def asks(event_type: str) -> bool:
    """Whether the event asks its hearer to act, so that readers are not told of it."""
    return event_type.endswith(".requested") or event_type in _ASKING


def answer_in_place(method: str, params: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The answer to what asks for nothing that would concern anybody else; ``None``: it is for writers."""
    if method == "session.options.update":
        # The SDK's mode "empty" sends these behind each resume; they are forced on the session anyway.
        said = {name: value for name, value in params.items() if name != "sessionId" and value is not None}
        return {"success": True} if all(SAFE_OPTIONS.get(name) == value for name, value in said.items()) else None
    if method == "session.eventLog.registerInterest":
        return {"handle": "reader"}
    if method == "session.eventLog.releaseInterest":
        return {"success": True}
    return None
