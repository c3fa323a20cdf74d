"""The methods that somebody may call: one line for each, or for several of which the same is said. Pure data.

A method is here because somebody has looked at its parameters, in the SDK's `generated/rpc.py`, and at what it does.
What is not here is refused (`method_refusals`), so that a new CLI opens nothing by itself. Some are allowed only if
their parameters say the right thing (`method_params`).
"""

from __future__ import annotations

from aerodrome.model import Role
from aerodrome.policy.method_rules import Rules, act, by_the_gateway, of_any_runtime, read
from aerodrome.policy.profiles import SANDBOXED, TRUSTED

#: What lies in the sandbox is the user's own.
_OWN_FILES = "reads or writes files where the session works; use tools of the client"
_OWN_PROCESSES = "runs commands where the session works; use tools of the client"
_OWN_PERMISSIONS = "changes for good what is approved unseen; answer each request"
_OUTSIDE_TURNS = "starts work that no turn accounts for, so that the session may hibernate under it; use session.send"
_QUEUE = "prompts wait in the host's queue, not in the runtime's; use session.send and session.abort"
_IDENTITY = "acts with the host's identity at GitHub"

GROUPS: tuple[tuple[str, tuple[Rules, ...]], ...] = (
    (
        "Connection",
        (
            by_the_gateway("connect", why="the key is checked; what the client says of itself goes to no runtime"),
            by_the_gateway("ping", why="the gateway is alive, whatever its runtimes are"),
            by_the_gateway("status.get", why="the version that the client is to believe it talks to"),
            by_the_gateway("auth.getStatus", why="the caller's own state, not the host's account"),
        ),
    ),
    (
        "Sessions",
        (
            by_the_gateway(
                "session.", "create resume", "see [parameters](#parameters-of-sessioncreate-and-sessionresume)",
                repeatable=False, uses=True, role=Role.READER,
            ),
            by_the_gateway("session.", "list getMetadata getLastId",
                           "from the directory: the caller's own sessions, and those shared with it", role=Role.READER),
            by_the_gateway("session.", "detach destroy", "the client's attachment ends, the session stays",
                           role=Role.READER),
            by_the_gateway("session.delete", why="files and rows are the host's", repeatable=False, role=Role.OWNER),
            by_the_gateway("sessions.fork", why="a copy that belongs to the caller", repeatable=False,
                           role=Role.READER),
            read("session.", "getMessages", "the history"),
            read("session.metadata.", "activity contextInfo getClientMetadata getContextAttribution"),
            read("session.metadata.", "getContextHeaviestMessages isProcessing recomputeContextTokens snapshot"),
            act("session.metadata.", "updateClientMetadata", "the session's own labels"),
            read("session.name.", "get"),
            act("session.name.", "set setAuto", "the session's own name"),
            act("session.options.update", why="cleaned: only what is harmless, and all that is safe"),
        ),
    ),
    (
        "Turns",
        (
            by_the_gateway("session.send", why="recorded before it is sent; of attachments, only content",
                           repeatable=False, uses=True, role=Role.WRITER),
            by_the_gateway("session.abort", why="ends the turn that the host knows of", repeatable=False, uses=True,
                           role=Role.WRITER),
            act("session.cancelAllBackgroundAgents", why="stops what the session has started"),
            read("session.queue.", "pendingItems", "prompts that wait for a turn wait in the host, not here"),
            read("session.eventLog.", "read tail", "the session's own events"),
            act("session.eventLog.", "registerInterest releaseInterest", "events for the client to answer"),
            act("session.log", why="a line in the session's own history"),
            read("session.usage.", "getMetrics"),
            act("session.ui.", "ephemeralQuery", "a question to the model, without tools"),
            act("session.", "sendMessages", _OUTSIDE_TURNS, TRUSTED),
            act("session.", "interruptMainTurn", _QUEUE, TRUSTED),
            act("session.queue.", "appendSteering clear duplicateAt insertAt moveItem removeAt", _QUEUE, TRUSTED),
            act("session.queue.", "removeMostRecent sendNow setDrainPaused updateText", _QUEUE, TRUSTED),
            act("session.queue.", "withdrawMessage", _QUEUE, TRUSTED),
            act("session.fleet.", "start", _OUTSIDE_TURNS, TRUSTED),
            read("session.schedule.", "list"),
            act("session.schedule.", "stop", "ends what was scheduled"),
            act("session.schedule.", "add addAt addCron addSelfPaced", _OUTSIDE_TURNS, TRUSTED),
        ),
    ),
    (
        "Answers to what a session asks",
        (
            act("session.tools.", "handlePendingToolCall", "the client's own tools"),
            act("session.permissions.", "handlePendingPermissionRequest", "for this session only, unless sandboxed"),
            act("session.permissions.", "notifyPromptShown setRequired", "whether somebody is there to ask"),
            act("session.permissions.", "resetSessionApprovals", "takes back what was approved"),
            read("session.permissions.", "getMode pendingRequests"),
            read("session.tools.", "listPendingRequests"),
            act("session.ui.", "elicitation handlePendingAutoModeSwitch handlePendingElicitation", "asks and answers"),
            act("session.ui.", "handlePendingExitPlanMode handlePendingSampling handlePendingUserInput", "answers"),
            act("session.ui.", "handlePendingSessionLimitsExhausted", "answers"),
            act("session.commands.", "handlePendingCommand respondToQueuedCommand", "the client's own commands"),
            act("session.mcp.", "oauth.handlePendingRequest headers.handlePendingHeadersRefreshRequest",
                "the client's own tokens for its own servers"),
        ),
    ),
    (
        "Model and mode",
        (
            read("session.model.", "getCurrent getReasoningSummaries list"),
            act("session.model.", "setReasoningEffort switchAutoTier switchTo", "for this session"),
            act("session.model.", "setAllowedModels", "which models there are is the host's to say", TRUSTED),
            read("session.mode.", "get"),
            act("session.mode.", "set", "for this session"),
            read("session.autopilotObjective.", "getState"),
        ),
    ),
    (
        "Plan and history",
        (
            read("session.plan.", "read readSqlTodos readSqlTodosWithDependencies"),
            act("session.plan.", "delete update", "the session's own plan"),
            read("session.history.", "listRewindPoints"),
            act("session.history.", "abortManualCompaction cancelBackgroundCompaction clearContext compact", "its own"),
            act("session.history.", "rewind summarizeForHandoff truncate", "its own; the conversation without files"),
            read("session.history.", "previewRewind", _OWN_FILES, SANDBOXED),
            read("session.workspaces.", "getWorkspace listCheckpoints listFiles readCheckpoint readFile statFile",
                 "the session's own files, in the host's store"),
            act("session.workspaces.", "createDirectory createFile removePath renamePath",
                "the session's own files, in the host's store"),
            read("session.workspaces.", "diff", _OWN_FILES, SANDBOXED),
            act("session.workspaces.", "addSummary ensure saveLargePaste truncateSummaries updateMetadata", _OWN_FILES,
                SANDBOXED),
        ),
    ),
    (
        "Tools, agents, tasks",
        (
            read("session.tools.", "getCurrentMetadata"),
            act("session.tools.", "initializeAndValidate set", "the client's own tools"),
            read("session.agent.", "getCurrent list"),
            act("session.agent.", "deselect select setPrompt", "an agent's tools are never more than the session's"),
            read("session.tasks.", "getCurrentPromotable getProgress list readOutput"),
            act("session.tasks.", "cancel promoteCurrentToBackground promoteToBackground refresh", "its own tasks"),
            act("session.tasks.", "register remove sendMessage update waitForPending", "its own tasks"),
            act("session.tasks.", "startAgent", _OUTSIDE_TURNS, TRUSTED),
            read("session.commands.", "list"),
            read("session.canvas.", "list listOpen"),
            act("session.canvas.", "action.invoke close open", "the client's own canvases"),
            act("session.agent.", "reload", _OWN_FILES, SANDBOXED),
            act("session.tools.", "execute updateSubagentSettings", _OWN_PROCESSES, SANDBOXED),
            act("session.commands.", "enqueue execute invoke",
                "some of the runtime's commands reach the host's files, settings and identities; use session.send",
                TRUSTED),
        ),
    ),
    (
        "MCP servers",
        (
            read("session.mcp.", "isServerRunning list listConfigured listTools prompts.list", "its own"),
            read("session.mcp.", "resources.list resources.listTemplates", "its own"),
            read("session.mcp.", "prompts.get resources.read", "its own; the server acts with the session's tokens",
                 role=Role.WRITER),
            act("session.mcp.", "disable moveLoadingToBackground stopServer", "less than it was opened with"),
            read("session.mcp.apps.", "diagnose getHostContext listTools", "its own"),
            read("session.mcp.apps.", "readResource", "its own; the server acts with the session's tokens",
                 role=Role.WRITER),
            act("session.mcp.apps.", "callTool setHostContext", "its own"),
            act("session.mcp.", "cancelSamplingExecution enable executeSampling restartServer startServer",
                "starts servers on the host, also some that act with the host's identity; name remote ones in "
                "`mcpServers` when you open the session", SANDBOXED),
            act("session.mcp.", "reload", "starts every server that there is, also those of the runtime", TRUSTED),
        ),
    ),
    (
        "The workspace of a sandbox",
        (
            act("session.shell.", "cancelUserRequested exec executeUserRequested kill", _OWN_PROCESSES, SANDBOXED),
            act("session.lsp.", "initialize", _OWN_PROCESSES, SANDBOXED),
            act("session.metadata.", "recordContextChange setWorkingDirectory", _OWN_FILES, SANDBOXED),
            read("session.skills.", "getInvoked list", _OWN_FILES, SANDBOXED),
            act("session.skills.", "disable enable ensureLoaded reload", _OWN_FILES, SANDBOXED),
            read("session.instructions.", "getSources", _OWN_FILES, SANDBOXED),
            act("session.instructions.", "reload", _OWN_FILES, SANDBOXED),
            act("session.customizations.", "reload", _OWN_FILES, SANDBOXED),
            read("session.completions.", "getTriggerCharacters request", _OWN_FILES, SANDBOXED, role=Role.WRITER),
            read("session.contentExclusion.", "checkPaths", _OWN_FILES, SANDBOXED),
            act("session.permissions.", "configure modifyRules setApproveAll setMode", _OWN_PERMISSIONS, SANDBOXED),
            act("session.permissions.", "folderTrust.addTrusted locations.addToolApproval locations.apply paths.add "
                "paths.updatePrimary urls.setUnrestrictedMode", _OWN_PERMISSIONS, SANDBOXED),
            read("session.permissions.", "folderTrust.isTrusted locations.resolve paths.list "
                 "paths.isPathWithinAllowedDirectories paths.isPathWithinWorkspace", _OWN_FILES, SANDBOXED),
            read("session.sandbox.", "getEnforcementStatus", _OWN_PROCESSES, SANDBOXED),
            read("session.workflow.", "getRun getRunDetail getRunProgress listRuns", _OWN_FILES, SANDBOXED),
            act("session.workflow.", "cancel pause", _OWN_PROCESSES, SANDBOXED),
            act("session.workflow.", "resume run", _OUTSIDE_TURNS, TRUSTED),
        ),
    ),
    (
        "Trusted clients",
        (
            act("session.plugins.", "disable enable install list reload retryManaged uninstall update",
                "plugins run on the host; use `tools`, `mcpServers`, `customAgents`", TRUSTED),
            act("session.plugins.marketplaces.", "add browse list refresh remove", "plugins run on the host", TRUSTED),
            act("session.extensions.", "disable enable list reload", "extensions run on the host", TRUSTED),
            act("session.provider.", "add sync withdraw", "the host reaches models with its own keys", TRUSTED),
            act("session.providers.", "discover getCatalog getStatus models.list models.prepareConfiguration",
                "it looks for models on the host", TRUSTED),
            act("session.mcp.", "oauth.cancelLogin oauth.complete oauth.login oauth.prepareLogin oauth.probe "
                "oauth.respond", "the sign-in would listen on the host; answer `mcp.oauth_required`", TRUSTED),
            act("session.connectors.", "connect continueConnection disconnect getAccount getCapabilities getStatus "
                "list reconcile reconnect refresh", _IDENTITY, TRUSTED),
            act("session.remote.", "disable enable", _IDENTITY, TRUSTED),
            act("session.visibility.", "get set", _IDENTITY, TRUSTED),
            read("session.quota.", "get refresh", "it tells of the host's account", TRUSTED),
            read("session.limitPrediction.", "predict", "it tells of the host's account", TRUSTED),
            read("session.gitHubAuth.", "getStatus", "it tells of the host's account; use auth.getStatus", TRUSTED),
            read("session.managedSettings.", "get", "it tells of the host's policy", TRUSTED),
            act("session.sandbox.", "disableForSession getCredentialSuggestions grantPathForRequest",
                "it tells of the host's environment, or changes its policy", TRUSTED),
            act("session.debug.", "collectLogs", "it copies the runtime's logs, of all its sessions", TRUSTED),
            act("session.diagnostics.", "configure read", "it tells of the runtime", TRUSTED),
        ),
    ),
    (
        "Without a session",
        (
            by_the_gateway("models.list", why="of the tenant's provider; tokens of the client are not used"),
            of_any_runtime("models.getBuiltInCatalog", why="a list that is the same everywhere"),
            of_any_runtime("tools.list", why="a list that is the same everywhere"),
            of_any_runtime("commands.list", why="a list that is the same everywhere"),
            of_any_runtime("agents.getBuiltins", why="a list that is the same everywhere"),
        ),
    ),
)  # fmt: skip
