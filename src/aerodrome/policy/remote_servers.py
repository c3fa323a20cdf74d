"""MCP servers that a client may name where it must not reach the host: remote ones, by http. Pure.

The runtime connects to them from where it runs. So an address of the machine itself is refused, which keeps a client
from what listens there; names are not resolved here, and it takes a firewall to keep names from leading inside.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from aerodrome._util.addresses import OF_THE_PLATFORM
from aerodrome.policy.shapes import (
    Denied,
    Shape,
    boolean,
    fields,
    is_empty,
    mapping,
    matching,
    number,
    record,
    text,
    texts,
)

#: Servers that the runtime brings along; they act with the host's identity or drive a browser on the host.
BUILT_IN = ("WorkIQ", "browser-use", "github-copilot-browser", "github-mcp-server", "githubiq")

# ASCII without blanks, `$` and backslash: every parser of addresses finds the same host in it.
_URL = re.compile(r"https?://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?(?:[/?#][!-#%-\[\]-~]*)?")
_REMOTE = ("http", "sse")
_LOCAL_NAMES = ("localhost", "ip6-localhost", "metadata", "metadata.google.internal")
# A name whose last label is a number is an address to some parsers: 127.1, 0x7f.1, 2130706433.
_NUMERIC = re.compile(r"(?:.*\.)?(?:\d+|0[xX][0-9A-Fa-f]*)\.?")
_NAME = matching(r"[A-Za-z0-9_.-]{1,64}", "a name of letters, digits, `_`, `.` and `-`")


def remote_servers(value: Any, path: str) -> dict[str, Any]:
    """The shape of `mcpServers`."""
    return {name: _server(name, item, f"{path}.{name}") for name, item in mapping(value, path).items()}


def _server(name: str, value: Any, path: str) -> dict[str, Any]:
    _NAME(name, f"a name in {path.removesuffix(f'.{name}')}")
    if name.lower() in {server.lower() for server in BUILT_IN}:
        raise Denied(f"`{path}`: the name belongs to a server that the runtime brings along; choose another")
    server = mapping(value, path)
    if not is_empty(server.get("command")) or server.get("type", "http" if "url" in server else None) not in _REMOTE:
        raise Denied(
            f"`{path}` would run a command on the host; only remote servers are allowed here: give `type` "
            '"http" or "sse" and a `url`, or offer what it does as tools of the client'
        )
    passed: dict[str, Any] = _FIELDS(value, path)
    if "url" not in passed:
        raise Denied(f"`{path}.url` is missing", "invalid")
    # Said, so that no runtime takes it for something else.
    return {"type": "http", **passed}


def _url(value: Any, path: str) -> str:
    _without_variables(text(value, path), path)
    match = _URL.fullmatch(value)
    if not match:
        # Not quoted: there may be a key in it, and reasons are logged.
        raise Denied(f"`{path}` is no address; expected one such as https://mcp.example/mcp", "invalid")
    if _is_the_machine_itself(match["host"]):
        raise Denied(f"`{path}` leads to the machine that runs the session, not to yours; give a public address")
    return str(value)


def _without_variables(value: str, path: str) -> None:
    """The runtime puts its environment in the place of `$NAME` and `${NAME}` (docs/facts.md, "Isolation")."""
    if "$" in value:
        raise Denied(f"`{path}` contains `$`, which the runtime would replace by its environment; write it otherwise")


def _is_the_machine_itself(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        name = host.lower().rstrip(".")
        return name in _LOCAL_NAMES or name.endswith(".localhost") or _NUMERIC.fullmatch(host) is not None
    if address in OF_THE_PLATFORM:
        return True
    # Addresses in which another one is packed lead to that.
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped or address.sixtofour or address.teredo or address in _TRANSLATED
    ):
        return True
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


_TRANSLATED = ipaddress.ip_network("64:ff9b::/32")


def _headers(value: Any, path: str) -> dict[str, Any]:
    for name, content in mapping(value, path).items():
        _without_variables(name, path)
        _without_variables(text(content, f"{path}.{name}"), f"{path}.{name}")
    return dict(value)


_FIELDS: Shape = record(
    {
        **fields(text, "type", "displayName", "deferTools", "oauthClientId"),
        **fields(texts, "tools", "excludeTools", "oauthScopes"),
        **fields(number, "timeout", "headersRefreshTtlMs", "slowConnectionThresholdMs"),
        **fields(boolean, "disableToolCache", "oauthPublicClient"),
        "url": _url,
        "headers": _headers,
    },
    refused={
        "oidc": "it would prove the host's identity to the server; send a header of your own",
        "auth": "the sign-in would listen on the host; answer `mcp.oauth_required` from the client",
    },
)
