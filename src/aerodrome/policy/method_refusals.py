"""The methods that nobody may call, by name or by how they begin, and what a client is told. Pure data.

They concern the runtime as a whole, its home, the machine or the host's identities, or they are the runtime's own
business. A rule in `method_table` goes before these, a longer beginning before a shorter one.
"""

from __future__ import annotations

from aerodrome.policy.method_rules import Rules, refuse

_RUNTIME = "it concerns the runtime, which the host starts, stops and moves sessions between"
_SETTINGS = "it changes or tells the settings of the machine"
_IDENTITY = "accounts and their tokens are the host's; ask the operator"
_INTERNAL = "it is between the parts of a runtime"
_FILES = "it reads or writes files of the host"
_OTHERS = "it reaches sessions whoever owns them; use the methods of the client (`session.list`, `session.delete`)"

NOT_ON_THE_LIST = "it is not on the list of methods that clients may call"

#: Nobody, whatever the profile.
REFUSED: tuple[Rules, ...] = (
    # The runtime and its one provider of each kind.
    refuse("runtime.", why=_RUNTIME),
    refuse("sessionFs.", why="the host keeps the files of all sessions; leave `session_fs` out"),
    refuse("llmInference.", why="the host reaches models itself; leave the request handler out"),
    refuse("", "host. environments. agentRegistry. registerExtensionLaunchProvider", _RUNTIME),
    refuse("session.", "shutdown suspend", f"{_RUNTIME}; use session.detach"),
    refuse("session.", "getForeground setForeground", "there is no terminal here that shows one session"),
    # Other sessions.
    refuse("sessions.", why=_OTHERS),
    # Identities, keys, telemetry.
    refuse("", "account. connectors. gitHubOwners. gitHubRepository. secrets.", _IDENTITY),
    refuse("session.", "accounts. gitHubAuth. connectors. mcp.configureGitHub mcp.removeGitHub", _IDENTITY),
    refuse("session.provider.getEndpoint", why="it tells the key of the host's model"),
    refuse("session.", "telemetry. usage.setCodeChanges", "what is reported, and to whom, is the host's to say"),
    # Settings and files of the machine.
    refuse("", "user. repo. globalState. persistence. featureFlags. managedSettings. permissions.", _SETTINGS),
    refuse("", "contentExclusion. sandbox.", _SETTINGS),
    refuse("", "mcp. plugins. extensions. catalog. azureMl.", "it changes or tells what is installed on the machine"),
    refuse("", "skills. agents. instructions. hooks. git.", _FILES),
    refuse("models.listTokenPriceUnits", why=_IDENTITY),
    refuse("session.", "settings. managedSettings.", _SETTINGS),
    # Between the parts of a runtime: marked internal in the SDK, or for the terminal and for extensions.
    refuse("session.", "sendSystemNotification queue. schedule. workflow.", _INTERNAL),
    refuse("session.commands.finalizeInvocationEffect", why=_INTERNAL),
    refuse("session.model.", "applyStartupOverlay clearStartupSeed", _INTERNAL),
    refuse("session.mcp.", "registerExternalClient unregisterExternalClient reloadWithConfig", _INTERNAL),
    refuse("session.mcp.", "setConnectedIdeInfo setEnvValueMode oauth.authenticationStateChanged", _INTERNAL),
    refuse("session.ui.", "handleHumanAskUser handleHumanExitPlanMode handleHumanUserInput",
           "only somebody at the runtime's own terminal is known to be human; use the method with `handlePending`"),
    refuse("session.ui.", "registerDirectAutoModeSwitchHandler unregisterDirectAutoModeSwitchHandler", _INTERNAL),
    refuse("session.canvas.provider.", why=_INTERNAL),
    refuse("session.tools.", "getBuiltinDescriptors taskCompleteEventData", _INTERNAL),
    refuse("session.quota.takeWarnings", why=_INTERNAL),
    refuse("session.remote.notifySteerableChanged", why=_INTERNAL),
    refuse("session.extensions.", "reconcile sendAttachmentsToMessage", _INTERNAL),
    refuse("session.workspaces.", "autopilotObjectiveExists deleteAutopilotObjective readAutopilotObjective "
           "writeAutopilotObjective", _INTERNAL),
)  # fmt: skip
