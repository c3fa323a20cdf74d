"""Calls of tools that clients run themselves, while they are open.

The runtime asks for them with `external_tool.requested` and waits for ever when the client that owns the tool has gone
(docs/facts.md, "Sessions and connections"): whoever sees the client go fails what it will not answer, and what is
called behind that.
"""

from __future__ import annotations

from collections.abc import Collection

from aerodrome.events import SessionEvent

_REQUESTED, _COMPLETED = "external_tool.requested", "external_tool.completed"
#: The events that say how they stand.
OF_TOOL_CALLS = frozenset((_REQUESTED, _COMPLETED))

#: A client may come with other tools again and again: what is remembered of those who have gone has bounds.
_MOST_LEFT = 1_000
#: Characters. Models take 64.
_LONGEST_NAME = 256


class OpenToolCalls:
    """Those of one activation."""

    def __init__(self) -> None:
        #: Names of the called tools, by request.
        self._open: dict[str, str] = {}
        #: Names of tools whose clients have gone while a call may have been under way, the latest last.
        self._left: dict[str, None] = {}

    def see(self, event: SessionEvent) -> None:
        """Every one of these events (`OF_TOOL_CALLS`) comes by here."""
        if event.type == _REQUESTED:
            data = event.data
            self._open[str(data.get("requestId"))] = str(data.get("toolName"))
        elif event.type == _COMPLETED:
            self._open.pop(str(event.data.get("requestId")), None)

    def leave(self, tools: Collection[str]) -> list[str]:
        """The client that owns these tools has gone. Returns the open calls of them, which somebody is about to
        answer."""
        for tool in tools:
            if len(tool) <= _LONGEST_NAME:
                self._left.pop(tool, None)
                self._left[tool] = None
        for surplus in list(self._left)[:-_MOST_LEFT]:
            del self._left[surplus]
        return self._take(set(tools))

    def idle(self) -> None:
        """The runtime has ended what it was at: no call of a tool that is not there any more can come of that."""
        self._left.clear()

    def unowned(self, offered: set[str]) -> list[str]:
        """The open calls of tools whose clients have gone, which somebody is about to answer. The runtime may call a
        tool before it knows that, and when the call is permitted later.

        Args:
            offered: The tools of all clients that are there.
        """
        return self._take(self._left.keys() - offered) if self._left else []

    def _take(self, tools: set[str]) -> list[str]:
        taken = [request for request, tool in self._open.items() if tool in tools]
        for request in taken:
            del self._open[request]
        return taken

    def clear(self) -> None:
        self._open.clear()
        self._left.clear()
