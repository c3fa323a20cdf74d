"""What native clients may ask of a runtime, told from the tables that decide it: `docs/policy.md`.

python -m aerodrome.policy.reference > docs/policy.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from aerodrome.policy.method_refusals import NOT_ON_THE_LIST, REFUSED
from aerodrome.policy.method_rules import Handling, Rules
from aerodrome.policy.method_table import GROUPS
from aerodrome.policy.methods import needs_check
from aerodrome.policy.open_table import PARAMETERS, Parameter
from aerodrome.policy.profiles import Profile
from aerodrome.policy.session_params import SAFE, SAFE_OPTIONS

_INTRODUCTION = """\
# Policy of the native gateway

<!-- Made from the tables by `python -m aerodrome.policy.reference > docs/policy.md`; edit those. -->

Clients of the native gateway speak the runtime's own protocol, most of which was made for one user on a machine of
their own. What they may say is allowed by list: a method or a parameter that is not on this page is refused, so that a
new Copilot CLI opens nothing by itself. A refusal is an error with the code `forbidden` (or `invalid`, when no profile
would allow it); its message names what was refused, why, and what to do instead.

How much is allowed is the tenant's **profile**, set with `policy.profile` and `policy.tenants`
([settings](settings.md#policy)):

{profiles}

`sandboxed` needs the launcher [`sandbox`](sandbox.md), or `policy.allow_unsandboxed`; `trusted` always needs the latter
([security](security.md#tools-that-reach-the-host)).
"""

_PROFILES = (
    (
        "isolated",
        "everybody, and the default",
        "What stays within the session: no tool of the host, no commands, paths or keys. Remote MCP servers.",
    ),
    (
        "sandboxed",
        "a user who is alone in a runtime (isolation `user`)",
        "Also files and commands where the session works. Not the host's identities, model keys and policy.",
    ),
    (
        "trusted",
        "users who may have a shell on the machine anyway",
        "Nearly everything; only what concerns the runtime as a whole is kept from them.",
    ),
)

_METHODS = """
## Methods

Who answers: the **runtime** that holds the session; **any runtime** of the caller; the **gateway**. Methods marked
with * are allowed if their parameters say the right thing, see [below](#parameters-of-other-methods). A *read* may be
asked again when its runtime is lost, and does not count as use of the session: who only watches does not keep it from
hibernating.

The **role** is the least that the caller must have in the session
([shared sessions](concepts.md#shared-sessions)). For whoever has none there is no such session; to a member whose role
is not enough the answer is `forbidden`. A client of a **reader** that resumes a session is told what happens in it and
brings nothing along: its tools, hooks, commands and handlers are not made known to the runtime, and events that ask
something are not sent to it. What SDKs say of themselves behind a resume (`session.options.update` of `mode: "empty"`,
`session.eventLog.registerInterest`) is answered and has no effect.
"""

_PARAMETERS = """
## Parameters of session.create and session.resume

What a client does not need to say is dropped: null, false, and empty values of parameters that it may not use, and
values that are forced anyway. So unmodified SDKs work, in `mode: "empty"` and without. Any other value of such a
parameter is refused, by name; so is a parameter that is not in this table.

In all profiles the host adds the provider or the GitHub token, and the model if the client names none, at create and
at every resume; in `trusted`, unless the client brings keys of its own. `workingDirectory` of the client is a path of
its own machine, and is replaced by the runtime's workspace without a word, except in `trusted`.

Tool filters (`availableTools`): `builtin:NAME`, `mcp:SERVER-TOOL`, `custom:NAME`, and `custom:*`, `mcp:*`. A bare name
is one of the client's own tools, or a built-in one that is offered. Without a list a client gets the built-in tools
that are offered, its own, and those of its MCP servers; with an empty list it gets none. Offered are `policy.tools`;
in `sandboxed` also `policy.host_tools`, and `builtin:*` means all of both.

MCP servers in `isolated`, also those of custom agents: type `http` or `sse`; an address that is not of the machine
itself; no `$` in address and headers, because the runtime would put its environment there.

| parameter | isolated | sandboxed | trusted | |
|---|---|---|---|---|"""

_OTHERS = """
## Parameters of other methods

In `trusted` none of them is looked at. In all of them, fields that this host does not know are dropped when they are
empty and refused otherwise.

- `session.send`: `prompt`, `displayPrompt`, `attachments`, `mode`, `agentMode` (not `shell`), `source`, `requiredTool`,
  `responseFormat`, and trace context. Attachments are of type `blob` in `isolated`; in `sandboxed` also `file`,
  `directory` and `selection`. No `requestHeaders`: they would go to the model beside the host's key.
- `session.options.update`: what is harmless. In `isolated` the values of `mode: "empty"` are sent along, whatever the
  client says ({options}). No `availableTools`; `excludedTools` may be changed.
- `session.permissions.handlePendingPermissionRequest`: in `isolated`, decisions for once and for the session.
- `session.model.switchTo`, `session.mode.set`: for the session; not what is written to settings.
- `session.history.rewind`: in `isolated`, the conversation without files.
- `session.mcp.enable`, `restartServer`, `startServer`: in `sandboxed`, not the servers that the runtime brings along.
- `session.tools.set`: the fields of a tool of the client.
- `session.workspaces.*`: paths inside the session's own files.
- `models.list`: no token of the client's.
"""

_ANSWERS = {Handling.FORWARD: "runtime", Handling.RUNTIME: "any runtime", Handling.GATEWAY: "gateway"}


def render() -> str:
    """The page in Markdown."""
    profiles = [f"| `{name}` | {who} | {what} |" for name, who, what in _PROFILES]
    table = "\n".join(["| profile | for | what it allows |", "|---|---|---|", *profiles])
    lines = [_INTRODUCTION.replace("{profiles}", table), *_methods(), _PARAMETERS]
    lines += [_parameter(parameter) for parameter in PARAMETERS.values()]
    lines.append(_OTHERS.replace("{options}", ", ".join(f"`{name}`" for name in SAFE_OPTIONS)))
    return "\n".join(lines).rstrip() + "\n"


def _methods() -> Iterator[str]:
    yield _METHODS.strip("\n")
    for title, rules in GROUPS:
        yield f"\n### {title}\n"
        yield "| methods | who answers | profiles | role | |\n|---|---|---|---|---|"
        yield from (_rules(line) for line in rules)
    yield "\n### Refused to all\n"
    yield "A name that ends in `.*` stands for all methods that begin so and are not in a table above.\n"
    yield "| methods | why |\n|---|---|"
    yield from (f"| {_names(line)} | {_cell(line.why)} |" for line in REFUSED)
    yield f"| all others | {NOT_ON_THE_LIST} |"


def _rules(line: Rules) -> str:
    answers = _ANSWERS[line.handling] + (", read" if line.repeatable and line.handling is Handling.FORWARD else "")
    profiles = (
        "all" if line.profiles == frozenset(Profile) else ", ".join(p.value for p in Profile if p in line.profiles)
    )
    why = line.why if profiles == "all" else f"else: {line.why}"
    role = line.role.value if line.role is not None else "-"
    return f"| {_names(line)} | {answers} | {profiles} | {role} | {_cell(why)} |"


def _names(line: Rules) -> str:
    return ", ".join(
        f"`{name}*`" if name.endswith(".") else f"`{name}`" + ("\\*" if needs_check(name) else "")
        for name in line.names
    )


def _parameter(parameter: Parameter) -> str:
    cells = [f"`{parameter.name}`", *(_said(parameter, profile) for profile in Profile), _cell(parameter.why)]
    return f"| {' | '.join(cells)} |"


def _said(parameter: Parameter, profile: Profile) -> str:
    if profile in parameter.shapes:
        return "in part" if profile is Profile.ISOLATED and parameter.differs else "yes"
    if parameter.replaced:
        return "replaced"
    if parameter.name in SAFE:
        return f"`{json.dumps(SAFE[parameter.name])}`"
    return "no"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
