"""Copilot CLI servers that somebody else runs: the guide's topology, several servers on shared storage."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from copilot import CopilotClient, PermissionHandler, RuntimeConnection

from aerodrome.app.options import attach_entries, attach_tokens
from aerodrome.demo.model import ModelServer
from aerodrome.runtime.attached.entry import AttachEntry
from aerodrome.runtime.attached.runtime import AttachedOptions, AttachedRuntime
from aerodrome.runtime.link import RemoteError
from support.attached import TOKEN, Names, Servers, attached_host, attached_settings, of_acme
from support.cli import processes_at_home
from support.host import Host, until

pytestmark = pytest.mark.cli


def rows(host: Host) -> dict[str, dict[str, Any]]:
    return {row["server"]: row for row in host.node.attached.describe()}


async def connected(host: Host, count: int) -> None:
    await until(lambda: sum(row["state"] in ("warm", "claimed") for row in rows(host).values()) == count, 60)


def where(host: Host) -> dict[str, str]:
    """Session -> the server that has it."""
    names = {runtime.id: f"{runtime.address[0]}:{runtime.address[1]}" for runtime in host.node.attached.runtimes}
    return {
        live.row.key.id: names[live.activation.runtime.id]
        for live in host.node.sessions.live
        if live.activation is not None and live.activation.runtime.id in names
    }


# The guide's topology: three servers, one volume


@pytest.mark.parametrize("strategy", ["least_loaded", "sticky"])
async def test_sessions_of_a_lost_server_go_on_at_the_others(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer, strategy: str
) -> None:
    three = [await servers.start() for _ in range(3)]
    entries = [of_acme(server) for server in three]
    async with attached_host(tmp_path / "d", model, volume, entries, runtime={"placement": strategy}) as acme:
        await connected(acme, 3)
        users = [await acme.user(f"user-{number}") for number in range(6)]
        for number, user in enumerate(users):
            await user.open(f"s{number}")
            await user.say(f"s{number}", f"My name is N{number}")
        spread = Counter(where(acme).values())
        assert sum(spread.values()) == 6
        assert len(spread) == 3 if strategy == "least_loaded" else len(spread) >= 2
        # Nothing was started here.
        assert processes_at_home(tmp_path / "d" / "runtimes") == []
        before = where(acme)
        turn = asyncio.create_task(users[0].say("s0", "[[gate: held]] wait"))
        await model.gate_reached("held")
        busy = next(server for server in three if server.address == before["s0"])
        busy.kill()
        model.open_gate("held")
        result = await turn
        assert result["turn"]["status"] == "completed"
        assert result["turn"]["retried"]
        for number, user in enumerate(users):
            assert f"N{number}" in await user.text(f"s{number}", "What is my name?")
        after = where(acme)
        assert busy.address not in after.values()
        stayed = [session for session, server in before.items() if server != busy.address]
        assert all(after[session] == before[session] for session in stayed)
        assert await users[0].prompts_seen("s0") == ["My name is N0", "[[gate: held]] wait", "What is my name?"]


async def test_a_restarted_server_is_used_again_by_itself(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    server = await servers.start()
    async with attached_host(tmp_path / "d", model, volume, [of_acme(server)]) as acme:
        await connected(acme, 1)
        alice = await acme.user()
        await alice.open("s1")
        await alice.say("s1", "My name is Ada")
        server.kill()
        await until(lambda: rows(acme)[server.address]["state"] == "failed")
        assert rows(acme)[server.address]["reason"]
        await servers.start(port=server.port)
        assert "Ada" in await alice.text("s1", "What is my name?")
        assert await alice.prompts_seen("s1") == ["My name is Ada", "What is my name?"]


async def test_a_server_that_hangs_is_left_and_comes_back_when_it_answers(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    one, two = await servers.start(), await servers.start()
    watchful = {"ping_timeout": "2s"}
    async with attached_host(tmp_path / "d", model, volume, [of_acme(one), of_acme(two)], runtime=watchful) as acme:
        await connected(acme, 2)
        alice = await acme.user()
        await alice.open("s1")
        await alice.say("s1", "one")
        hung = one if where(acme)["s1"] == one.address else two
        hung.suspend()
        try:
            turn = await alice.say("s1", "two")
            assert turn["turn"]["status"] == "completed"
            assert where(acme)["s1"] != hung.address
            assert rows(acme)[hung.address]["state"] == "failed"
        finally:
            hung.resume()
        await connected(acme, 2)
        assert hung.alive, "nobody kills what is somebody else's"
        # It was not handed the prompt, which it would have answered now, into the same file.
        await alice.say("s1", "three")
        assert [content for role, content in await alice.history("s1") if role == "user"] == ["one", "two", "three"]


@pytest.mark.parametrize("native", [False, True])
async def test_a_server_that_refuses_every_session_is_found_out(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer, native: bool
) -> None:
    three = [await servers.start() for _ in range(3)]
    async with attached_host(tmp_path / "d", model, volume, [of_acme(server) for server in three]) as acme:
        await connected(acme, 3)
        alice = await acme.user()
        await alice.open("first")
        await alice.say("first", "hello")  # all are bound, and what is bound is not looked at again
        broken = next(server for server in three if server.address not in where(acme).values())
        broken.lose_files()
        connection = RuntimeConnection.for_uri(acme.gateway_address, connection_token=await acme.key())
        async with CopilotClient(connection=connection, mode="empty") as client:
            for number in range(12):
                if native:
                    approve = PermissionHandler.approve_all
                    await client.create_session(
                        session_id=f"s{number}", model="gpt-4.1", available_tools=[], on_permission_request=approve
                    )
                else:
                    await alice.open(f"s{number}")
                    assert (await alice.say(f"s{number}", "hello"))["turn"]["status"] == "completed"
        assert len(where(acme)) == 13
        assert broken.address not in where(acme).values()
        row = rows(acme)[broken.address]
        assert row["state"] == "ejected"
        assert "5 sessions in a row refused that others took" in row["reason"]


async def test_a_refusal_does_not_tell_whose_fault_it_is(servers: Servers) -> None:
    server = await servers.start()
    entry = AttachEntry("127.0.0.1", server.port, token=TOKEN)
    runtime = AttachedRuntime(("127.0.0.1", server.port), entry, AttachedOptions(), lambda *_: None)
    await runtime.open()
    try:
        refused = [await refusal(runtime, sessionId="a/b"), await refusal(runtime, model=7)]
        server.lose_files()
        refused.append(await refusal(runtime))
        assert {error.code for error in refused} == {-32603}
        assert "Not a directory" in refused[2].message
    finally:
        await runtime.aclose()


async def refusal(runtime: AttachedRuntime, **params: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await runtime.control.request("session.create", {"sessionId": "s1", "workingDirectory": "/tmp", **params})
    return caught.value


# Who is served


async def test_a_server_is_bound_to_the_first_tenant_that_needs_it(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    one, two = await servers.start(tenant="acme"), await servers.start(tenant="globex")
    addresses = [two.address, one.address]
    async with attached_host(tmp_path / "d", model, volume, addresses) as host:
        await connected(host, 2)
        for tenant in ("acme", "globex"):
            alice = await host.user("alice", tenant)
            await alice.open("chat")
            await alice.say("chat", f"I work for {tenant}")
        found = {address: row["tenant"] for address, row in rows(host).items()}
        # Each sees only its own tenant's directory, and the same id is two sessions.
        assert found == {one.address: "acme", two.address: "globex"}
        assert where(host)["chat"] in addresses
    async with attached_host(tmp_path / "d", model, volume, addresses) as host:
        assert {address: row["tenant"] for address, row in rows(host).items()} == found, "a restart keeps it"


async def test_under_isolation_user_no_two_users_share_a_server(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    entries = [of_acme(await servers.start()), of_acme(await servers.start())]
    isolation = {"default": "user"}
    runtime = {"capacity_timeout": "1s"}
    async with attached_host(tmp_path / "d", model, volume, entries, runtime=runtime, isolation=isolation) as host:
        await connected(host, 2)
        for name in ("alice", "bob"):
            user = await host.user(name)
            await user.open(name)
            await user.say(name, "hello")
        assert sorted(row["user"] for row in rows(host).values()) == ["alice", "bob"]


async def test_who_has_no_server_gets_a_runtime_of_ours(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    server = await servers.start()
    async with attached_host(tmp_path / "d", model, volume, [of_acme(server)]) as host:
        await connected(host, 1)
        alice, gina = await host.user("alice", "acme"), await host.user("gina", "globex")
        await alice.open("a")
        await alice.say("a", "hello")
        await gina.open("g")
        await gina.say("g", "hello")
        assert where(host) == {"a": server.address}
        assert [runtime.key.tenant for runtime in host.node.pool.runtimes if runtime.key] == ["globex"]


# What cannot be used


async def test_what_cannot_be_used_says_why(tmp_path: Path, volume: Path, servers: Servers, model: ModelServer) -> None:
    strange = await asyncio.start_server(_other_version, "127.0.0.1", 0)
    port = strange.sockets[0].getsockname()[1]
    wrong_token, elsewhere = await servers.start(token="another"), await servers.start(own_files=True)
    entries = [of_acme(wrong_token), of_acme(elsewhere), {"address": f"127.0.0.1:{port}", "tenant": "acme"}]
    async with (
        strange,
        attached_host(tmp_path / "d", model, volume, entries, runtime={"capacity_timeout": "3s"}) as host,
    ):
        alice = await host.user()
        await alice.open("s1")
        problem = await alice.say("s1", "hello", expect=503)
        assert problem["code"] == "runtime_unavailable"
        await until(lambda: all("not been connected" not in row["reason"] for row in rows(host).values()))
        reasons = {address: row["reason"] for address, row in rows(host).items()}
        assert "AUTHENTICATION_FAILED" in reasons[wrong_token.address]
        assert "not the directory of acme" in reasons[elsewhere.address]
        assert "9.9.9" in reasons[f"127.0.0.1:{port}"]
        assert "AUTHENTICATION_FAILED" in problem["detail"]


async def _other_version(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A Copilot CLI of the future, as far as its `connect`."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b":")[1].split(b"\r")[0])
        request = json.loads(await reader.readexactly(length))
        result = {"ok": True, "protocolVersion": 3, "version": "9.9.9"}
        body = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode()
        writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        await reader.read()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


# A list that changes


async def test_a_removed_server_is_drained_and_an_added_one_used(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    old, new = await servers.start(), await servers.start()
    async with attached_host(tmp_path / "d", model, volume, [of_acme(old)]) as acme:
        await connected(acme, 1)
        alice = await acme.user()
        for session in ("busy", "idle"):
            await alice.open(session)
            await alice.say(session, "My name is Ada")
        turn = asyncio.create_task(alice.say("busy", "[[gate: held]] wait"))
        await model.gate_reached("held")
        changed = attached_settings(tmp_path / "d", model, volume, [of_acme(new)])
        await acme.node.attached.reload(attach_entries(changed), attach_tokens(changed))
        await connected(acme, 1)
        await until(lambda: "idle" not in where(acme))
        assert rows(acme)[old.address]["state"] == "draining"
        assert where(acme)["busy"] == old.address
        assert "Ada" in await alice.text("idle", "What is my name?")
        assert where(acme)["idle"] == new.address
        model.open_gate("held")
        result = await turn
        assert (result["turn"]["status"], result["turn"]["retried"]) == ("completed", False)
        await until(lambda: old.address not in rows(acme))
        assert "Ada" in await alice.text("busy", "What is my name?")
        assert where(acme)["busy"] == new.address
        assert old.alive


async def test_a_name_with_several_addresses_is_several_servers(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    one = await servers.start(host="127.0.0.1")
    await servers.start(host="127.0.0.2", port=one.port)
    names = Names(fleet=["127.0.0.1", "127.0.0.2"])
    entry = {"address": f"fleet:{one.port}", "tenant": "acme"}
    async with attached_host(tmp_path / "d", model, volume, [entry], resolver=names) as acme:
        await connected(acme, 2)
        alice = await acme.user()
        for session in ("s1", "s2"):
            await alice.open(session)
            await alice.say(session, "hello")
        assert set(where(acme).values()) == {f"127.0.0.1:{one.port}", f"127.0.0.2:{one.port}"}
        names.addresses["fleet"] = ["127.0.0.2"]
        await until(lambda: set(rows(acme)) == {f"127.0.0.2:{one.port}"})
        del names.addresses["fleet"]  # a resolver that is away takes no server from its sessions
        await acme.node.attached.refresh()
        for session in ("s1", "s2"):
            await alice.say(session, "again")
        assert set(where(acme).values()) == {f"127.0.0.2:{one.port}"}


# At run time


async def test_an_administrator_attaches_and_detaches_servers(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    server = await servers.start()
    async with (
        attached_host(tmp_path / "d", model, volume) as one,
        attached_host(tmp_path / "d", model, volume) as two,
    ):
        alice = await one.user()
        _, key = await one.node.stores.keys.create("acme", "root", frozenset({"admin"}))
        admin = {"Authorization": f"Bearer {key}"}
        body = {"address": server.address, "weight": 2}
        assert (await alice.http.post("/admin/runtimes", json=body)).status_code == 403
        assert (await alice.http.get("/admin/servers")).status_code == 403
        made = await alice.http.post("/admin/runtimes", json=body, headers=admin)
        assert (made.status_code, made.json()) == (201, {"address": server.address, "tenant": "acme"})
        again = await alice.http.post("/admin/runtimes", json=body, headers=admin)
        assert again.json()["code"] == "conflict"
        wrong = await alice.http.post("/admin/runtimes", json={**body, "token": "nobody"}, headers=admin)
        assert wrong.json()["code"] == "invalid"
        await connected(one, 1)
        await connected(two, 1)
        await alice.open("s1")
        await alice.say("s1", "hello")
        assert where(one) == {"s1": server.address}
        listed = (await alice.http.get("/admin/servers", headers=admin)).json()["servers"]
        assert [(row["server"], row["state"], row["sessions"]) for row in listed] == [(server.address, "claimed", 1)]
        # Drained, which any node can be asked for, and undrained.
        async with asyncio.timeout(30):
            told: list[dict[str, Any]] = []
            while sum(row.get("server") == server.address for row in told) < 2:
                told = (await alice.http.get("/admin/runtimes", headers=admin)).json()["runtimes"]
        drained = await alice.http.post(f"/admin/runtimes/{server.address}/drain", headers=admin)
        assert (drained.status_code, drained.json()["state"]) == (200, "done")
        assert {rows(host)[server.address]["state"] for host in (one, two)} == {"drained"}
        assert (await alice.http.post(f"/admin/runtimes/{server.address}/undrain")).status_code == 403
        for status in (204, 404):
            undrained = await alice.http.post(f"/admin/runtimes/{server.address}/undrain", headers=admin)
            assert undrained.status_code == status
        await until(lambda: {rows(host)[server.address]["state"] for host in (one, two)} == {"claimed"}, 30)
        _, other = await one.node.stores.keys.create("globex", "root", frozenset({"admin"}))
        elses = await alice.http.delete(
            f"/admin/runtimes/{server.address}", headers={"Authorization": f"Bearer {other}"}
        )
        assert elses.status_code == 404
        gone = await alice.http.delete(f"/admin/runtimes/{server.address}", headers=admin)
        assert gone.status_code == 204
        await until(lambda: not rows(one) and not rows(two), 60)
        await alice.say("s1", "and now on a runtime of ours")
        assert where(one) == {}


async def test_a_detached_server_is_kept_from_others_while_another_node_runs_a_turn_in_it(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    server = await servers.start()
    async with (
        attached_host(tmp_path / "d", model, volume, [server.address]) as one,
        attached_host(tmp_path / "d", model, volume, [server.address]) as two,
    ):
        await connected(one, 1)
        await connected(two, 1)
        alice = await two.user()
        await alice.open("s1")
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] wait"))
        await model.gate_reached("held")
        _, key = await one.node.stores.keys.create("acme", "root", frozenset({"admin"}))
        gone = await alice.http.delete(f"/admin/runtimes/{server.address}", headers={"Authorization": f"Bearer {key}"})
        assert gone.status_code == 204
        await until(lambda: bool(one.node.attached.released))
        await until(lambda: rows(two)[server.address]["state"] == "draining")
        # Both have beaten since, and only one has let go.
        loads: dict[str, dict[str, Any]] = {}
        async with asyncio.timeout(30):
            while not any(load.get("released") for load in loads.values()):
                loads = {node.incarnation: node.load for node in await one.node.stores.coordination.nodes()}
        await one.node.attached.refresh()
        assert list(await one.node.stores.attached.bindings()) == [server.address]
        model.open_gate("held")
        assert (await turn)["turn"]["status"] == "completed"
        await until(lambda: rows(one).get(server.address, {}).get("state") == "warm", 60)
        assert await one.node.stores.attached.bindings() == {}


# The other door, and sharing


async def test_native_clients_work_over_attached_servers_and_outlive_them(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    one, two = await servers.start(), await servers.start()
    async with attached_host(tmp_path / "d", model, volume, [of_acme(one), of_acme(two)]) as acme:
        await connected(acme, 2)
        connection = RuntimeConnection.for_uri(acme.gateway_address, connection_token=await acme.key())
        async with CopilotClient(connection=connection, mode="empty") as client:
            session = await client.create_session(
                session_id="native",
                model="gpt-4.1",
                available_tools=[],
                on_permission_request=PermissionHandler.approve_all,
            )
            await session.send_and_wait("My name is Ada", timeout=60)
            server = one if where(acme)["native"] == one.address else two
            server.kill()
            answer = await session.send_and_wait("What is my name?", timeout=60)
            assert answer is not None
            assert "Ada" in answer.data.content
        alice = await acme.user()
        assert [content for role, content in await alice.history("native") if role == "user"] == [
            "My name is Ada",
            "What is my name?",
        ]


async def test_two_nodes_share_the_servers_and_never_a_session(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    entries = [of_acme(await servers.start()), of_acme(await servers.start())]
    async with (
        attached_host(tmp_path / "d", model, volume, entries) as one,
        attached_host(tmp_path / "d", model, volume, entries) as two,
    ):
        await connected(one, 2)
        await connected(two, 2)
        alice = await one.user()
        await alice.open("s1")
        await alice.say("s1", "My name is Ada")
        _, key = await one.node.stores.keys.create("acme", "alice", frozenset())
        elsewhere = await alice.http.post(
            f"{two.url}/api/v1/sessions/s1/messages",
            json={"prompt": "What is my name?"},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert "Ada" in elsewhere.json()["message"]["content"]
        assert (len(where(one)), len(where(two))) == (1, 0), "the session stays with the node that has its lease"


@pytest.fixture
async def host(tmp_path: Path, volume: Path, servers: Servers, model: ModelServer) -> AsyncIterator[Host]:
    server = await servers.start()
    async with attached_host(tmp_path / "d", model, volume, [of_acme(server)]) as running:
        await connected(running, 1)
        yield running


async def test_deleting_forking_and_aborting_work_on_the_volume(host: Host, volume: Path, model: ModelServer) -> None:
    alice = await host.user()
    await alice.open("s1")
    await alice.say("s1", "one")
    turn = asyncio.create_task(alice.say("s1", "[[gate: held]] two"))
    await model.gate_reached("held")
    assert (await alice.http.post("/sessions/s1/abort")).json() == {"aborted": True}
    assert (await turn)["turn"]["status"] == "aborted"
    model.open_gate("held")
    assert (await alice.http.delete("/sessions/s1")).status_code == 204
    assert {path.name for path in (volume / "acme").rglob("*")} <= {".aerodrome", ".session-operation-locks"}
    await alice.open("s1")
    assert await alice.prompts_seen("s1") == []
