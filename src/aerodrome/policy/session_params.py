"""The parameters of `session.create` and `session.resume`, built by us from what the caller may choose.

Nothing of a caller's request is passed on by itself: a dozen parameters run commands on the host, more read its
files (docs/facts.md, "Isolation"). The fixed values below are the wire's equivalent of the SDK's `mode: "empty"`,
which is client-side only, so that a shared host must force it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aerodrome.model import ISOLATED_TOOLS, Isolation

#: What every session gets, whoever opens it.
SAFE: Mapping[str, Any] = {
    "customAgentsLocalOnly": True,
    "embeddingCacheStorage": "in-memory",
    "enableConfigDiscovery": False,
    "enableFileHooks": False,
    "enableHostGitOperations": False,
    "enableOnDemandInstructionDiscovery": False,
    "enableSessionStore": False,
    "enableSessionTelemetry": False,
    "enableSkills": False,
    "envValueMode": "direct",
    "includeSubAgentStreamingEvents": True,
    "isExperimentalMode": False,
    "mcpOAuthTokenStorage": "in-memory",
    "memory": {"enabled": False},
    "skipEmbeddingRetrieval": True,
    "toolFilterPrecedence": "excluded",
}

#: `session.options.update`, which the SDK sends after create and resume in `mode: "empty"`.
SAFE_OPTIONS: Mapping[str, Any] = {
    "coauthorEnabled": False,
    "customAgentsLocalOnly": True,
    "includedBuiltinSkills": [],
    "installedPlugins": [],
    "manageScheduleEnabled": False,
    "skipCustomInstructions": True,
}


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """Which built-in tools sessions may use."""

    #: Offered to every session; a subset of `ISOLATED_TOOLS`.
    isolated: Sequence[str] = ISOLATED_TOOLS
    #: Tools that reach the host, such as `bash`: only where a runtime serves one user.
    host: Sequence[str] = ()

    def allowed(self, isolation: Isolation) -> frozenset[str]:
        tools = frozenset(self.isolated) & frozenset(ISOLATED_TOOLS)
        return tools | frozenset(self.host) if isolation is Isolation.USER else tools

    def refused(self, isolation: Isolation, wanted: Sequence[str]) -> list[str]:
        """Those of the wanted tools that may not be enabled, in the caller's order."""
        allowed = self.allowed(isolation)
        return [tool for tool in wanted if tool not in allowed]

    def choose(self, isolation: Isolation, wanted: Sequence[str] | None) -> list[str]:
        """The tools of a session: what it asked for and may have; the isolated ones when it did not ask."""
        allowed = self.allowed(isolation)
        if wanted is None:
            return sorted(tool for tool in allowed if tool in ISOLATED_TOOLS)
        return sorted(allowed.intersection(wanted))


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a session reaches its model. In memory only; injected at create and at every resume (trap 15)."""

    #: The wire's `provider` object (bring your own key), or ``None`` for GitHub's own models.
    provider: Mapping[str, Any] | None = field(default=None, repr=False)
    github_token: str | None = field(default=None, repr=False)
    #: Model of sessions that name none.
    model: str | None = None


def session_params(
    session_id: str,
    *,
    model: str | None,
    system_message: str | None,
    tools: Sequence[str],
    working_directory: str,
    streaming: bool,
    credentials: Credentials,
) -> dict[str, Any]:
    """Parameters that serve `session.create` and `session.resume` alike."""
    params: dict[str, Any] = {
        # A copy, so that nobody who changes one session's parameters changes everybody's.
        **copy.deepcopy(dict(SAFE)),
        "sessionId": session_id,
        "clientName": "aerodrome",
        "availableTools": [f"builtin:{tool}" for tool in tools],
        # An empty list of tools is taken for no list: exclude everything instead.
        "excludedTools": [] if tools else ["builtin:*", "mcp:*"],
        "systemMessage": _system_message(system_message),
        "workingDirectory": working_directory,
        "streaming": streaming,
        "requestPermission": True,
        "requestUserInput": "ask_user" in tools,
        "requestElicitation": False,
        "requestExitPlanMode": False,
        "requestAutoModeSwitch": False,
    }
    if chosen := model or credentials.model:
        params["model"] = chosen
    if credentials.provider is not None:
        params["provider"] = copy.deepcopy(dict(credentials.provider))
    if credentials.github_token is not None:
        params["gitHubToken"] = credentials.github_token
    return params


def _system_message(text: str | None) -> dict[str, Any]:
    """The runtime's own message without its description of the host, and the caller's text behind it."""
    message: dict[str, Any] = {"mode": "customize", "sections": {"environment_context": {"action": "remove"}}}
    if text:
        message["content"] = text
    return message
