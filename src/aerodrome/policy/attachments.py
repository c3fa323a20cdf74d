"""What a prompt may bring along. Pure.

Only content that comes with the request. The other kinds name things for the runtime to fetch: files and directories
of the host, selections in them, references to GitHub that would be fetched with the operator's token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aerodrome.policy.shapes import quoted

ALLOWED = ("blob",)
#: The fields a `blob` may have; of other fields nobody knows what a later runtime makes of them.
_BLOB_FIELDS = frozenset({"type", "data", "mimeType", "displayName"})


def refusal(attachments: Sequence[Mapping[str, Any]]) -> str | None:
    """Why they may not be sent; ``None`` when they may."""
    for number, attachment in enumerate(attachments):
        kind = attachment.get("type")
        if kind not in ALLOWED:
            return (
                f"attachments[{number}] has the type {quoted(kind)}; only {', '.join(ALLOWED)} is allowed here: "
                "send the content itself, as base64 in `data` with its `mimeType`"
            )
        if unknown := sorted(set(attachment) - _BLOB_FIELDS):
            return f"attachments[{number}] has a field that a blob does not have: {quoted(unknown[0])}"
        if not isinstance(attachment.get("data"), str) or not isinstance(attachment.get("mimeType"), str):
            return f"attachments[{number}] needs `data` (base64) and `mimeType`"
        if not isinstance(attachment.get("displayName", ""), str):
            # The runtime never answers a request that is nested too deep (docs/facts.md, "Wire").
            return f"attachments[{number}].displayName is not text"
    return None
