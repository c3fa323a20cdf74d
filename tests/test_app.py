"""What the composition root makes of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aerodrome.app.options import credentials_of, pool_options, session_options
from aerodrome.config import Settings
from aerodrome.policy.session_params import session_params


def settings_of(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


def params_of(settings: Settings, tenant: str = "acme") -> dict[str, Any]:
    """What a session of this tenant is created and resumed with."""
    return session_params(
        "s1",
        model=None,
        system_message=None,
        tools=(),
        working_directory="/w",
        streaming=True,
        credentials=credentials_of(settings.provider.of(tenant)),
    )


def test_a_github_token_is_injected() -> None:
    params = params_of(settings_of(provider={"type": "github", "github_token": "ghu_secret", "model": "gpt-5"}))
    assert params["gitHubToken"] == "ghu_secret"
    assert params["model"] == "gpt-5"
    assert "provider" not in params


@pytest.mark.parametrize("kind", ["openai", "azure", "anthropic"])
def test_a_provider_with_its_key_is_injected(kind: str) -> None:
    provider = {"type": kind, "base_url": "https://models.example/v1", "api_key": "sk-1", "model": "m"}
    params = params_of(settings_of(provider=provider))
    assert params["provider"] == {"type": kind, "baseUrl": "https://models.example/v1", "apiKey": "sk-1"}
    assert "gitHubToken" not in params


def test_a_tenants_provider_stands_alone() -> None:
    common = {"type": "openai", "base_url": "https://common.example/v1", "api_key": "common-key", "model": "m"}
    own = {"type": "openai", "base_url": "https://acme.example/v1", "model": "own"}
    settings = settings_of(provider={**common, "tenants": {"acme": own}})
    assert params_of(settings)["provider"] == {"type": "openai", "baseUrl": "https://acme.example/v1"}
    assert params_of(settings, "bank")["provider"]["apiKey"] == "common-key"


def test_runtimes_get_no_credentials_and_stay_offline_without_github() -> None:
    provider = {"type": "openai", "base_url": "https://models.example/v1", "api_key": "sk-1", "model": "m"}
    env = pool_options(settings_of(provider=provider), Path("/c"), Path("/h")).runtime.env
    assert env["COPILOT_OFFLINE"] == "true"
    assert "sk-1" not in str(env)
    assert "models.example" not in str(env)
    github = settings_of(provider={**provider, "tenants": {"acme": {"type": "github"}}})
    assert "COPILOT_OFFLINE" not in pool_options(github, Path("/c"), Path("/h")).runtime.env


def test_every_setting_of_the_runtime_and_session_sections_reaches_its_part() -> None:
    """Set everything to something else than the default, and see that the options differ in as many places."""
    changed = settings_of(
        runtime={
            "warm": 3,
            "max_warm": 8,
            "memory_reserve": "18 MiB",
            "recycle": {
                "turns": 31,
                "age": "32s",
                "memory": "33 MiB",
                "descriptors": 34,
                "children": 35,
                "drift": 36,
                "interval": "37s",
                "at_once": 38,
                "patience": "39s",
            },
            "max_runtimes": 9,
            "max_sessions": 7,
            "spawn_concurrency": 5,
            "start_timeout": "11s",
            "ping_interval": "12s",
            "ping_timeout": "13s",
            "stop_timeout": "14s",
            "idle_timeout": "15s",
            "capacity_timeout": "16s",
            "log_bytes": "17 KiB",
            "env": {"A": "b"},
        },
        sessions={
            "idle_timeout": "21s",
            "ttl": "22h",
            "on_busy": "reject",
            "on_disconnect": "cancel",
            "request_timeout": "23s",
            "max_queued": 24,
            "turn_timeout": "25s",
            "large_history": "26 KiB",
            "max_history": "27 KiB",
        },
        limits={"max_prompt": "1 MiB", "sse_buffer": "2 MiB", "max_frame": "33 MiB"},
    )
    pool = pool_options(changed, Path("/c"), Path("/h"))
    assert (pool.max_warm, pool.memory_reserve) == (8, 18 << 20)
    recycle, limits = pool.recycle, pool.recycle.limits
    assert (limits.turns, limits.age, limits.memory, limits.descriptors) == (31, 32, 33 << 20, 34)
    assert (limits.children, limits.drift) == (35, 36)
    assert (recycle.interval, recycle.at_once, recycle.patience) == (37, 38, 39)
    assert (pool.warm, pool.max_runtimes, pool.max_sessions, pool.spawn_concurrency) == (3, 9, 7, 5)
    assert (pool.idle_timeout, pool.capacity_timeout) == (15, 16)
    runtime = pool.runtime
    assert (runtime.start_timeout, runtime.ping_interval, runtime.ping_timeout, runtime.stop_timeout) == (
        11,
        12,
        13,
        14,
    )
    assert (runtime.log_bytes, runtime.max_frame, runtime.env["A"]) == (17 << 10, 33 << 20, "b")
    sessions = session_options(changed)
    assert (sessions.idle_timeout, sessions.ttl, sessions.request_timeout) == (21, 22 * 3600, 23)
    assert (sessions.on_busy, sessions.cancel_on_disconnect) == ("reject", True)
    assert (sessions.max_queued, sessions.turn_timeout) == (24, 25)
    assert (sessions.large_history, sessions.max_history) == (26 << 10, 27 << 10)
    assert (sessions.max_prompt, sessions.reader_bytes) == (1 << 20, 2 << 20)


def test_a_tenant_leaves_runtimes_to_others_unless_told_otherwise() -> None:
    def most(runtimes: int, **limits: int) -> int | None:
        settings = settings_of(runtime={"max_runtimes": runtimes, "warm": 1}, limits=limits)
        return pool_options(settings, Path("/c"), Path("/h")).max_runtimes_per_tenant

    assert [most(runtimes) for runtimes in (1, 2, 3, 4, 32)] == [1, 2, 3, 3, 24]
    assert most(32, max_runtimes_per_tenant=5) == 5


def test_the_most_warm_runtimes_follow_the_least() -> None:
    def most(**runtime: int) -> int:
        return pool_options(settings_of(runtime=runtime), Path("/c"), Path("/h")).max_warm

    assert [most(), most(warm=0), most(warm=6), most(warm=2, max_runtimes=3)] == [4, 0, 6, 3]
    assert most(warm=0, max_warm=2) == 2
    with pytest.raises(ValidationError, match=r"expected at least runtime\.warm"):
        settings_of(runtime={"warm": 3, "max_warm": 2})
