"""Which attachments a prompt may bring: those that carry their own content.

The runtime also takes files and directories by path, and those paths are the host's (FACTS, "No isolation between
connections of one CLI"). Kinds are allowed by list, so that a new CLI version opens nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Kinds of the SDK's attachments that name nothing on the host, with the fields each may have.
_FIELDS: Mapping[str, frozenset[str]] = {"blob": frozenset({"type", "data", "mimeType", "displayName"})}


def refused_attachment(attachments: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with the first attachment that may not be sent, as a sentence; ``None`` when all may."""
    for attachment in attachments:
        kind = attachment.get("type")
        fields = _FIELDS.get(kind) if isinstance(kind, str) else None
        if fields is None:
            return f"attachments of type {kind!r} are not allowed; allowed are: {', '.join(sorted(_FIELDS))}"
        if unknown := attachment.keys() - fields:
            return f"an attachment of type {kind!r} has no field {min(unknown)!r}"
        if not isinstance(attachment.get("data"), str) or not isinstance(attachment.get("mimeType"), str):
            return f"an attachment of type {kind!r} needs `data` (base64) and `mimeType`, both strings"
    return None
