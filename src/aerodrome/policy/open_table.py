"""Every parameter of `session.create` and `session.resume`, and who may use it. Pure; read by `open_params`.

One line a parameter: what a client with the profile may say. Where a parameter does not pass, a value that asks for
nothing, or for what is forced anyway, is dropped; any other is refused with the line's reason. docs/policy.md is
made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aerodrome.model import SESSION_ID
from aerodrome.policy.profiles import Profile
from aerodrome.policy.remote_servers import remote_servers
from aerodrome.policy.shapes import (
    Shape,
    anything,
    boolean,
    fields,
    list_of,
    mapping,
    matching,
    number,
    one_of,
    record,
    table_of,
    text,
    texts,
)


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    #: Why it is refused where it is, or what becomes of it where it passes.
    why: str
    #: What may be said, by profile. A profile that is not here may not say anything.
    shapes: Mapping[Profile, Shape]
    #: Where it does not pass it is replaced, not refused: clients send it without asking for anything.
    replaced: bool = False

    @property
    def differs(self) -> bool:
        """A sandboxed client may say more than an isolated one."""
        return self.shapes.get(Profile.ISOLATED) is not self.shapes.get(Profile.SANDBOXED)


def everyone(name: str, shape: Shape, why: str = "", *, sandboxed: Shape | None = None) -> Parameter:
    """Passes everywhere, with the same shape unless a sandboxed client may say more."""
    shapes = {Profile.ISOLATED: shape, Profile.SANDBOXED: sandboxed or shape, Profile.TRUSTED: anything}
    return Parameter(name, why, shapes)


def sandbox(name: str, shape: Shape, why: str) -> Parameter:
    """Reaches files or starts processes, which are the client's own in a sandbox."""
    return Parameter(name, why, {Profile.SANDBOXED: shape, Profile.TRUSTED: anything})


def trusted(name: str, why: str, *, replaced: bool = False) -> Parameter:
    """Reaches the host's identities, other sessions or the policy itself."""
    return Parameter(name, why, {Profile.TRUSTED: anything}, replaced)


# --- shapes of single parameters ---

SESSION_ID_SHAPE = matching(SESSION_ID.pattern, "1 to 200 letters, digits, `_` or `-`")

TOOL: Shape = record(
    {
        **fields(text, "name", "description", "title", "defer"),
        **fields(boolean, "overridesBuiltInTool", "skipPermission", "isTerminal"),
        **fields(mapping, "parameters", "metadata"),
        "namespace": anything,
    }
)

_AGENT_FIELDS: dict[str, Shape] = {
    **fields(text, "name", "displayName", "description", "prompt", "model", "modelPolicy", "reasoningEffort"),
    **fields(boolean, "infer", "disableModelInvocation", "userInvocable"),
    # Not beyond the session's own: an agent's tools are those of both lists (docs/facts.md, "Isolation").
    **fields(texts, "tools", "models"),
    "mcpServers": remote_servers,
}
_AGENT = record(
    _AGENT_FIELDS,
    refused={
        "hooks": "they are commands that run on the host; use the client's own hooks (`hooks: true`)",
        "skills": "they are read from the host's files; put the text into `prompt`",
    },
)

_SECTION = record(
    {"action": one_of("replace", "remove", "append", "prepend", "preserve", "transform"), "content": text}
)
_SYSTEM_MESSAGE = record(
    {"mode": one_of("append", "replace", "customize"), "content": text, "sections": table_of(_SECTION)}
)
#: What the runtime says of the machine it runs on.
ENVIRONMENT = "environment_context"
WITHOUT_ENVIRONMENT: Mapping[str, Any] = {"mode": "customize", "sections": {ENVIRONMENT: {"action": "remove"}}}


def system_message(value: Any, path: str) -> dict[str, Any]:
    """The client's message, in which nothing is said of the host's environment but what the client says itself."""
    message: dict[str, Any] = _SYSTEM_MESSAGE(value, path)
    if message.get("mode") == "replace":
        message.pop("sections", None)
        return message
    sections = dict(message.get("sections", {}))
    if sections.get(ENVIRONMENT, {}).get("action") != "replace":
        # Whatever is added to it or made from it begins with what it says.
        sections[ENVIRONMENT] = {"action": "remove"}
    # In the mode `append` the runtime ignores sections; it appends `content` in both (measured).
    return {**message, "mode": "customize", "sections": sections}


_LIMITS = record(fields(number, "maxAiCredits"))
_LARGE_OUTPUT = record(
    {"enabled": boolean, "maxSizeBytes": number},
    refused={"outputDir": "a directory of the host; leave it out, the runtime has one"},
)
_COMMAND = record(fields(text, "name", "description"))
_CANVAS = record(
    {
        **fields(text, "id", "displayName", "description"),
        "inputSchema": mapping,
        "actions": list_of(record({**fields(text, "name", "description"), "inputSchema": mapping})),
    }
)
_OPEN_CANVAS = record(
    {
        **fields(text, "canvasId", "extensionId", "instanceId", "extensionName", "status", "title", "url"),
        "input": anything,
    },
    refused={"icon": "a path of the host; leave it out"},
)
_INFINITE = record({"enabled": boolean, **fields(number, "backgroundCompactionThreshold", "bufferExhaustionThreshold")})
_CAPI = record({"autoTier": text, "enableWebSocketResponses": boolean})

# --- the table ---

_HOST_FILES = "it names files of the host"
_KEYS = "the host reaches models with its own keys, and adds them; leave it out"
_IDENTITY = "it would act with the host's identity at GitHub; leave it out"
_POLICY = "the host's policy is not the client's to change; leave it out"
_SHARED = "it is kept outside the session, where others may see it; leave it out"

_TABLE = (
    # What the session is.
    everyone("sessionId", SESSION_ID_SHAPE),
    everyone("name", text, "at create only; a session's name does not change when it is resumed"),
    everyone("clientName", text),
    everyone("traceparent", text),
    everyone("tracestate", text),
    everyone("interactiveUser", boolean),
    trusted("workingDirectory", "a path of the client's machine means nothing here", replaced=True),
    # The model, and what it is told.
    everyone("model", text),
    everyone("modelCapabilities", mapping),
    everyone("reasoningEffort", text),
    everyone("reasoningSummary", text),
    everyone("contextTier", text),
    everyone("capi", _CAPI),
    everyone("streaming", boolean),
    everyone("includeSubAgentStreamingEvents", boolean),
    everyone("enableCitations", boolean),
    everyone(
        "systemMessage",
        system_message,
        "without the environment of the host: what the runtime would say of it is removed",
        sandboxed=_SYSTEM_MESSAGE,
    ),
    everyone("organizationCustomInstructions", text),
    everyone("sessionLimits", _LIMITS),
    everyone("infiniteSessions", _INFINITE),
    everyone("autopilot", record({"continuationEnabled": boolean, "maxContinues": number})),
    everyone("toolSearch", record({"enabled": boolean, "deferThreshold": number})),
    # Tools, agents and what else the client brings along.
    everyone("tools", list_of(TOOL)),
    everyone("availableTools", texts, "built-in tools out of `policy.tools`, the client's own, those of its servers"),
    everyone("excludedTools", texts),
    everyone("mcpServers", remote_servers, "remote ones, without `$`", sandboxed=table_of(mapping)),
    everyone("disabledMcpServers", texts, "those that the runtime brings along are disabled anyway"),
    everyone(
        "customAgents", list_of(_AGENT), "without hooks, skills and local MCP servers", sandboxed=list_of(mapping)
    ),
    everyone("defaultAgent", record({"excludedTools": texts})),
    everyone("agent", text),
    everyone("excludedBuiltinAgents", texts),
    everyone("disabledSkills", texts),
    everyone("commands", list_of(_COMMAND)),
    everyone("hooks", boolean, "the client's own, which it runs itself"),
    everyone("canvases", list_of(_CANVAS)),
    everyone("openCanvases", list_of(_OPEN_CANVAS)),
    everyone("canvasProvider", record(fields(text, "id", "name"))),
    everyone("requestCanvasRenderer", boolean),
    everyone("largeOutput", _LARGE_OUTPUT, "without `outputDir`", sandboxed=mapping),
    # What the client wants to be asked.
    everyone("requestPermission", boolean),
    everyone("requestUserInput", boolean),
    everyone("askUserVariant", text),
    everyone("requestElicitation", boolean),
    everyone("requestExitPlanMode", boolean),
    everyone("requestAutoModeSwitch", boolean),
    everyone("requestMcpApps", boolean),
    # Resuming.
    everyone("continuePendingWork", boolean),
    everyone("allowTranscriptRecovery", boolean),
    everyone("disableResume", boolean),
    # Files and processes of the host.
    sandbox("enableConfigDiscovery", boolean, "it runs what lies in the working directory"),
    sandbox("enableFileHooks", boolean, "it runs what lies in the working directory"),
    sandbox("enableHostGitOperations", boolean, "it runs git on the host"),
    sandbox("enableOnDemandInstructionDiscovery", boolean, _HOST_FILES),
    sandbox("enableSkills", boolean, _HOST_FILES),
    sandbox("hasSkillProvider", boolean, "skills are off; put what they say into `systemMessage`"),
    sandbox("enableFileChangeTracking", boolean, "it copies files of the host"),
    sandbox("refreshCustomInstructions", boolean, "it concerns every session of the runtime"),
    sandbox("trustWorkingDirectory", anything, "it lets files of the host run"),
    sandbox("additionalDirectories", texts, _HOST_FILES),
    sandbox("skillDirectories", texts, _HOST_FILES),
    sandbox("agentDirectories", texts, f"{_HOST_FILES}; use `customAgents`"),
    sandbox("instructionDirectories", texts, f"{_HOST_FILES}; use `systemMessage`"),
    sandbox("hookDirectories", texts, "what is in them runs on the host; use the client's own hooks (`hooks: true`)"),
    sandbox("pluginDirectories", texts, "what is in them runs on the host; use `tools`, `mcpServers`, `customAgents`"),
    # Identities and keys.
    trusted("provider", _KEYS),
    trusted("providers", _KEYS),
    trusted("models", _KEYS),
    trusted("gitHubToken", _KEYS),
    trusted("gitHubTokenProviderRegistrationId", _KEYS),
    trusted("githubMcpToolConfig", _IDENTITY),
    trusted("authClientIdMetadataUrl", _IDENTITY),
    trusted("remoteSession", _IDENTITY),
    trusted("cloud", _IDENTITY),
    trusted("imageGeneration", _KEYS),
    # The policy, and what sessions share.
    trusted("envValueMode", _POLICY),
    trusted("toolFilterPrecedence", _POLICY),
    trusted("customAgentsLocalOnly", _POLICY),
    trusted("isExperimentalMode", _POLICY),
    trusted("featureFlags", _POLICY),
    trusted("expAssignments", _POLICY),
    trusted("enableManagedSettings", _POLICY),
    trusted("enforceManagedModelDefaults", _POLICY),
    trusted("managedSettings", _POLICY),
    trusted("sandboxConfig", _POLICY),
    trusted("enableSessionTelemetry", "conversations are not reported; leave it out"),
    trusted("enableGitHubTelemetryForwarding", "it is the runtime's telemetry, of all its sessions; leave it out"),
    trusted("diagnostics", "it is the runtime's own; leave it out"),
    trusted("configDir", f"{_HOST_FILES}; leave it out"),
    trusted("enableSessionStore", _SHARED),
    trusted("memory", _SHARED),
    trusted("mcpOAuthTokenStorage", _SHARED),
    trusted("embeddingCacheStorage", _SHARED),
    trusted("skipEmbeddingRetrieval", _SHARED),
    trusted("requestExtensions", "extensions run on the host; leave it out"),
    trusted("extensionSdkPath", "extensions run on the host; leave it out"),
    trusted("extensionInfo", "extensions run on the host; leave it out"),
)

PARAMETERS: Mapping[str, Parameter] = {parameter.name: parameter for parameter in _TABLE}
