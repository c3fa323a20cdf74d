from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.model import Role
from aerodrome.policy import readers
from aerodrome.policy.method_refusals import NOT_ON_THE_LIST, REFUSED
from aerodrome.policy.method_table import GROUPS
from aerodrome.policy.methods import Handling, Refusal, checked_params, needs_check, refusal, rule_for
from aerodrome.policy.profiles import Profile
from aerodrome.policy.session_params import SAFE, SAFE_OPTIONS
from support import sdk

RULES = [rule for _, lines in GROUPS for line in lines for rule in line]
REFUSALS = [rule for line in REFUSED for rule in line]
BLOB = {"type": "blob", "data": "aGVsbG8=", "mimeType": "text/plain"}

#: Proven to run commands, or to reach files, identities or other sessions (docs/facts.md, "Isolation").
DANGEROUS = [
    "session.shell.exec", "session.permissions.setApproveAll", "session.mcp.startServer", "session.commands.invoke",
    "session.metadata.setWorkingDirectory", "session.provider.getEndpoint", "session.gitHubAuth.setCredentials",
    "mcp.config.add", "user.settings.set", "sessions.readPersistedEvents", "sessions.pruneOld", "account.login",
    "plugins.install", "runtime.shutdown", "sessionFs.setProvider", "llmInference.setProvider",
]  # fmt: skip
HOST_WIDE = (
    "runtime.", "account.", "user.settings.", "plugins.", "sessionFs.", "llmInference.", "sessions.", "mcp.config.",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def check(method: str, profile: Profile = Profile.ISOLATED, **params: Any) -> Any:
    return checked_params(method, profile, {"sessionId": "s1", **params})


def refused(method: str, profile: Profile = Profile.ISOLATED, **params: Any) -> str:
    said = check(method, profile, **params)
    assert isinstance(said, Refusal), said
    return said.reason


# --- the table ---


def test_everything_the_sdk_can_call_is_spoken_of() -> None:
    assert [method for method in sdk.methods() if rule_for(method).why == NOT_ON_THE_LIST] == []


def test_only_methods_that_there_are_have_a_rule() -> None:
    known = sdk.methods()
    assert [rule.method for rule in RULES if rule.method not in {*known, "session.destroy"}] == []
    for rule in REFUSALS:
        meant = [method for method in known if method == rule.method or method.startswith(rule.method)]
        assert meant, rule.method


def test_no_method_has_two_rules() -> None:
    names = [rule.method for rule in [*RULES, *REFUSALS]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "method", ["", "session.", "session.shell.execute2", "Session.send", "session.send ", "x" * 999]
)
def test_a_method_that_nobody_has_heard_of_is_refused_to_all(method: str) -> None:
    assert rule_for(method).handling is Handling.REFUSE
    for profile in Profile:
        said = refusal(method, profile)
        assert said is not None
        assert said.code == "forbidden"
        assert len(said.reason) < 300


@pytest.mark.parametrize("method", DANGEROUS)
def test_no_dangerous_method_is_for_isolated_clients(method: str) -> None:
    said = refusal(method, Profile.ISOLATED)
    assert said is not None
    assert method in said.reason


@pytest.mark.parametrize("beginning", HOST_WIDE)
def test_what_concerns_the_whole_host_is_passed_on_for_nobody(beginning: str) -> None:
    methods = [method for method in sdk.methods() if method.startswith(beginning)]
    assert methods
    for method in methods:
        assert rule_for(method).handling in (Handling.REFUSE, Handling.GATEWAY), method


def test_a_profile_may_do_what_the_one_before_it_may() -> None:
    for rule in RULES:
        allowed = [profile in rule.profiles for profile in Profile]
        assert allowed == sorted(allowed), rule
        assert rule.profiles, rule
        assert rule.why, rule
        assert not (rule.repeatable and rule.uses), rule


def test_a_runtime_is_asked_only_for_what_names_no_session() -> None:
    for rule in RULES:
        assert (rule.handling is Handling.RUNTIME) <= (not rule.method.startswith("session"))
        assert (rule.handling is Handling.FORWARD) <= rule.method.startswith("session.")


def test_what_an_sdk_needs_for_a_conversation_is_for_everyone() -> None:
    needed = """
        connect ping status.get auth.getStatus session.create session.resume session.send session.abort session.detach
        session.getMessages session.list session.delete session.options.update session.eventLog.registerInterest
        session.tools.handlePendingToolCall session.permissions.handlePendingPermissionRequest session.tools.set
        session.ui.handlePendingUserInput session.ui.handlePendingElicitation session.commands.handlePendingCommand
        session.model.switchTo session.model.switchAutoTier session.log models.list
    """
    assert [method for method in needed.split() if refusal(method, Profile.ISOLATED)] == []


def test_a_sandboxed_client_may_use_its_workspace_and_not_the_hosts_identity() -> None:
    for method in ("session.shell.exec", "session.workspaces.diff", "session.permissions.setApproveAll"):
        assert refusal(method, Profile.SANDBOXED) is None
    for method in ("session.remote.enable", "session.provider.add", "session.quota.get", "session.connectors.list"):
        assert refusal(method, Profile.SANDBOXED) is not None
        assert refusal(method, Profile.TRUSTED) is None


def test_what_may_act_with_the_hosts_identity_is_not_for_a_sandbox() -> None:
    """Some of the runtime's commands share or export a session, and some of its servers act for its account."""
    for method in (
        "session.commands.invoke",
        "session.commands.enqueue",
        "session.mcp.reload",
        "session.plugins.install",
    ):
        assert refusal(method, Profile.SANDBOXED) is not None
    for method in ("session.mcp.enable", "session.mcp.startServer", "session.mcp.restartServer"):
        assert refusal(method, Profile.ISOLATED) is not None
        assert "host's identity" in refused(method, Profile.SANDBOXED, serverName="GitHub-mcp-server")
        assert refused(method, Profile.SANDBOXED, serverName=5)
        assert check(method, Profile.SANDBOXED, serverName="mine", config={"command": "x"})["config"]
        assert check(method, Profile.TRUSTED, serverName="github-mcp-server")


# --- parameters ---


def test_only_methods_that_somebody_may_call_are_checked() -> None:
    assert needs_check("session.send")
    assert not needs_check("session.getMessages")
    for method in sdk.methods():
        if needs_check(method):
            assert rule_for(method).handling is not Handling.REFUSE
        else:
            anything = {"sessionId": "s1", "x": 1}
            assert checked_params(method, Profile.ISOLATED, anything) is anything


@given(st.sampled_from([rule.method for rule in RULES if needs_check(rule.method)]), st.data())
def test_what_is_checked_is_unchanged_when_checked_again(method: str, data: st.DataObject) -> None:
    names = st.text(max_size=8) | st.sampled_from(
        ["sessionId", "prompt", "mode", "path", "tools", "result", "requestId"]
    )
    params = data.draw(st.dictionaries(names, JSON, max_size=5))
    for profile in Profile:
        once = checked_params(method, profile, params)
        if not isinstance(once, Refusal):
            assert checked_params(method, profile, once) == once


def test_a_prompt_may_bring_content_and_name_nothing_to_fetch() -> None:
    params = {"sessionId": "s1", "prompt": "hi", "attachments": [BLOB], "mode": "immediate", "traceparent": "00-1-2-01"}
    assert checked_params("session.send", Profile.ISOLATED, params) == params
    assert "attachments[0]" in refused("session.send", prompt="hi", attachments=[{"type": "file", "path": "/etc"}])
    assert "attachments" in refused("session.send", prompt="hi", attachments={"type": "file"})
    file = [{"type": "file", "path": "a.txt"}]
    assert check("session.send", Profile.SANDBOXED, prompt="hi", attachments=file)["attachments"] == file
    assert "github_reference" in refused("session.send", Profile.SANDBOXED, attachments=[{"type": "github_reference"}])
    assert check("session.send", Profile.TRUSTED, attachments=[{"type": "github_reference"}])


@pytest.mark.parametrize(
    "more",
    [
        {"requestHeaders": {"Authorization": "x"}},
        {"agentMode": "shell"},
        {"nobodyKnows": 1},
        {"mode": "later"},
        {"prompt": 5},
        {"responseFormat": "text"},
    ],
    ids=str,
)
def test_a_prompt_that_asks_for_more_is_refused_and_told_which_parameter(more: dict[str, Any]) -> None:
    for profile in (Profile.ISOLATED, Profile.SANDBOXED):
        assert next(iter(more)) in refused("session.send", profile, **{"prompt": "hi", **more})


def test_what_asks_for_nothing_is_dropped() -> None:
    nothing: dict[str, Any] = {"requestHeaders": {}, "billable": False, "attachments": None, "nobodyKnows": None}
    assert check("session.send", prompt="", **nothing) == {"sessionId": "s1", "prompt": ""}


def test_the_options_of_the_sdks_empty_mode_pass() -> None:
    assert check("session.options.update", **SAFE_OPTIONS) == {"sessionId": "s1", **SAFE_OPTIONS}


@given(st.dictionaries(st.sampled_from([*SAFE, *SAFE_OPTIONS, "model", "availableTools", "excludedTools"]), JSON))
def test_whatever_is_updated_the_safe_options_hold(params: dict[str, Any]) -> None:
    checked = check("session.options.update", **params)
    if not isinstance(checked, Refusal):
        assert {name: checked[name] for name in SAFE_OPTIONS} == dict(SAFE_OPTIONS)
        assert not {*SAFE, "availableTools"} - set(SAFE_OPTIONS) & set(checked)


@pytest.mark.parametrize("tools", [["builtin:bash"], ["builtin:*"], ["bash"], ["ask_user"]])
def test_tools_are_not_added_behind_the_filters(tools: list[str]) -> None:
    for profile in (Profile.ISOLATED, Profile.SANDBOXED):
        assert "availableTools" in refused("session.options.update", profile, availableTools=tools)
        # Null would open everything.
        nothings: list[Any] = [None, []]
        for nothing in nothings:
            assert "availableTools" not in check("session.options.update", profile, availableTools=nothing)
        assert check("session.options.update", profile, excludedTools=tools)["excludedTools"] == tools


def test_options_of_ones_own_may_be_changed_and_reset() -> None:
    checked = check("session.options.update", model="m", sessionLimits=None, enableStreaming=False)
    assert checked == {"sessionId": "s1", "model": "m", "sessionLimits": None, "enableStreaming": False, **SAFE_OPTIONS}
    for more in ({"provider": {"type": "openai"}}, {"skillDirectories": ["/etc"]}, {"skipCustomInstructions": "no"}):
        assert next(iter(more)) in refused("session.options.update", **more)


def test_permissions_are_given_for_the_session_and_not_for_ever() -> None:
    method = "session.permissions.handlePendingPermissionRequest"
    for kind in ("approve-once", "approve-for-session", "reject", "user-not-available"):
        params = {"sessionId": "s1", "requestId": "r", "result": {"kind": kind}}
        assert checked_params(method, Profile.ISOLATED, params) == params
    for kind in ("approve-permanently", "approve-for-location"):
        assert kind in refused(method, requestId="r", result={"kind": kind, "domain": "x"})
        assert check(method, Profile.SANDBOXED, requestId="r", result={"kind": kind})["result"] == {"kind": kind}


def test_a_switch_of_models_is_allowed_for_this_time_and_not_in_the_settings() -> None:
    method = "session.ui.handlePendingAutoModeSwitch"
    for said, passed in (("yes", "yes"), ("yes_always", "yes"), ("no", "no")):
        assert check(method, requestId="r", response=said)["response"] == passed
    assert "response" in refused(method, requestId="r", response="always")
    assert check(method, Profile.SANDBOXED, requestId="r", response="yes_always")["response"] == "yes_always"


def test_a_model_is_switched_for_the_session_and_not_in_the_settings() -> None:
    params = {"sessionId": "s1", "modelId": "m", "reasoningEffort": None}
    assert checked_params("session.model.switchTo", Profile.ISOLATED, params) == params
    assert "pickerPersistence" in refused("session.model.switchTo", modelId="m", pickerPersistence={"x": 1})
    assert "inheritPlanBaseFromSessionId" in refused(
        "session.mode.set", mode="plan", inheritPlanBaseFromSessionId="other"
    )


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "~/x", "a\\..\\b", "a\x00", "..", 5, None, ["a"]])
def test_files_of_the_session_are_named_from_within(path: Any) -> None:
    said = check("session.workspaces.readFile", path=path)
    assert isinstance(said, Refusal) or path is None
    assert "path" not in said if path is None else "path" in said.reason


def test_files_of_the_session_may_be_read_and_written() -> None:
    for path in ("a.txt", "a/b.txt", "..a/b..", "."):
        assert check("session.workspaces.createFile", path=path, content="x")["path"] == path


def test_models_are_listed_with_the_hosts_account() -> None:
    assert checked_params("models.list", Profile.ISOLATED, {}) == {}
    said = checked_params("models.list", Profile.ISOLATED, {"gitHubToken": "gho_x"})
    assert isinstance(said, Refusal)
    assert "gho_x" not in said.reason


# --- roles ---


def test_whatever_names_a_session_needs_a_role_in_it() -> None:
    without = {rule.method for rule in RULES if rule.role is None}
    assert without == {
        "connect", "ping", "status.get", "auth.getStatus", "models.list",
        *(rule.method for rule in RULES if rule.handling is Handling.RUNTIME),
    }  # fmt: skip


def test_readers_get_what_may_be_asked_again_and_nothing_that_acts() -> None:
    for rule in RULES:
        if rule.handling is Handling.FORWARD:
            assert rule.role in (Role.READER, Role.WRITER)
            # Also of the reads some are not for readers: those that have others act.
            assert rule.repeatable or rule.role is Role.WRITER, rule.method
    of_gateway = {rule.method: rule.role for rule in RULES if rule.handling is Handling.GATEWAY}
    assert of_gateway["session.send"] is of_gateway["session.abort"] is Role.WRITER
    assert of_gateway["session.delete"] is Role.OWNER
    assert rule_for("session.mcp.resources.read").role is Role.WRITER
    assert rule_for("session.getMessages").role is Role.READER


@pytest.mark.parametrize("method", sorted(rule.method for rule in RULES if rule.role is Role.WRITER))
def test_hardly_anything_of_a_writer_is_answered_to_a_reader(method: str) -> None:
    answered = {"session.options.update", "session.eventLog.registerInterest", "session.eventLog.releaseInterest"}
    said = readers.answer_in_place(method, {"sessionId": "s1"})
    assert (said is not None) == (method in answered)


@given(st.dictionaries(st.sampled_from([*SAFE_OPTIONS, "model", "availableTools"]), JSON))
def test_a_reader_changes_no_option(options: dict[str, Any]) -> None:
    said = readers.answer_in_place("session.options.update", options)
    assert (said is not None) == all(
        value is None or SAFE_OPTIONS.get(name) == value for name, value in options.items()
    )


def test_events_that_sdks_answer_by_themselves_are_those_that_ask() -> None:
    source = sdk.source("session.py")
    start = source.index("Implements the protocol v3 broadcast model")
    handled = re.findall(r"case (\w+)Data\(\)", source[start : source.index("async def _execute_tool_and_respond")])
    types = {
        re.sub(r"[^a-z]", "", kind): kind
        for kind in re.findall(r'"([a-z_]+(?:\.[a-z_]+)+)"', sdk.source("generated/session_events.py"))
    }
    # Of these it only keeps books.
    noted = {"external_tool.completed", "capabilities.changed"} | {
        kind for kind in types.values() if kind.startswith("session.canvas.")
    }
    asking = {types[name.lower()] for name in handled} - noted
    assert {"permission.requested", "external_tool.requested", "command.execute"} <= asking
    assert [kind for kind in sorted(asking) if not readers.asks(kind)] == []
    assert not readers.asks("assistant.message")
