"""The parameters of the methods that are allowed only if they say the right thing. Pure; used by `methods`.

A trusted client's are not looked at. Fields that nobody knows are dropped when empty and refused otherwise, as
everywhere (`shapes`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aerodrome.policy import attachments
from aerodrome.policy.open_table import TOOL
from aerodrome.policy.profiles import Profile
from aerodrome.policy.remote_servers import BUILT_IN
from aerodrome.policy.session_params import SAFE, SAFE_OPTIONS
from aerodrome.policy.shapes import (
    Denied,
    Shape,
    anything,
    boolean,
    fields,
    is_empty,
    list_of,
    mapping,
    number,
    one_of,
    record,
    text,
    texts,
)

_SESSION = fields(text, "sessionId")
_TRACE = fields(text, "traceparent", "tracestate")

# --- session.send ---


def _attachments(value: Any, path: str) -> list[Any]:
    """Only content that comes along: see `attachments`."""
    given: list[Any] = list_of(mapping)(value, path)
    if why := attachments.refusal(given):
        raise Denied(why)
    return given


def _attachments_of_the_workspace(value: Any, path: str) -> list[Any]:
    """The files that they name are the client's own, in the sandbox; what they name at GitHub is the host's."""
    kinds = one_of(*attachments.ALLOWED, "file", "directory", "selection", otherwise="send the content itself")
    for index, item in enumerate(list_of(mapping)(value, path)):
        kinds(item.get("type"), f"{path}[{index}].type")
    return list(value)


_SEND: dict[str, Shape] = {
    **_SESSION,
    **_TRACE,
    **fields(text, "prompt", "displayPrompt", "source", "requiredTool"),
    "wait": boolean,
    "mode": one_of("enqueue", "immediate"),
    "agentMode": one_of("interactive", "plan", "autopilot", otherwise="the host runs no shell for clients"),
    "responseFormat": mapping,
    "attachments": _attachments,
}
_SEND_REFUSED = {
    "requestHeaders": "they would go to the model with the host's key; ask the operator to configure them",
    "billable": "who is charged is the host's to say; leave it out",
}

# --- session.options.update ---

#: What a session may change of itself while it runs. Not `availableTools`, which adds tools of the host, and all of
#: them when it is null.
_OPTIONS: dict[str, Shape] = {
    **fields(text, "clientName", "contextTier", "model", "organizationCustomInstructions"),
    **fields(text, "reasoningEffort", "reasoningSummary", "verbosity"),
    **fields(boolean, "askUserDisabled", "continueOnAutoMode", "enableReasoningSummaries", "enableStreaming"),
    **fields(boolean, "runningInInteractiveMode", "suppressCustomAgentPrompt"),
    **fields(texts, "disabledInstructionSources", "disabledSkills", "excludedBuiltinAgents", "excludedTools"),
    **fields(mapping, "modelCapabilitiesOverrides"),
    "autopilot": record({"continuationEnabled": boolean, "maxContinues": number}),
    "capi": record({"autoTier": text, "enableWebSocketResponses": boolean}),
    "sessionLimits": record(fields(number, "maxAiCredits")),
}
_FIXED: Mapping[str, Any] = {**SAFE, **SAFE_OPTIONS}
_OPTIONS_REFUSED = {
    "availableTools": "name the tools when you open the session; `excludedTools` may be changed",
    **dict.fromkeys(("provider", "copilotUrl"), "the host reaches models with its own keys; leave it out"),
}


def _options(value: Any, path: str) -> dict[str, Any]:
    """What is harmless, and the safe values of everything that the SDK sets in `mode: "empty"`, whatever was said."""
    wanted = {
        name: item
        for name, item in mapping(value, path).items()
        if not (name in _FIXED and (is_empty(item) or item == _FIXED[name]))
    }
    refused = dict.fromkeys(_FIXED, "the host's policy is not the client's to change; leave it out") | _OPTIONS_REFUSED
    # Null means "no limit" or "the default", of options that are the client's own.
    passed = record({**_SESSION, **_OPTIONS}, refused=refused, nulls=True)(wanted, path)
    return {**passed, **{name: _copied(fixed) for name, fixed in SAFE_OPTIONS.items()}}


#: In a sandbox also what lies there; still not the tools, and not the host's keys.
_OPTIONS_OF_THE_WORKSPACE = record(
    {
        **_SESSION,
        **_OPTIONS,
        **fields(boolean, "coauthorEnabled", "customAgentsLocalOnly", "enableFileHooks", "enableHostGitOperations"),
        **fields(boolean, "enableOnDemandInstructionDiscovery", "enableScriptSafety", "enableSkills"),
        **fields(boolean, "manageScheduleEnabled", "skipCustomInstructions"),
        **fields(texts, "agentDirectories", "hookDirectories", "ignoredSkillsLocations", "includedBuiltinSkills"),
        **fields(texts, "instructionDirectories", "skillDirectories"),
        **fields(list_of(mapping), "installedPlugins"),
        "shell": mapping,
    },
    refused=_OPTIONS_REFUSED,
    nulls=True,
)


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


# --- files of the session ---

_PATH = re.compile(r"[^\x00\\]*")


def _path(value: Any, path: str) -> str:
    """Relative, and going down only. The runtime checks that too."""
    parts = text(value, path).split("/")
    if not _PATH.fullmatch(value) or value.startswith(("/", "~")) or ".." in parts:
        raise Denied(f"`{path}`: expected a path inside the session's own files, without `..`")
    return str(value)


def _paths(*names: str, **others: Shape) -> Shape:
    return record({**_SESSION, **fields(_path, *names), **others})


# --- MCP servers of a sandbox ---


def _own_server(value: Any, path: str) -> dict[str, Any]:
    """Any server but those that the runtime brings along, which act with the host's identity."""
    params = mapping(value, path)
    if text(params.get("serverName"), "serverName").lower() in {name.lower() for name in BUILT_IN}:
        raise Denied("`serverName`: the runtime brings this server along, and it acts with the host's identity")
    return params


# --- the table ---

_SETTINGS = "it changes the host's settings; leave it out"
_DECISION = record(
    {
        "kind": one_of(
            "approve-once", "approve-for-session", "approve-read-only-for-session", "reject", "user-not-available",
            "approved", "approved-for-session", "cancelled", "denied-interactively-by-user",
            "denied-no-approval-rule-and-could-not-request-from-user",
            otherwise="approve it for this session: what holds for longer is kept outside the session",
        ),
        **fields(text, "feedback", "message", "reason"),
        **fields(boolean, "approvedInteractively", "interrupt", "forceReject"),
        "approval": anything,
        "domain": text,
    }
)  # fmt: skip


def _this_time(value: Any, path: str) -> str:
    """Whether to switch to another model. That it shall always be so would be a setting of the runtime's, which it
    keeps for all its sessions (the SDK's `UIAutoModeSwitchResponse`)."""
    return "yes" if value == "yes_always" else str(one_of("yes", "no")(value, path))


_ACCOUNT = {
    "gitHubToken": "the host has a token of its own; leave it out",
    "selectionId": "accounts are the host's; leave it out",
}

ISOLATED: Mapping[str, Shape] = {
    "models.list": record({"skipCache": boolean}, refused=_ACCOUNT),
    "session.send": record(_SEND, refused=_SEND_REFUSED),
    "session.options.update": _options,
    "session.model.switchTo": record(
        {
            **_SESSION,
            **fields(text, "modelId", "autoTier", "compactionDecision", "contextTier", "providerId"),
            **fields(text, "reasoningEffort", "reasoningSummary", "source", "verbosity"),
            **fields(boolean, "deferIfModelChangeQueued", "requireAvailable", "runCompactionPreflight"),
            "modelCapabilities": mapping,
        },
        refused=dict.fromkeys(("modelChangeScope", "pickerPersistence", "repoScope"), _SETTINGS),
        nulls=True,
    ),
    "session.mode.set": record(
        {
            **_SESSION,
            "mode": one_of("interactive", "plan", "autopilot"),
            "expectedMode": one_of("interactive", "plan", "autopilot"),
            **fields(text, "compactionDecision", "planContextTier", "planExitAction", "planModel"),
            **fields(text, "planModelProviderId", "planReasoningEffort"),
            **fields(boolean, "planModelConfigured", "restorePlanModel"),
        },
        refused={
            **dict.fromkeys(("persistPlanSelection", "pickerSettingsContext"), _SETTINGS),
            "inheritPlanBaseFromSessionId": "it reads another session; leave it out",
        },
    ),
    "session.permissions.handlePendingPermissionRequest": record(
        {**_SESSION, "requestId": text, "result": _DECISION, "decisionContext": mapping}
    ),
    "session.ui.handlePendingAutoModeSwitch": record({**_SESSION, "requestId": text, "response": _this_time}),
    "session.permissions.resetSessionApprovals": record(
        _SESSION, refused={"includeLocation": "what is kept outside the session stays; leave it out"}
    ),
    "session.history.rewind": record(
        {
            **_SESSION,
            "eventId": text,
            "mode": one_of("conversation", otherwise="there are no files of the client here"),
        }
    ),
    "session.tools.set": record({**_SESSION, "tools": list_of(TOOL)}),
    "session.workspaces.createDirectory": _paths("path", recursive=boolean),
    "session.workspaces.createFile": _paths("path", content=text),
    "session.workspaces.readFile": _paths("path"),
    "session.workspaces.removePath": _paths("path", force=boolean, recursive=boolean),
    "session.workspaces.renamePath": _paths("source", "destination"),
    "session.workspaces.statFile": _paths("path"),
}

#: Where a sandboxed client may say more, or all it wants (`None`).
SANDBOXED: Mapping[str, Shape | None] = {
    "session.send": record({**_SEND, "attachments": _attachments_of_the_workspace}, refused=_SEND_REFUSED),
    "session.options.update": _OPTIONS_OF_THE_WORKSPACE,
    "session.permissions.handlePendingPermissionRequest": None,
    "session.permissions.resetSessionApprovals": None,
    "session.ui.handlePendingAutoModeSwitch": None,
    "session.history.rewind": None,
    **dict.fromkeys(("session.mcp.enable", "session.mcp.restartServer", "session.mcp.startServer"), _own_server),
}


def shape_of(method: str, profile: Profile) -> Shape | None:
    if profile is Profile.TRUSTED:
        return None
    shape = ISOLATED.get(method)
    return SANDBOXED.get(method, shape) if profile is Profile.SANDBOXED else shape
