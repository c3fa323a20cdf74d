"""`aerodrome serve` killed, restarted, stopped, and running twice on one store: with real processes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.cli import has_ended
from support.server import aerodrome, new_key, serve, user_of, write_config
from support.waiting import until

pytestmark = pytest.mark.cli


async def test_kill_9_and_restart(tmp_path: Path, model: ModelServer) -> None:
    """All sessions are there, no process is left behind, and a half-done turn is reported."""
    config = write_config(tmp_path, model.base_url, ttl="4s")
    key = await new_key(config)
    async with serve(config) as server, user_of(server, key) as alice:
        await alice.open("s1", title="Kept")
        await alice.say("s1", "one", key="k-one")
        half_done = asyncio.create_task(alice.say("s1", "[[gate: held]] two", key="k-two"))
        await model.gate_reached("held")
        runtimes = server.runtimes()
        assert runtimes
        server.send_signal(signal.SIGKILL)
        await server.process.wait()
        await asyncio.wait({half_done})
        assert half_done.exception() is not None
    await until(lambda: all(map(has_ended, runtimes)))

    model.open_gate("held")
    async with serve(config) as server, user_of(server, key) as alice:
        async with asyncio.timeout(60):
            # That the node before has gone is certain when its time to live is over.
            while (session := (await alice.http.get("/sessions/s1")).json())["state"] != "hibernated" or (
                session["last_turn"]["status"] != "interrupted"
            ):
                await asyncio.sleep(0.05)
        assert session["title"] == "Kept"
        reported = await alice.say("s1", "[[gate: held]] two", key="k-two", expect=503)
        assert reported["code"] == "turn_interrupted"
        assert (await alice.say("s1", "one", key="k-one"))["message"]["content"] == "echo: one"
        assert await alice.prompts_seen("s1") == ["one"]
        homes = list((tmp_path / "data" / "runtimes").glob("node-*"))
        assert len(homes) == 1, "the dead node's runtime homes are cleared"


async def test_sigterm_finishes_turns_and_exits_0(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, ttl="15s")
    key = await new_key(config)
    async with serve(config) as server, user_of(server, key) as alice:
        await alice.open("s1")
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] [[say: finished]]"))
        await model.gate_reached("held")
        runtimes = server.runtimes()
        server.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            while "draining" not in server.log.read_text():
                await asyncio.sleep(0.02)
        assert not turn.done()
        model.open_gate("held")
        assert (await turn)["message"]["content"] == "finished"
        assert await server.process.wait() == 0
    assert all(map(has_ended, runtimes))


async def test_a_node_is_drained_from_the_command_line(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, ttl="15s")
    key = await new_key(config)
    async with serve(config) as server, user_of(server, key) as alice:
        (node,) = await aerodrome("nodes", "ls", "--config", str(config), "--json")
        assert not node["draining"]
        assert node["age"] < 60
        await alice.open("s1")
        reader = asyncio.create_task(alice.http.get("/sessions/s1/events", headers={"Accept": "text/event-stream"}))
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] [[say: finished]]"))
        await model.gate_reached("held")
        runtimes = server.runtimes()
        arguments = ("nodes", "drain", node["incarnation"], "--config", str(config))
        waiting = asyncio.create_task(aerodrome(*arguments, "--wait", json_output=False))
        async with asyncio.timeout(60):
            while "draining for up to" not in server.log.read_text():
                await asyncio.sleep(0.02)
        refused = await alice.say("s1", "more", expect=503)
        assert refused["code"] == "draining"
        assert not turn.done()
        assert not waiting.done()
        said = await aerodrome(*arguments, json_output=False)  # again, which changes nothing
        assert said == f"{node['incarnation']} is asked to drain.\n"
        model.open_gate("held")
        assert (await turn)["message"]["content"] == "finished"
        assert await server.process.wait() == 0
        assert await waiting == f"{node['incarnation']} has gone.\n"
        assert '"last_event_id"' in (await reader).text.partition("event: reconnect")[2]
        assert await aerodrome("nodes", "ls", "--config", str(config), "--json") == []
    assert all(map(has_ended, runtimes))


async def test_a_key_that_is_revoked_elsewhere_stops_at_once(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, '[auth]\nkey_cache = "1h"', ttl="15s")
    made = await aerodrome("keys", "create", "--config", str(config), "--tenant", "acme", "--user", "alice", "--json")
    async with serve(config) as server, user_of(server, made["key"]) as alice:
        assert (await alice.http.get("/sessions")).status_code == 200
        await aerodrome("keys", "revoke", made["id"], "--config", str(config), json_output=False)
        async with asyncio.timeout(30):
            while (await alice.http.get("/sessions")).status_code != 401:
                await asyncio.sleep(0.02)


async def test_a_second_signal_ends_it_at_once(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, ttl="15s")
    key = await new_key(config)
    async with serve(config) as server, user_of(server, key) as alice:
        await alice.open("s1")
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] hello"))
        await model.gate_reached("held")
        runtimes = server.runtimes()
        server.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            while "draining" not in server.log.read_text():
                await asyncio.sleep(0.02)
        server.send_signal(signal.SIGTERM)
        assert await server.process.wait() == 1
        await asyncio.wait({turn})
        assert turn.exception() is not None
    await until(lambda: all(map(has_ended, runtimes)))


async def test_what_keeps_a_drained_node_from_ending_is_named_and_ends_with_it(
    tmp_path: Path, model: ModelServer
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        """
import asyncio
from aerodrome.cli import serve
from aerodrome.runtime.attached.pool import AttachedPool

async def never(self):
    await asyncio.Event().wait()

AttachedPool.aclose = never  # before the runtimes are ended
serve._FAREWELL = 0.5
"""
    )
    config = write_config(tmp_path, model.base_url, ttl="15s")
    key = await new_key(config)
    async with serve(config, environment={"PYTHONPATH": str(tmp_path)}) as server, user_of(server, key) as alice:
        await alice.open("s1")
        await alice.say("s1", "hello")
        runtimes = server.runtimes()
        assert runtimes
        server.send_signal(signal.SIGTERM)
        assert await server.process.wait() == 1
        (said,) = [line for line in server.log.read_text().splitlines() if "process.not_ended" in line]
        assert "Event.wait" in said
        assert "Node.__aexit__" in said
    await until(lambda: all(map(has_ended, runtimes)))


async def test_two_processes_share_one_store(tmp_path: Path, model: ModelServer) -> None:
    """A session is active in one at a time, and the other asks that one; it takes over when the first lets go or
    dies."""
    config = write_config(tmp_path, model.base_url, "[sessions]\nidle_timeout = '400ms'", ttl="4s")
    key = await new_key(config)
    async with (
        serve(config) as first,
        serve(config, "--log-level", "debug") as second,
        user_of(first, key) as alice_first,
        user_of(second, key) as alice_second,
    ):
        await alice_first.open("s1")
        await alice_first.say("s1", "one")
        listed = await aerodrome("runtimes", "ls", "--config", str(config), "--json")
        # Those that it has told of, and by now perhaps more.
        assert {row["pid"] for row in listed} & {process.pid for process in first.runtimes()}
        held = asyncio.create_task(alice_first.say("s1", "[[gate: held]] two"))
        await model.gate_reached("held")
        busy = await alice_second.http.post("/sessions/s1/messages", json={"prompt": "three", "on_busy": "reject"})
        assert busy.status_code == 409, busy.text
        assert busy.json()["code"] == "session_busy"
        model.open_gate("held")
        await held
        # Hibernated in the first, it is free for the second.
        async with asyncio.timeout(60):
            while (await alice_second.http.get("/sessions/s1")).json()["state"] != "hibernated":
                await asyncio.sleep(0.05)
        assert await alice_second.prompts_seen("s1") == ["one", "[[gate: held]] two"]
        model.close_gate("held")
        held = asyncio.create_task(alice_second.say("s1", "[[gate: held]] four"))
        await model.gate_reached("held")
        second.send_signal(signal.SIGKILL)
        await asyncio.wait({held})
        held.exception()
        async with asyncio.timeout(60):
            while (await alice_first.http.post("/sessions/s1/messages", json={"prompt": "five"})).status_code != 200:
                await asyncio.sleep(0.05)
        prompts = await alice_first.prompts_seen("s1")
        assert prompts == ["one", "[[gate: held]] two", "[[turns]]", "five"]


async def test_operators_list_show_export_and_remove_sessions(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, ttl="15s")
    key = await new_key(config)
    where = ("--config", str(config))
    async with serve(config) as server, user_of(server, key) as alice:
        await alice.open("s1", title="Invoices")
        await alice.say("s1", "a private matter")
        (listed,) = await aerodrome("sessions", "ls", *where, "--json")
        assert (listed["id"], listed["tenant"], listed["owner"]) == ("s1", "acme", "alice")
        shown = await aerodrome("sessions", "show", "s1", "--tenant", "acme", *where)
        assert shown["turns"][0]["status"] == "completed"
        assert "private" not in str(shown)
        exported = await aerodrome("sessions", "export", "s1", "--tenant", "acme", *where)
        assert "a private matter" in exported["files"]["/state/events.jsonl"]
        with pytest.raises(AssertionError, match="loaded by a running node"):
            await aerodrome("sessions", "rm", "s1", "--tenant", "acme", *where)
        server.send_signal(signal.SIGTERM)
        assert await server.process.wait() == 0
    await aerodrome("sessions", "rm", "s1", "--tenant", "acme", *where, json_output=False)
    assert await aerodrome("sessions", "ls", *where, "--json") == []
