"""Which tools the filters of a session let through. Pure.

The runtime's filters (docs/facts.md, "Isolation"): `builtin:NAME`, `mcp:SERVER-TOOL`, `custom:NAME` for a tool of a
client, with `*` for all of a source. A bare name means a tool of any source; it gets its source here, so that a name
never means a tool of the host. Without a list there is every tool, those of the host included: what reaches a runtime
always has a list, and one that is not empty, so that nothing depends on what a runtime makes of an empty one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from aerodrome.policy.shapes import Denied, texts

#: The list of a session without any tool: one that there is not. (To exclude all would do until a client changes
#: what it excludes.)
NO_TOOL = "custom:no-tool"
_CUSTOM, _MCP, _BUILTIN = "custom:", "mcp:", "builtin:"


def every_allowed(allowed: Iterable[str]) -> list[str]:
    """For a client that gave no list: the built-in tools it may have, its own, and those of its MCP servers."""
    return [*(f"{_BUILTIN}{tool}" for tool in sorted(allowed)), f"{_CUSTOM}*", f"{_MCP}*"]


def with_sources(
    value: Any, path: str, *, allowed: Collection[str], own: Collection[str], servers: Collection[str], wildcard: bool
) -> list[str]:
    """A client's `availableTools`, each entry with its source. Raises `Denied` for a tool that it may not have.

    Args:
        allowed: Built-in tools it may have.
        own: Names of the tools it brings along.
        servers: Names of its MCP servers.
        wildcard: Whether it may say `builtin:*` for all it may have.
    """
    chosen: list[str] = []
    for index, entry in enumerate(texts(value, path)):
        if entry == f"{_BUILTIN}*" and wildcard:
            chosen += every_allowed(allowed)[:-2]
        else:
            chosen.append(_with_source(entry, f"{path}[{index}]", allowed, own, servers))
    return list(dict.fromkeys(chosen))


def _with_source(
    entry: str, path: str, allowed: Collection[str], own: Collection[str], servers: Collection[str]
) -> str:
    if entry.startswith((_CUSTOM, _MCP)):
        return entry
    if entry in own:
        return f"{_CUSTOM}{entry}"
    name = entry.removeprefix(_BUILTIN)
    if name in allowed:
        return f"{_BUILTIN}{name}"
    if name == entry and any(entry.startswith(f"{server}-") for server in servers):
        return f"{_MCP}{entry}"
    raise Denied(
        f"`{path}`: the tool {entry!r} is not offered here; leave `availableTools` out to get what is, name tools out "
        f"of {', '.join(sorted(allowed)) or '(no built-in tool)'}, or `custom:*` and `mcp:*` for your own"
    )


def enforced(available: Iterable[Any], allowed: Collection[str]) -> list[str]:
    """The list as a runtime gets it: whatever was remembered, no built-in tool but those that are allowed."""
    kept = [entry for entry in available if isinstance(entry, str) and _is_allowed(entry, allowed)]
    return kept or [NO_TOOL]


def _is_allowed(entry: str, allowed: Collection[str]) -> bool:
    return entry.startswith((_CUSTOM, _MCP)) or (entry.startswith(_BUILTIN) and entry.removeprefix(_BUILTIN) in allowed)
