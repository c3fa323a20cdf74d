from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.model import ISOLATED_TOOLS, Isolation
from aerodrome.policy.methods import checked_params
from aerodrome.policy.open_params import OpenContext, client_open_params, forced_options, runtime_open_params
from aerodrome.policy.open_table import PARAMETERS, WITHOUT_ENVIRONMENT
from aerodrome.policy.profiles import Profile
from aerodrome.policy.remote_servers import BUILT_IN
from aerodrome.policy.session_params import SAFE, SAFE_OPTIONS, Credentials, ToolPolicy
from aerodrome.policy.shapes import Refusal
from aerodrome.policy.tool_filters import NO_TOOL
from support import sdk

POLICY = ToolPolicy(host=("bash", "edit"))
CREDENTIALS = Credentials({"type": "openai", "apiKey": "sk-secret"}, "gho_secret", "gpt")
ISOLATED_BUILT_IN = [f"builtin:{tool}" for tool in sorted(ISOLATED_TOOLS)]
TOOL = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}, "skipPermission": True}
REMOTE = {
    "type": "http",
    "url": "https://mcp.example/mcp?x=1",
    "headers": {"Authorization": "Bearer x"},
    "tools": ["*"],
}
LOCAL = {"type": "stdio", "command": "sh", "args": ["-c", "id"]}

#: What the SDK sends by itself, in each of its modes.
DEFAULT_MODE: dict[str, Any] = {
    "toolFilterPrecedence": "excluded", "requestPermission": True, "requestElicitation": False,
    "requestExitPlanMode": False, "requestAutoModeSwitch": False, "includeSubAgentStreamingEvents": True,
    "envValueMode": "direct", "sessionId": "s1",
}  # fmt: skip
EMPTY_MODE: dict[str, Any] = {
    **DEFAULT_MODE, **SAFE, "availableTools": ISOLATED_BUILT_IN, "systemMessage": dict(WITHOUT_ENVIRONMENT),
}  # fmt: skip


def keep(profile: Profile = Profile.ISOLATED, *, resume: bool = False, **params: Any) -> Any:
    isolation = Isolation.TENANT if profile is Profile.ISOLATED else Isolation.USER
    return client_open_params(params, resume, profile, isolation, POLICY)


def kept(profile: Profile = Profile.ISOLATED, **params: Any) -> dict[str, Any]:
    found = keep(profile, **params)
    assert not isinstance(found, Refusal), found.reason
    assert isinstance(found, dict)
    return found


def refused(profile: Profile = Profile.ISOLATED, **params: Any) -> Refusal:
    found = keep(profile, **params)
    assert isinstance(found, Refusal), found
    return found


def context(profile: Profile = Profile.ISOLATED, isolation: Isolation = Isolation.USER, **more: Any) -> OpenContext:
    values: dict[str, Any] = {"tools": POLICY, "credentials": CREDENTIALS, "working_directory": "/workspace", **more}
    return OpenContext(profile=profile, isolation=isolation, **values)


def sent(profile: Profile = Profile.ISOLATED, **params: Any) -> dict[str, Any]:
    return runtime_open_params(kept(profile, **params), context(profile))


# --- the table ---


def test_every_parameter_the_sdk_can_send_is_classified() -> None:
    assert [name for name in sdk.open_parameters() if name not in PARAMETERS] == []


def test_the_forced_values_are_of_parameters_that_the_table_knows() -> None:
    assert set(SAFE) <= set(PARAMETERS)


def test_a_parameter_that_is_refused_says_why_and_a_profile_may_what_the_one_before_it_may() -> None:
    for parameter in PARAMETERS.values():
        allowed = [profile in parameter.shapes for profile in Profile]
        assert allowed == sorted(allowed), parameter
        assert parameter.why or all(allowed), parameter


@pytest.mark.parametrize("name", [name for name in PARAMETERS if Profile.ISOLATED not in PARAMETERS[name].shapes])
def test_what_asks_for_a_capability_is_refused_by_name_and_what_asks_for_none_is_dropped(name: str) -> None:
    if PARAMETERS[name].replaced:
        return
    asking: dict[str, Any] = {name: ["x"]}
    said = refused(**asking)
    assert f"`{name}`" in said.reason
    assert said.code == "forbidden"
    nothings: list[Any] = [None, False, "", [], {}]
    for nothing in nothings:
        asking = {name: nothing}
        assert name not in kept(**asking)


# --- what unmodified clients send ---


@pytest.mark.parametrize("mode", [DEFAULT_MODE, EMPTY_MODE], ids=["default", "empty"])
@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("resume", [False, True])
def test_an_unmodified_sdk_just_works(mode: dict[str, Any], profile: Profile, resume: bool) -> None:
    params = runtime_open_params(keep(profile, resume=resume, **mode), context(profile))
    assert params["sessionId"] == "s1"
    assert params["workingDirectory"] == "/workspace"
    if profile is Profile.ISOLATED:
        assert {name: params[name] for name in SAFE} == dict(SAFE)
        assert params["systemMessage"] == WITHOUT_ENVIRONMENT


@pytest.mark.parametrize("mode", ["copilot-cli", "empty"])
@pytest.mark.parametrize("resume", [False, True])
async def test_what_the_official_client_really_sends_is_let_in(mode: str, resume: bool) -> None:
    options = {"available_tools": ["builtin:ask_user"]} if mode == "empty" else {}
    params, update = await sdk.payloads(mode, resume=resume, **options, on_permission_request=lambda *_: None)
    found = keep(resume=resume, **params)
    assert not isinstance(found, Refusal), found.reason
    passed = runtime_open_params(found, context())
    assert passed["availableTools"] == (["builtin:ask_user"] if mode == "empty" else found["availableTools"])
    assert bool(update) == (mode == "empty")
    checked = checked_params("session.options.update", Profile.ISOLATED, update)
    assert not isinstance(checked, Refusal), checked.reason
    assert {name: checked[name] for name in update} == update


def test_a_client_may_bring_all_it_answers_itself() -> None:
    mine: dict[str, Any] = {
        "tools": [TOOL], "commands": [{"name": "c", "description": ""}], "hooks": True, "streaming": True, "model": "m",
        "requestUserInput": True, "requestElicitation": True, "reasoningEffort": "high", "name": "my chat",
        "customAgents": [{"name": "a", "prompt": "p", "tools": ["look"], "mcpServers": {"r": REMOTE}}], "agent": "a",
        "mcpServers": {"remote": REMOTE}, "infiniteSessions": {"enabled": True}, "sessionLimits": {"maxAiCredits": 5},
        "excludedTools": ["builtin:task"], "traceparent": "00-1-2-01", "capi": {"autoTier": "fast"},
    }  # fmt: skip
    assert kept(**mine) == {**mine, "availableTools": [*ISOLATED_BUILT_IN, "custom:*", "mcp:*"]}


def test_resume_flags_pass_and_a_resume_names_its_session() -> None:
    flags: dict[str, Any] = {"continuePendingWork": True, "disableResume": True, "allowTranscriptRecovery": False}
    found = keep(resume=True, sessionId="s1", name="ignored", **flags)
    assert {name: found[name] for name in flags} == flags
    assert "name" not in found
    said = keep(resume=True)
    assert isinstance(said, Refusal)
    assert "sessionId" in said.reason


@pytest.mark.parametrize("session_id", ["", "a/b", "a" * 201, 5, ["s"], "ä"])
@pytest.mark.parametrize("profile", Profile)
def test_a_session_id_is_one(session_id: Any, profile: Profile) -> None:
    assert refused(profile, sessionId=session_id).code == "invalid"


def test_a_path_of_the_clients_machine_is_replaced_without_a_word() -> None:
    for profile in (Profile.ISOLATED, Profile.SANDBOXED):
        assert "workingDirectory" not in kept(profile, workingDirectory="/home/me")
        assert sent(profile, workingDirectory="/home/me")["workingDirectory"] == "/workspace"
    assert sent(Profile.TRUSTED, workingDirectory="/home/me")["workingDirectory"] == "/home/me"


def test_options_are_forced_where_parameters_are() -> None:
    assert forced_options(Profile.ISOLATED) == dict(SAFE_OPTIONS)
    assert forced_options(Profile.SANDBOXED) is None
    assert forced_options(Profile.TRUSTED) is None


# --- tools ---


@pytest.mark.parametrize("profile", [Profile.ISOLATED, Profile.SANDBOXED])
def test_without_a_list_a_client_gets_what_it_may_have(profile: Profile) -> None:
    available = kept(profile)["availableTools"]
    built_in = ISOLATED_BUILT_IN if profile is Profile.ISOLATED else sorted([*ISOLATED_BUILT_IN, *HOST_BUILT_IN])
    assert available == [*built_in, "custom:*", "mcp:*"]


HOST_BUILT_IN = ["builtin:bash", "builtin:edit"]


@pytest.mark.parametrize("entry", ["bash", "builtin:bash", "builtin:*", "*", "BUILTIN:bash", " bash", "builtin:b*", ""])
def test_no_tool_of_the_host_is_for_isolated_clients(entry: str) -> None:
    assert repr(entry) in refused(availableTools=["ask_user", entry]).reason


def test_bare_names_get_their_source() -> None:
    servers = {"remote": REMOTE}
    wanted = ["look", "ask_user", "remote-search", "builtin:task", "mcp:a-b", "custom:x", "look"]
    assert kept(tools=[TOOL], mcpServers=servers, availableTools=wanted)["availableTools"] == [
        "custom:look", "builtin:ask_user", "mcp:remote-search", "builtin:task", "mcp:a-b", "custom:x",
    ]  # fmt: skip


def test_a_tool_of_the_client_with_the_name_of_one_of_the_hosts_stays_its_own() -> None:
    mine = {**TOOL, "name": "bash", "overridesBuiltInTool": True}
    assert kept(tools=[mine], availableTools=["bash"])["availableTools"] == ["custom:bash"]


def test_host_tools_are_named_by_the_operator_and_all_of_them_by_a_wildcard() -> None:
    assert kept(Profile.SANDBOXED, availableTools=["bash"])["availableTools"] == ["builtin:bash"]
    assert kept(Profile.SANDBOXED, availableTools=["builtin:*"])["availableTools"] == sorted(
        [*ISOLATED_BUILT_IN, *HOST_BUILT_IN]
    )
    assert "view" in refused(Profile.SANDBOXED, availableTools=["view"]).reason


def test_a_client_that_wants_no_tool_gets_none() -> None:
    assert sent(availableTools=[])["availableTools"] == [NO_TOOL]
    assert kept(availableTools=[NO_TOOL])["availableTools"] == [NO_TOOL]


@given(
    available=st.lists(
        st.sampled_from(["builtin:bash", "bash", "custom:x", "*", "builtin:*", "builtin:task"]) | st.text()
    ),
    offered=st.lists(st.sampled_from([*ISOLATED_TOOLS, "bash"])),
)
def test_tools_that_were_kept_are_held_against_the_policy_of_the_day(available: list[str], offered: list[str]) -> None:
    policy = ToolPolicy(isolated=offered, host=("bash",))
    found = runtime_open_params({"availableTools": available}, context(tools=policy))
    built_in = {entry for entry in found["availableTools"] if not entry.startswith(("custom:", "mcp:"))}
    assert built_in <= {f"builtin:{tool}" for tool in set(offered) & set(ISOLATED_TOOLS)}
    assert found["availableTools"]


# --- MCP servers and agents ---


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (LOCAL, "mcpServers.m"),
        ({"command": "sh"}, "mcpServers.m"),
        ({**REMOTE, "command": "sh"}, "mcpServers.m"),
        ({**REMOTE, "type": "local"}, "mcpServers.m"),
        ({"type": "http"}, "url"),
        ({**REMOTE, "url": "https://mcp.example/?t=$HOME"}, "url"),
        ({**REMOTE, "url": "https://mcp.example/?t=${COPILOT_HOME}"}, "url"),
        ({**REMOTE, "headers": {"X": "${HOME:-x}"}}, "headers.X"),
        ({**REMOTE, "headers": {"X": 5}}, "headers.X"),
        ({**REMOTE, "oidc": True}, "oidc"),
        ({**REMOTE, "auth": {"redirectPort": 80}}, "auth"),
        ({**REMOTE, "env": {"A": "b"}}, "env"),
        ({**REMOTE, "cwd": "/"}, "cwd"),
        ({**REMOTE, "isDefaultServer": True}, "isDefaultServer"),
        ("https://mcp.example", "mcpServers.m"),
    ],
    ids=str,
)  # fmt: skip
def test_mcp_servers_are_remote_ones_and_get_nothing_of_the_host(change: Any, named: str) -> None:
    assert named in refused(mcpServers={"m": change}).reason
    assert named in refused(customAgents=[{"name": "a", "prompt": "", "mcpServers": {"m": change}}]).reason


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "127.1", "2130706433", "0x7f.0.0.1", "0",
     "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::]", "[fe80::1]", "169.254.169.254", "[64:ff9b::7f00:1]",
     "[2002:7f00:1::]", "0177.0.0.1", "metadata.google.internal", "224.0.0.1", "168.63.129.16", "100.100.100.200",
     "[fd00:ec2::254]"],
)  # fmt: skip
def test_no_mcp_server_is_the_machine_that_runs_the_session(host: str) -> None:
    assert "leads to the machine" in refused(mcpServers={"m": {**REMOTE, "url": f"http://{host}:8080/mcp"}}).reason


@pytest.mark.parametrize(
    "host", ["mcp.example", "10.0.0.7", "[fd00::7]", "[2606:4700::1]", "a-b.example.", "192.168.1.5"]
)
def test_mcp_servers_may_be_anywhere_else(host: str) -> None:
    server = {**REMOTE, "url": f"https://{host}/mcp"}
    assert kept(mcpServers={"m": server})["mcpServers"] == {"m": server}


@pytest.mark.parametrize(
    "url",
    ["https://mcp.example@127.0.0.1/", "https://mcp.example\\@127.0.0.1/", "file:///etc/passwd", "https:///x", "//x",
     "", "https://mcp.example /", "https://mcp.example/\n", "https://[::1", "https://ä.example/", "HTTPS://mcp.example/"],
)  # fmt: skip
def test_an_address_is_one_that_everybody_reads_alike(url: str) -> None:
    assert refused(mcpServers={"m": {**REMOTE, "url": url}}).code == "invalid"


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_runtimes_own_servers_are_off_and_nobody_takes_their_names(name: str) -> None:
    assert name in refused(mcpServers={name: REMOTE}).reason
    assert name in refused(mcpServers={name.upper(): REMOTE}).reason.replace(name.upper(), name)
    for profile in (Profile.ISOLATED, Profile.SANDBOXED):
        assert name in sent(profile)["disabledMcpServers"]
        assert name in sent(profile, disabledMcpServers=["mine"])["disabledMcpServers"]


def test_a_server_without_a_type_is_said_to_be_remote() -> None:
    server = {"url": "https://mcp.example/mcp"}
    assert kept(mcpServers={"m": server})["mcpServers"] == {"m": {"type": "http", **server}}


@pytest.mark.parametrize("more", [{"hooks": {"sessionStart": [{"bash": "id"}]}}, {"skills": ["x"]}, {"nobodyKnows": 1}])
def test_agents_run_nothing_on_the_host(more: dict[str, Any]) -> None:
    agent = {"name": "a", "prompt": "p", **more}
    assert f"customAgents[0].{next(iter(more))}" in refused(customAgents=[agent]).reason
    assert kept(Profile.SANDBOXED, customAgents=[agent])["customAgents"] == [agent]


def test_a_user_alone_in_a_sandbox_may_run_things_there() -> None:
    mine = {"mcpServers": {"m": LOCAL}, "hookDirectories": ["/workspace/hooks"], "enableSkills": True}
    params = sent(Profile.SANDBOXED, **mine)
    assert {name: params[name] for name in mine} == mine
    for name in ("provider", "gitHubToken", "featureFlags", "enableSessionStore", "remoteSession"):
        assert f"`{name}`" in refused(Profile.SANDBOXED, **{name: "x"}).reason


# --- the system message ---


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ({"content": "Be brief."}, {"mode": "customize", "content": "Be brief.", "sections": {}}),
        ({"mode": "append", "content": "x"}, {"mode": "customize", "content": "x", "sections": {}}),
        ({"mode": "customize", "sections": {"tone": {"action": "remove"}}},
         {"mode": "customize", "sections": {"tone": {"action": "remove"}}}),
        ({"mode": "customize", "sections": {"environment_context": {"action": "transform"}}},
         {"mode": "customize", "sections": {}}),
        ({"mode": "append", "sections": {"environment_context": {"action": "preserve"}}},
         {"mode": "customize", "sections": {}}),
    ],
)  # fmt: skip
def test_nothing_is_said_of_the_hosts_environment(given: dict[str, Any], becomes: dict[str, Any]) -> None:
    becomes = copy.deepcopy(becomes)
    becomes["sections"]["environment_context"] = {"action": "remove"}
    assert sent(systemMessage=given)["systemMessage"] == becomes


def test_a_client_may_write_the_whole_message_or_describe_its_own_environment() -> None:
    whole = {"mode": "replace", "content": "You are a parrot."}
    assert sent(systemMessage=whole)["systemMessage"] == whole
    own = {"mode": "customize", "sections": {"environment_context": {"action": "replace", "content": "A ship."}}}
    assert sent(systemMessage=own)["systemMessage"] == own
    assert refused(systemMessage={"mode": "weird"}).code == "invalid"
    assert "systemMessage" not in sent(Profile.SANDBOXED)


# --- keys ---


@pytest.mark.parametrize("profile", [Profile.ISOLATED, Profile.SANDBOXED])
@pytest.mark.parametrize(
    "name", ["provider", "providers", "gitHubToken", "gitHubTokenProviderRegistrationId", "models"]
)
def test_a_client_needs_no_key(name: str, profile: Profile) -> None:
    assert "the host reaches models with its own keys" in refused(profile, **{name: ["sk-mine"]}).reason


@pytest.mark.parametrize("profile", Profile)
def test_trap_15_the_hosts_keys_are_in_every_open_and_never_kept(profile: Profile) -> None:
    remembered = kept(profile, **DEFAULT_MODE)
    assert "secret" not in json.dumps(remembered)
    for _ in range(2):
        params = runtime_open_params(remembered, context(profile))
        assert (params["provider"], params["gitHubToken"], params["model"]) == (
            CREDENTIALS.provider, CREDENTIALS.github_token, "gpt",
        )  # fmt: skip
        params["provider"]["apiKey"] = params["availableTools"] = None
    assert CREDENTIALS.provider == {"type": "openai", "apiKey": "sk-secret"}
    assert "secret" not in json.dumps(remembered)
    assert sent(profile, model="mine")["model"] == "mine"


def test_a_trusted_client_that_brings_keys_gets_none() -> None:
    params = sent(Profile.TRUSTED, provider={"type": "openai", "baseUrl": "http://127.0.0.1"}, featureFlags={"X": True})
    assert params["provider"] == {"type": "openai", "baseUrl": "http://127.0.0.1"}
    assert "gitHubToken" not in params
    assert params["featureFlags"] == {"X": True}
    assert params["enableSessionTelemetry"] is False


# --- whatever a client sends ---

ATOMS = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=6)
    | st.sampled_from(["builtin:bash", "builtin:*", "bash", "stdio", "http", "direct", "indirect", "replace", "$HOME",
                       "customize", "transform", "environment_context", "https://a.example/$HOME", "http://127.0.0.1/"])
)  # fmt: skip
NAMES = st.text(max_size=6) | st.sampled_from(
    ["command", "args", "type", "url", "headers", "hooks", "mcpServers", "mode", "sections", "environment_context",
     "action", "content", "outputDir", "name", "prompt", "tools", "apiKeyCommand", "oidc", "icon"]
)  # fmt: skip
JSON = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
AGENTS = st.lists(st.dictionaries(NAMES, JSON, max_size=4), max_size=2)
SERVERS = st.dictionaries(NAMES, st.dictionaries(NAMES, ATOMS | st.just({"X": "$A"}), max_size=4), max_size=2)
HOSTILE = st.dictionaries(st.sampled_from([*PARAMETERS, "nobodyKnows"]), JSON, max_size=6) | st.fixed_dictionaries(
    {},
    optional={
        "customAgents": AGENTS,
        "mcpServers": SERVERS,
        "availableTools": st.lists(ATOMS, max_size=4),
        "systemMessage": st.dictionaries(NAMES, JSON, max_size=3),
        "largeOutput": st.dictionaries(NAMES, ATOMS, max_size=3),
        "enableFileHooks": st.booleans(),
    },
)


def test_the_hostile_are_sometimes_let_in() -> None:
    """Else the properties below would hold of nothing."""
    assert kept(
        systemMessage={"mode": "customize"}, customAgents=[{"name": "a", "prompt": ""}], availableTools=["task"]
    )


@given(HOSTILE)
def test_whatever_an_isolated_client_sends_nothing_dangerous_reaches_the_runtime(params: dict[str, Any]) -> None:
    before = copy.deepcopy(params)
    found = keep(**params)
    assert params == before
    if isinstance(found, Refusal):
        assert found.reason
        assert found.code in ("forbidden", "invalid")
        return
    params = runtime_open_params(found, context())
    assert {name: params[name] for name in SAFE if name != "includeSubAgentStreamingEvents"} == {
        name: value for name, value in SAFE.items() if name != "includeSubAgentStreamingEvents"
    }
    may = {name for name in PARAMETERS if Profile.ISOLATED in PARAMETERS[name].shapes}
    assert set(params) <= may | set(SAFE) | {"provider", "gitHubToken", "workingDirectory"}
    assert params["workingDirectory"] == "/workspace"
    assert params["provider"] == CREDENTIALS.provider
    built_in = {entry for entry in params["availableTools"] if not entry.startswith(("custom:", "mcp:"))}
    assert built_in <= set(ISOLATED_BUILT_IN)
    assert params["availableTools"]
    agents = params.get("customAgents", [])
    for server in [*servers_of(params), *(server for agent in agents for server in servers_of(agent))]:
        assert server["type"] in ("http", "sse")
        assert "command" not in server
        assert "$" not in json.dumps([server.get("url"), server.get("headers")])
    assert not any({"hooks", "skills"} & set(agent) for agent in agents)
    message = params["systemMessage"]
    assert message.get("mode") == "replace" or message["sections"]["environment_context"]["action"] in (
        "remove",
        "replace",
    )
    assert "outputDir" not in params.get("largeOutput", {})


def servers_of(holder: dict[str, Any]) -> list[dict[str, Any]]:
    return list(holder.get("mcpServers", {}).values())


@given(HOSTILE, st.sampled_from(Profile), st.booleans())
def test_what_was_kept_is_kept_unchanged(params: dict[str, Any], profile: Profile, resume: bool) -> None:
    found = keep(profile, resume=resume, **params)
    if not isinstance(found, Refusal):
        assert keep(profile, resume=resume, **found) == found


@given(st.dictionaries(st.sampled_from([*PARAMETERS, "nobodyKnows"]), JSON, max_size=8))
def test_forced_values_win_over_whatever_was_kept(remembered: dict[str, Any]) -> None:
    remembered = {**remembered, "availableTools": ["builtin:bash"], "excludedTools": [], "disabledMcpServers": []}
    params = runtime_open_params(remembered, context())
    for name in set(SAFE) - {"includeSubAgentStreamingEvents"}:
        assert params[name] == SAFE[name]
    assert params["availableTools"] == [NO_TOOL]
    assert not {"provider", "gitHubToken"} & set(remembered) or params["provider"] == CREDENTIALS.provider
    assert not {"providers", "hookDirectories", "nobodyKnows", "configDir"} & set(params)
