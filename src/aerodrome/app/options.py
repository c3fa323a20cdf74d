"""What each part is started with, from the settings."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

from aerodrome.app.observe import runtime_env
from aerodrome.config.provider_settings import ProviderSettings, reveal
from aerodrome.config.recycle_settings import RecycleSettings
from aerodrome.config.settings import Settings
from aerodrome.config.types import Address
from aerodrome.fairness.line import Ceilings
from aerodrome.gateway.limits import GatewayLimits
from aerodrome.gateway.server import GatewayOptions
from aerodrome.http.limits import HttpLimits
from aerodrome.policy.session_params import Credentials, ToolPolicy
from aerodrome.runtime.attached.entry import AttachEntry
from aerodrome.runtime.attached.places import AttachedPoolOptions
from aerodrome.runtime.attached.roster import DEFAULT_TOKEN
from aerodrome.runtime.attached.runtime import AttachedOptions
from aerodrome.runtime.pool import PoolOptions
from aerodrome.runtime.recycler import RecycleOptions
from aerodrome.runtime.supervisor import RuntimeOptions
from aerodrome.runtime.wear import WearLimits
from aerodrome.sessions.context import SessionOptions


def pool_options(settings: Settings, command: Path, homes: Path) -> PoolOptions:
    runtime = settings.runtime
    return PoolOptions(
        runtime=RuntimeOptions(
            command=command,
            homes=homes,
            logs=settings.server.data_dir / "logs",
            env={**provider_env(settings), **runtime.env},
            env_at_start=lambda: runtime_env(settings.telemetry),
            start_timeout=runtime.start_timeout,
            ping_interval=runtime.ping_interval,
            ping_timeout=runtime.ping_timeout,
            stop_timeout=runtime.stop_timeout,
            max_frame=settings.limits.max_frame,
            log_bytes=runtime.log_bytes,
        ),
        warm=runtime.warm,
        max_warm=min(runtime.most_warm, runtime.max_runtimes),
        memory_reserve=runtime.memory_reserve,
        max_runtimes=runtime.max_runtimes,
        # By default there is room for somebody else also when all users of one tenant are at work (isolation `user`).
        max_runtimes_per_tenant=settings.limits.max_runtimes_per_tenant or math.ceil(runtime.max_runtimes * 3 / 4),
        max_sessions=runtime.max_sessions,
        spawn_concurrency=runtime.spawn_concurrency,
        capacity_timeout=runtime.capacity_timeout,
        idle_timeout=runtime.idle_timeout,
        placement=runtime.placement,
        max_waiting_per_tenant=settings.limits.max_waiting_per_tenant,
        max_waiting_per_user=settings.limits.max_waiting_per_user,
        weight=settings.limits.weight_of,
        recycle=recycle_options(runtime.recycle),
    )


def recycle_options(recycle: RecycleSettings) -> RecycleOptions:
    return RecycleOptions(
        limits=WearLimits(
            turns=recycle.turns,
            age=recycle.age,
            memory=recycle.memory,
            descriptors=recycle.descriptors,
            children=recycle.children,
            drift=recycle.drift,
        ),
        interval=recycle.interval,
        at_once=recycle.at_once,
        patience=recycle.patience,
    )


def attached_options(settings: Settings) -> AttachedPoolOptions:
    runtime = settings.runtime
    return AttachedPoolOptions(
        server=AttachedOptions(
            ping_interval=runtime.ping_interval,
            ping_timeout=runtime.ping_timeout,
            max_frame=settings.limits.max_frame,
            allow_version_mismatch=runtime.allow_version_mismatch,
        ),
        max_sessions=runtime.max_sessions,
        capacity_timeout=runtime.capacity_timeout,
        max_waiting_per_tenant=settings.limits.max_waiting_per_tenant,
        max_waiting_per_user=settings.limits.max_waiting_per_user,
        refresh=runtime.attach_refresh,
        drain_timeout=settings.server.drain_timeout,
        placement=runtime.placement,
    )


def attach_tokens(settings: Settings) -> dict[str, str]:
    return {name: secret.get_secret_value() for name, secret in settings.runtime.attach_tokens.items()}


def attach_entries(settings: Settings) -> list[AttachEntry]:
    default = attach_tokens(settings).get(DEFAULT_TOKEN, "")
    return [
        AttachEntry(
            *server.address,
            token=server.token.get_secret_value() if server.token is not None else default,
            weight=server.weight,
            tenant=server.tenant,
            max_sessions=server.max_sessions,
            workspace=server.workspace,
        )
        for server in settings.runtime.attach
    ]


def turn_ceilings(settings: Settings) -> Ceilings:
    """On the turns of one node. A user or tenant with limits over all nodes cannot have more than those in one."""
    limits = settings.limits
    per_tenant = limits.max_turns_per_tenant or max(1, limits.max_turns // 5)
    return Ceilings(limits.max_turns, per_tenant, limits.max_turns_per_user)


def patience(settings: Settings) -> float:
    """Seconds to look for the node that runs a session: until a dead one's leases are free, and some more."""
    return settings.coordination.ttl + 5.0


def peer_silence(settings: Settings) -> float:
    """Seconds in which a connection to another node may bring nothing: as long as its heartbeats may stay away."""
    return settings.coordination.ttl


def advertised(host: str, port: int) -> Address:
    """Where other nodes find a gateway that listens there: at this machine's own name, if it listens everywhere."""
    return Address(socket.getfqdn() if host in ("0.0.0.0", "::") else host, port)  # noqa: S104 - compared, not bound


def gateway_options(settings: Settings, cli_version: str) -> GatewayOptions:
    limits = settings.limits
    return GatewayOptions(
        cli_version=cli_version,
        isolation_of=settings.isolation.of,
        profile_of=settings.policy.of,
        credentials_of=lambda tenant: credentials_of(settings.provider.of(tenant)),
        tools=ToolPolicy(isolated=settings.policy.tools, host=settings.policy.host_tools),
        peer_silence=peer_silence(settings),
        patience=patience(settings),
        limits=GatewayLimits(
            max_clients=limits.max_clients,
            max_clients_per_user=limits.max_clients_per_user,
            max_frame=limits.max_frame,
            max_requests=limits.max_requests,
            connect_timeout=limits.client_timeout,
            write_timeout=limits.client_timeout,
            client_buffer=limits.client_buffer,
            request_bytes=limits.client_buffer,
        ),
    )


def session_options(settings: Settings) -> SessionOptions:
    sessions = settings.sessions
    return SessionOptions(
        idle_timeout=sessions.idle_timeout,
        ttl=sessions.ttl,
        on_busy=sessions.on_busy,
        cancel_on_disconnect=sessions.on_disconnect == "cancel",
        request_timeout=sessions.request_timeout,
        max_queued=sessions.max_queued,
        turn_timeout=sessions.turn_timeout,
        large_history=sessions.large_history,
        max_history=sessions.max_history,
        max_prompt=settings.limits.max_prompt,
        reader_bytes=settings.limits.sse_buffer,
        default_isolation=settings.isolation.default,
        isolation=dict(settings.isolation.tenants),
        tools=ToolPolicy(isolated=settings.policy.tools, host=settings.policy.host_tools),
    )


def http_limits(settings: Settings) -> HttpLimits:
    limits = settings.limits
    return HttpLimits(
        max_body=limits.max_body,
        max_incoming=max(256 << 20, 4 * limits.max_body),
        max_readers=limits.max_readers,
        max_readers_per_user=limits.max_readers_per_user,
    )


def credentials_of(provider: ProviderSettings) -> Credentials:
    """What a session of this provider is created and resumed with. The wire's names are the SDK's."""
    if provider.type == "github":
        return Credentials(github_token=reveal(provider.github_token), model=provider.model)
    wire: dict[str, Any] = {"type": provider.type, "baseUrl": provider.base_url}
    if provider.api_key is not None:
        wire["apiKey"] = reveal(provider.api_key)
    if provider.wire_api is not None:
        wire["wireApi"] = provider.wire_api
    if provider.azure_api_version is not None:
        wire["azure"] = {"apiVersion": provider.azure_api_version}
    return Credentials(provider=wire, model=provider.model)


def provider_env(settings: Settings) -> dict[str, str]:
    """Runtimes of a host without GitHub models stay off the network but for the sessions' own providers."""
    providers = [settings.provider, *settings.provider.tenants.values()]
    if any(provider.type == "github" for provider in providers):
        return {}
    return {
        "COPILOT_OFFLINE": "true",
        # Offline mode refuses to start without a provider of its own (docs/facts.md, "Starting"). Sessions bring
        # theirs, so this one leads nowhere on purpose.
        "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:9/v1",
        "COPILOT_MODEL": settings.provider.model or "gpt-4.1",
    }
