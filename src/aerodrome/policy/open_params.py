"""The parameters of `session.create` and `session.resume` of native clients.

A client speaks to us as if we were the runtime, so its parameters are its own; `session_params` builds those of HTTP
sessions, and has the values that are safe. Here a client's parameters are cleaned once (`client_open_params`) and
remembered, and completed for each runtime that gets the session (`runtime_open_params`): what is remembered has none
of our keys in it and no path of a runtime, so that it can be replayed wherever the session goes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aerodrome.model import Isolation
from aerodrome.policy import tool_filters
from aerodrome.policy.open_table import PARAMETERS, SESSION_ID_SHAPE, WITHOUT_ENVIRONMENT, Parameter
from aerodrome.policy.profiles import Profile
from aerodrome.policy.remote_servers import BUILT_IN
from aerodrome.policy.session_params import SAFE, SAFE_OPTIONS, Credentials, ToolPolicy
from aerodrome.policy.shapes import Denied, Refusal, is_empty

#: What a trusted client gets unless it says otherwise; all else is the runtime's own default.
TRUSTED_DEFAULTS: Mapping[str, Any] = {"enableSessionTelemetry": False}
#: A trusted client that brings one of these reaches its models by itself.
_KEYS = ("provider", "providers", "gitHubToken", "gitHubTokenProviderRegistrationId")


@dataclass(frozen=True, slots=True)
class OpenContext:
    """What is known of the runtime that gets the session, and of its tenant."""

    profile: Profile
    isolation: Isolation
    tools: ToolPolicy
    credentials: Credentials
    working_directory: str


def client_open_params(
    params: Mapping[str, Any], resume: bool, profile: Profile, isolation: Isolation, tools: ToolPolicy
) -> dict[str, Any] | Refusal:
    """What is kept of a client's request, or why it is refused. Its own result is returned unchanged.

    Args:
        params: As the client sent them.
        resume: Of `session.resume`, which needs a `sessionId`; a create may leave that to the host.
    """
    try:
        if resume and params.get("sessionId") is None:
            raise Denied("`sessionId` is missing", "invalid")
        kept = {name: value for name, value in params.items() if value is not None}
        if resume:
            kept.pop("name", None)
        if profile is Profile.TRUSTED:
            # A trusted client could reach anything by other ways; only the id has to be one.
            if "sessionId" in kept:
                SESSION_ID_SHAPE(kept["sessionId"], "sessionId")
            return copy.deepcopy(kept)
        kept = {
            name: PARAMETERS[name].shapes[profile](value, name)
            for name, value in kept.items()
            if _passes(name, value, profile)
        }
        kept["availableTools"] = _available_tools(kept, profile, _allowed(profile, isolation, tools))
        return copy.deepcopy(kept)
    except Denied as denied:
        return denied.refusal


def runtime_open_params(kept: Mapping[str, Any], context: OpenContext) -> dict[str, Any]:
    """What one runtime is sent: what was kept, what is forced, our keys, and where the session works.

    Parameters that the profile does not allow, and tools that the policy does not offer, are left out of what was kept
    once more: the policy may have changed since.
    """
    if context.profile is Profile.TRUSTED:
        params = {**TRUSTED_DEFAULTS, "workingDirectory": context.working_directory, **copy.deepcopy(dict(kept))}
        return _with_model(params, context.credentials, bring_keys=not any(params.get(name) for name in _KEYS))
    passing = {name: value for name, value in kept.items() if _may_say(name, context.profile)}
    # A copy, so that nobody who changes one session's parameters changes everybody's.
    params = copy.deepcopy({**SAFE, **passing})
    allowed = _allowed(context.profile, context.isolation, context.tools)
    available = params.get("availableTools", tool_filters.every_allowed(allowed))
    params["availableTools"] = tool_filters.enforced(available, allowed)
    params["disabledMcpServers"] = sorted({*params.get("disabledMcpServers", ()), *BUILT_IN})
    params["workingDirectory"] = context.working_directory
    if context.profile is Profile.ISOLATED:
        params.setdefault("systemMessage", copy.deepcopy(dict(WITHOUT_ENVIRONMENT)))
    return _with_model(params, context.credentials, bring_keys=True)


def forced_options(profile: Profile) -> dict[str, Any] | None:
    """What `session.options.update` has to say behind each create and resume; ``None`` when nothing."""
    return copy.deepcopy(dict(SAFE_OPTIONS)) if profile is Profile.ISOLATED else None


def _may_say(name: str, profile: Profile) -> bool:
    return name in PARAMETERS and profile in PARAMETERS[name].shapes


def _passes(name: str, value: Any, profile: Profile) -> bool:
    """Whether it is passed on; what asks for nothing is dropped. Raises `Denied` for what asks for something."""
    if _may_say(name, profile):
        return True
    parameter = PARAMETERS.get(name)
    if is_empty(value) or (name in SAFE and value == SAFE[name]) or (parameter and parameter.replaced):
        return False
    raise Denied(_reason(name, parameter, profile))


def _reason(name: str, parameter: Parameter | None, profile: Profile) -> str:
    if parameter is None:
        return f"`{name}` is not a parameter that this host knows; leave it out"
    return f"`{name}` is not allowed in the profile {profile.value}: {parameter.why}"


def _allowed(profile: Profile, isolation: Isolation, tools: ToolPolicy) -> frozenset[str]:
    """Built-in tools. An isolated client gets none of the host, whatever other doors offer."""
    return tools.allowed(Isolation.TENANT if profile is Profile.ISOLATED else isolation)


def _available_tools(kept: Mapping[str, Any], profile: Profile, allowed: frozenset[str]) -> list[str]:
    if "availableTools" not in kept:
        return tool_filters.every_allowed(allowed)
    servers = {*kept.get("mcpServers", ())}
    for agent in kept.get("customAgents", ()):
        if isinstance(agent.get("mcpServers"), dict):
            servers.update(agent["mcpServers"])
    return tool_filters.with_sources(
        kept["availableTools"],
        "availableTools",
        allowed=allowed,
        own={str(tool["name"]) for tool in kept.get("tools", ()) if "name" in tool},
        servers=servers,
        wildcard=profile is not Profile.ISOLATED,
    )


def _with_model(params: dict[str, Any], credentials: Credentials, *, bring_keys: bool) -> dict[str, Any]:
    """In every create and every resume, because the runtime stores no keys (trap 15)."""
    if not bring_keys:
        return params
    if not params.get("model") and credentials.model:
        params["model"] = credentials.model
    if credentials.provider is not None:
        params["provider"] = copy.deepcopy(dict(credentials.provider))
    if credentials.github_token is not None:
        params["gitHubToken"] = credentials.github_token
    return params
