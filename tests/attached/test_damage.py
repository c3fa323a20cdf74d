"""What servers that die, hang or are used behind our back leave in the files of sessions, with the real ones."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.policy.session_params import Credentials, session_params
from aerodrome.runtime.attached.runtime import AttachedRuntime
from aerodrome.runtime.control import ControlLink
from aerodrome.runtime.ports import connected
from support.attached import TOKEN, Server, Servers, attached_host, of_acme
from support.host import Host, until

pytestmark = pytest.mark.cli


def events_of(volume: Path, session: str = "s1") -> Path:
    return volume / "acme" / session / "events.jsonl"


def locks(volume: Path, session: str = "s1") -> list[str]:
    return sorted(path.name for path in (volume / "acme" / session).glob("inuse.*"))


async def all_connected(host: Host, count: int) -> None:
    await until(lambda: len(host.node.attached.runtimes) == count, 60)


async def put_to_sleep(host: Host) -> None:
    assert host.node.attached.move_sessions is not None
    assert await host.node.attached.move_sessions(host.node.attached.runtimes[0], False)


def serving(host: Host, servers: list[Server], session: str = "s1") -> Server:
    (live,) = [live for live in host.node.sessions.live if live.row.key.id == session]
    assert live.activation is not None
    runtime = live.activation.runtime
    assert isinstance(runtime, AttachedRuntime)
    port = runtime.address[1]
    return next(server for server in servers if server.port == port)


@pytest.mark.parametrize("torn", [1, 40, 700])
async def test_a_kill_while_it_writes_loses_the_torn_event_and_no_other(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer, torn: int
) -> None:
    both = [await servers.start(), await servers.start()]
    async with attached_host(tmp_path / "d", model, volume, [of_acme(server) for server in both]) as acme:
        await all_connected(acme, 2)
        alice = await acme.user()
        await alice.open("s1")
        await alice.say("s1", "My name is Ada")
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] two"))
        await model.gate_reached("held")
        # What is torn is of this turn: the end of the one before it may come late.
        await until(lambda: b"[[gate: held]] two" in events_of(volume).read_bytes())
        killed = serving(acme, both)
        killed.kill()
        assert locks(volume) == [f"inuse.{killed.process.pid}.hold", f"inuse.{killed.process.pid}.lock"]
        # A write that was under way is cut somewhere; the kernel does it at a page.
        whole = events_of(volume).read_bytes()
        events_of(volume).write_bytes(whole[:-torn])
        model.open_gate("held")
        assert (await turn)["turn"]["status"] == "completed"
        assert not [name for name in locks(volume) if str(killed.process.pid) in name]
        assert serving(acme, both) is not killed
        prompts = ["My name is Ada", "[[gate: held]] two"]
        assert await alice.prompts_seen("s1") == prompts
        assert [said for role, said in await alice.history("s1") if role == "user"][:2] == prompts
        for line in events_of(volume).read_bytes().splitlines():
            assert json.loads(line)["type"]
        assert locks(volume) == [f"inuse.{serving(acme, both).process.pid}.{kind}" for kind in ("hold", "lock")]


async def test_a_lock_that_nobody_holds_is_removed_whatever_process_has_its_number(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    server = await servers.start()
    async with attached_host(tmp_path / "d", model, volume, [of_acme(server)]) as acme:
        await all_connected(acme, 1)
        alice = await acme.user()
        await alice.open("s1")
        await alice.say("s1", "one")
        await put_to_sleep(acme)
        # Of a server in another container, say, whose number is that of a living process here.
        for kind in ("lock", "hold"):
            (volume / "acme" / "s1" / f"inuse.{os.getpid()}.{kind}").write_text(str(os.getpid()))
        assert await alice.prompts_seen("s1") == ["one"]
        assert locks(volume) == [f"inuse.{server.process.pid}.{kind}" for kind in ("hold", "lock")]


async def test_whoever_uses_a_session_without_a_lease_is_noticed(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    server, foreign = await servers.start(), await servers.start()
    async with attached_host(tmp_path / "d", model, volume, [of_acme(server)]) as acme:
        await all_connected(acme, 1)
        alice = await acme.user()
        await alice.open("s1")
        await alice.say("s1", "one")
        await put_to_sleep(acme)
        link = ControlLink(lambda reason: None, 30.0)
        await link.open(lambda: connected("127.0.0.1", foreign.port), TOKEN, "/tmp", serve_files=False)
        try:
            params = session_params(
                "s1",
                model="gpt-4.1",
                system_message=None,
                tools=[],
                working_directory="/tmp",
                streaming=False,
                credentials=Credentials(provider={"type": "openai", "baseUrl": model.base_url, "apiKey": "k"}),
            )
            await link.request("session.resume", params)
            await link.request("session.send", {"sessionId": "s1", "prompt": "behind your back"})
            await until(lambda: f"inuse.{foreign.process.pid}.hold" in locks(volume))
            async with alice.events("s1") as events:
                await alice.say("s1", "two")
                async for event in events:
                    if event["event"] == "aerodrome.session_in_use":
                        break
            assert event["data"]["data"] == {"pids": [foreign.process.pid]}
        finally:
            await link.aclose()
        assert foreign.alive
