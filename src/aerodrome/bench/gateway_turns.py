"""Official SDKs through the gateway, against the same SDKs connected straight to a CLI.

The gateway costs time of its own, and saves more: over TCP the SDKs and the CLI wait for each other's delayed ACKs
(docs/facts.md, "Wire"), and with the gateway between them they do not. Over stdio nobody waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aerodrome.bench import node_sdk, sdk
from aerodrome.bench.lab import Lab
from aerodrome.bench.report import Row, compare, skipped
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale
from aerodrome.bench.sdk import Endpoint, SdkSession
from aerodrome.errors import Invalid

PROMPT = "Say hello."
_NAME = "gateway-turn"
_WARM_UP = 5
_TARGET_TCP = 0.6
_TARGET_STDIO = 1.1
_TARGET_NODE = 1.0


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    async with lab.node(runtime={"warm": 0}) as node, lab.bare_cli() as cli:
        gateway, direct = await Endpoint.of_node(lab, node), Endpoint.of_cli(lab, cli)
        rows = await _python(lab, gateway, direct, scale, lambda done: progress(done * 0.6))
        try:
            rows += await _node(gateway, direct, scale, lambda done: progress(0.6 + done * 0.4))
        except Invalid as error:
            rows += [skipped(_NAME, f"{what}, Node SDK: gateway / TCP", error.detail) for what in ("create", "turn")]
    return rows


async def _python(
    lab: Lab, gateway: Endpoint, direct: Endpoint, scale: Scale, progress: Callable[[float], None]
) -> list[Row]:
    async with (
        sdk.connected(gateway, lab.new_directory("sdk")) as through,
        sdk.connected(direct, lab.new_directory("sdk")) as tcp,
        sdk.over_stdio(lab) as stdio,
    ):
        clients = {"gateway": through, "sdk_tcp": tcp, "sdk_stdio": stdio}
        contenders: dict[str, Callable[[], Awaitable[object]]] = {}
        for name, client in clients.items():
            contenders |= {f"{name}_{what}": call for what, call in _calls(client).items()}

        async def prepare() -> None:
            for client in clients.values():
                await client.forget()

        times = await interleave(
            contenders,
            scale.native_turns,
            warm_up=min(_WARM_UP, scale.native_turns),
            prepare=prepare,
            progress=progress,
        )
    tcp_rows = [
        compare(
            _NAME,
            f"{what}, Python SDK: gateway / TCP",
            (f"gateway_{what}", f"sdk_tcp_{what}"),
            times,
            target=_TARGET_TCP,
        )
        for what in ("ping", "create", "turn")
    ]
    stdio_rows = [
        compare(
            _NAME,
            f"{what}, Python SDK: gateway / stdio",
            (f"gateway_{what}", f"sdk_stdio_{what}"),
            times,
            target=_TARGET_STDIO if what == "turn" else None,
        )
        for what in ("create", "turn")
    ]
    return tcp_rows + stdio_rows


def _calls(client: SdkSession) -> dict[str, Callable[[], Awaitable[object]]]:
    return {"ping": client.ping, "create": client.create, "turn": lambda: client.turn(PROMPT)}


async def _node(gateway: Endpoint, direct: Endpoint, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    """Raises `Invalid` when there is no Node SDK."""
    async with node_sdk.clients() as clients:
        await clients.open("gateway", gateway)
        await clients.open("tcp", direct)

        async def prepare() -> None:
            for name in ("gateway", "tcp"):
                await clients.forget(name)

        times = await interleave(
            {
                "gateway_create": lambda: clients.create("gateway"),
                "node_tcp_create": lambda: clients.create("tcp"),
                "gateway_turn": lambda: clients.turn("gateway", PROMPT),
                "node_tcp_turn": lambda: clients.turn("tcp", PROMPT),
            },
            scale.native_turns,
            warm_up=min(_WARM_UP, scale.native_turns),
            prepare=prepare,
            progress=progress,
        )
    return [
        compare(
            _NAME,
            f"{what}, Node SDK: gateway / TCP",
            (f"gateway_{what}", f"node_tcp_{what}"),
            times,
            target=_TARGET_NODE,
        )
        for what in ("create", "turn")
    ]
