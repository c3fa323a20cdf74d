"""What a client has changed in a session since it opened it, and must hold in the next runtime, too. Pure.

The runtime forgets these with the session's unloading, and the client cannot know that it happened. What the session's
history brings back by itself (the model) or what the sessions room keeps (the mode) is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Requests that are made again, and the slot in which a later one takes an earlier one's place.
_SLOTS: Mapping[str, str] = {
    "session.agent.select": "agent",
    "session.agent.deselect": "agent",
    "session.agent.setPrompt": "agent prompt",
    "session.options.update": "options",
    "session.permissions.setRequired": "permissions",
    "session.mcp.apps.setHostContext": "context of apps",
}
_DISABLE, _ENABLE = "session.mcp.disable", "session.mcp.enable"
_REGISTER, _RELEASE = "session.eventLog.registerInterest", "session.eventLog.releaseInterest"
_SET_TOOLS = "session.tools.set"

_NOTHING: Mapping[str, Any] = {}

#: Methods of which the shell tells `Changes.note` when they have succeeded.
REMEMBERED = frozenset({*_SLOTS, _DISABLE, _ENABLE, _REGISTER, _RELEASE, _SET_TOOLS})


class Changes:
    """Those of one client in one session."""

    def __init__(self) -> None:
        self._slots: dict[str, tuple[str, dict[str, Any]]] = {}
        #: Tools that the client has put in the place of those it opened the session with.
        self.tools: list[Any] | None = None
        #: MCP servers that it has disabled, in order.
        self._disabled: dict[str, None] = {}

    def note(self, method: str, params: Mapping[str, Any], result: Mapping[str, Any] = _NOTHING) -> None:
        """A request with these parameters was carried out, with this result."""
        said = {name: value for name, value in params.items() if name != "sessionId"}
        if method == _SET_TOOLS:
            tools = said.get("tools")
            self.tools = tools if isinstance(tools, list) else self.tools
        elif method == _REGISTER:
            # Each by itself, and by the name that the runtime has given it: one may be registered several times.
            self._slots[f"interest {result.get('handle')}"] = (_REGISTER, said)
        elif method == _RELEASE:
            self._slots.pop(f"interest {said.get('handle')}", None)
        elif method == _DISABLE:
            self._disabled[str(said.get("serverName"))] = None
        elif method == _ENABLE:
            self._disabled.pop(str(said.get("serverName")), None)
        elif method in _SLOTS:
            slot = _SLOTS[method]
            earlier = self._slots.pop(slot, None)
            if slot == "options" and earlier is not None:
                said = {**earlier[1], **said}  # an update names only what it changes
            self._slots[slot] = (method, said)

    def onto(self, opening: dict[str, Any]) -> None:
        """Change the parameters that the client has opened the session with: what it has changed is so from the first
        moment in the next runtime, too. A server that is to be disabled would be on its way already."""
        if self.tools is not None:
            opening["tools"] = self.tools
        if self._disabled:
            opening["disabledMcpServers"] = [*(opening.get("disabledMcpServers") or ()), *self._disabled]

    @property
    def requests(self) -> list[tuple[str, dict[str, Any]]]:
        """What is to be asked again of a runtime that has just loaded the session, in order."""
        return list(self._slots.values())
