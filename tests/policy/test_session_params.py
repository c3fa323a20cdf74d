from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.model import ISOLATED_TOOLS, Isolation
from aerodrome.policy.session_params import SAFE, SAFE_OPTIONS, Credentials, ToolPolicy, session_params
from support import sdk

HOST_TOOLS = ("bash", "view", "edit", "web_fetch")
TOOLS = st.lists(
    st.sampled_from([*ISOLATED_TOOLS, *HOST_TOOLS, "*", "builtin:*", "", "mcp:x"]) | st.text(), max_size=12
)
POLICIES = st.builds(ToolPolicy, isolated=TOOLS, host=TOOLS)

#: What leads to the host's commands, files or identities (docs/facts.md, "Isolation").
DANGEROUS = {
    "mcpServers", "customAgents", "providers", "hookDirectories", "pluginDirectories", "extensionSdkPath",
    "requestExtensions", "extensionInfo", "configDir", "additionalDirectories", "skillDirectories", "largeOutput",
    "trustWorkingDirectory", "githubMcpToolConfig", "authClientIdMetadataUrl", "remoteSession", "cloud",
    "sandboxConfig", "managedSettings", "featureFlags", "expAssignments",
}  # fmt: skip


def params(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": None,
        "system_message": None,
        "tools": ["ask_user"],
        "working_directory": "/workspace",
        "streaming": True,
        "credentials": Credentials(),
    }
    return session_params("s1", **{**values, **changes})


# --- the parameters ---


@given(
    model=st.none() | st.text(),
    system_message=st.none() | st.text(),
    tools=TOOLS,
    streaming=st.booleans(),
    provider=st.none() | st.dictionaries(st.text(), st.text()),
    token=st.none() | st.text(),
)
def test_nothing_a_caller_chooses_changes_what_is_safe(
    model: str | None,
    system_message: str | None,
    tools: list[str],
    streaming: bool,
    provider: dict[str, str] | None,
    token: str | None,
) -> None:
    credentials = Credentials(provider=provider, github_token=token)
    built = params(
        model=model, system_message=system_message, tools=tools, streaming=streaming, credentials=credentials
    )
    assert {name: built[name] for name in SAFE} == dict(SAFE)
    assert not DANGEROUS & set(built)
    assert built["workingDirectory"] == "/workspace"
    assert built["systemMessage"]["sections"] == {"environment_context": {"action": "remove"}}
    assert built["requestPermission"] is True
    assert set(built["availableTools"]) == {f"builtin:{tool}" for tool in tools}


OPENED: dict[str, Any] = {
    "available_tools": ["builtin:ask_user"],
    "on_permission_request": lambda *_: None,
    "on_user_input_request": lambda *_: None,
    "working_directory": "/workspace",
    "streaming": True,
    "client_name": "aerodrome",
}


async def test_it_is_what_the_sdk_forces_in_its_empty_mode() -> None:
    """The SDK does so on the client's side, where a tenant could leave it out."""
    create, update = await sdk.payloads("empty", **OPENED)
    ours = params()
    theirs_alone = {"sessionId"}
    for name, value in create.items():
        if name not in theirs_alone:
            assert ours[name] == value, name
    assert set(create) - theirs_alone >= set(SAFE) - {"enableConfigDiscovery"}
    for name, value in update.items():
        if name not in theirs_alone:
            assert SAFE_OPTIONS[name] == value, name


def test_who_changes_the_parameters_of_one_session_changes_no_other() -> None:
    provider = {"type": "azure", "azure": {"apiVersion": "1"}}
    first = params(credentials=Credentials(provider=provider))
    first["memory"]["enabled"] = True
    first["provider"]["azure"]["apiVersion"] = "2"
    second = params(credentials=Credentials(provider=provider))
    assert second["memory"] == {"enabled": False}
    assert second["provider"]["azure"] == {"apiVersion": "1"}


def test_a_session_without_tools_has_none() -> None:
    """The runtime takes an empty list for no list (measured)."""
    built = params(tools=[])
    assert (built["availableTools"], built["excludedTools"]) == ([], ["builtin:*", "mcp:*"])
    assert built["requestUserInput"] is False
    assert params()["excludedTools"] == []
    assert params()["requestUserInput"] is True


def test_the_callers_text_stands_behind_the_runtimes_own() -> None:
    assert params(system_message="Speak Latin.")["systemMessage"]["content"] == "Speak Latin."
    assert "content" not in params(system_message="")["systemMessage"]


@pytest.mark.parametrize(
    ("wanted", "default", "expected"),
    [(None, None, None), (None, "m1", "m1"), ("m2", "m1", "m2"), ("m2", None, "m2")],
)
def test_the_model_is_the_callers_or_the_default(wanted: str | None, default: str | None, expected: str | None) -> None:
    assert params(model=wanted, credentials=Credentials(model=default)).get("model") == expected


# --- credentials ---


def test_trap_15_credentials_are_in_the_parameters_of_create_and_resume_alike() -> None:
    provider = {"type": "openai", "baseUrl": "http://model", "apiKey": "sk-secret"}
    assert params(credentials=Credentials(provider=provider))["provider"] == provider
    assert params(credentials=Credentials(github_token="gho_secret"))["gitHubToken"] == "gho_secret"
    assert not {"provider", "gitHubToken"} & set(params())


def test_credentials_are_not_shown() -> None:
    credentials = Credentials(provider={"apiKey": "sk-secret"}, github_token="gho_secret", model="gpt")
    for shown in (repr(credentials), str(credentials), f"{credentials}"):
        assert "secret" not in shown
        assert "gpt" in shown


# --- tools ---


@given(policy=POLICIES, isolation=st.sampled_from(Isolation), wanted=st.none() | TOOLS)
def test_a_session_has_what_it_asked_for_and_may_have(
    policy: ToolPolicy, isolation: Isolation, wanted: list[str] | None
) -> None:
    allowed = policy.allowed(isolation)
    chosen = policy.choose(isolation, wanted)
    assert set(chosen) <= allowed
    assert len(chosen) == len(set(chosen))
    if wanted is None:
        assert set(chosen) <= set(ISOLATED_TOOLS)
    else:
        assert set(chosen) == allowed & set(wanted)
        refused = policy.refused(isolation, wanted)
        assert set(refused) == set(wanted) - allowed
        assert not set(refused) & set(chosen)


@given(policy=POLICIES, wanted=st.none() | TOOLS)
def test_no_policy_gives_a_tool_of_the_host_to_users_who_share_a_runtime(
    policy: ToolPolicy, wanted: list[str] | None
) -> None:
    assert set(policy.choose(Isolation.TENANT, wanted)) <= set(ISOLATED_TOOLS)


def test_host_tools_are_for_who_asks_and_has_a_runtime_of_their_own() -> None:
    policy = ToolPolicy(host=("bash",))
    assert policy.choose(Isolation.USER, ["bash", "ask_user", "edit"]) == ["ask_user", "bash"]
    assert policy.refused(Isolation.USER, ["bash", "edit", "view"]) == ["edit", "view"]
    assert policy.choose(Isolation.TENANT, ["bash", "ask_user"]) == ["ask_user"]
    assert policy.refused(Isolation.TENANT, ["bash", "ask_user"]) == ["bash"]
    assert "bash" not in policy.choose(Isolation.USER, None)


def test_an_operator_may_offer_less_and_not_more() -> None:
    assert ToolPolicy(isolated=["ask_user", "bash"]).choose(Isolation.TENANT, None) == ["ask_user"]
    assert ToolPolicy().choose(Isolation.TENANT, None) == sorted(ISOLATED_TOOLS)
    assert ToolPolicy(isolated=[]).choose(Isolation.TENANT, None) == []
