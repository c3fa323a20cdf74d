"""What the official SDK can say: every method it knows, and every parameter it can open a session with."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import copilot

_SDK = Path(copilot.__file__).parent


def source(name: str) -> str:
    return (_SDK / name).read_text(encoding="utf-8")


@cache
def methods() -> list[str]:
    """Of the generated interface, and those that the client calls by hand."""
    texts = [source(name) for name in ("generated/rpc.py", "client.py", "session.py")]
    found = {method for text in texts for method in re.findall(r"\.request\(\s*\"([A-Za-z.]+)\"", text)}
    assert len(found) > 500
    return sorted(found)


@cache
def open_parameters() -> list[str]:
    """Keys that `create_session` and `resume_session` may put into their payload."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source("client.py"))):
        if isinstance(node, ast.AsyncFunctionDef) and node.name in ("create_session", "resume_session"):
            text = ast.unparse(node)
            found |= set(re.findall(r"payload\['(\w+)'\] = ", text))
            found |= set(re.findall(r"payload: dict\[str, Any\] = \{'(\w+)'", text))
    assert len(found) > 80
    return sorted(found | {"traceparent", "tracestate"})
