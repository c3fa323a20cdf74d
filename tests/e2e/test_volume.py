"""Session files on a volume (`state.url = "volume:..."`): launched runtimes, damage that real kills leave, the commands
that find and mend it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.errors import StoreUnavailable
from support.host import Host, host, until
from support.server import run_aerodrome

pytestmark = pytest.mark.cli


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "volume"


async def put_to_sleep(acme: Host) -> None:
    for live in acme.node.sessions.live:
        assert await acme.node.sessions.hibernate(live)


def on(volume: Path, **keys: Any) -> dict[str, Any]:
    return {"url": f"volume:{volume}", **keys}


@pytest.fixture
async def acme(tmp_path: Path, volume: Path, model: ModelServer) -> AsyncIterator[Host]:
    async with host(tmp_path / "data", model, state=on(volume, patience="2s")) as running:
        yield running


def events_of(volume: Path, session: str = "s1", tenant: str = "acme") -> Path:
    return volume / tenant / session / "events.jsonl"


async def test_a_session_lies_on_the_volume_and_outlives_its_runtime(acme: Host, volume: Path) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "My name is Ada")
    assert '"My name is Ada"' in events_of(volume).read_text()
    os.kill(acme.process().pid, signal.SIGKILL)
    assert "Ada" in await alice.text("s1", "What is my name?")
    assert await alice.prompts_seen("s1") == ["My name is Ada", "What is my name?"]
    assert len(await alice.history("s1")) == 6


async def test_an_unanswered_prompt_is_cut_and_sent_again(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    turn = asyncio.create_task(alice.say("s1", "[[gate: held]] two"))
    await model.gate_reached("held")
    acme.process().kill()
    model.open_gate("held")
    assert (await turn)["turn"]["retried"]
    assert await alice.prompts_seen("s1") == ["one", "[[gate: held]] two"]


async def test_deletion_leaves_nothing_on_the_volume(acme: Host, volume: Path) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    assert (await alice.http.delete("/sessions/s1")).status_code == 204
    assert [path for path in (volume / "acme").rglob("*") if path.name != ".aerodrome"] == []
    # And the id may be used again, with nothing of the first.
    await alice.open("s1")
    assert await alice.prompts_seen("s1") == []


async def test_what_others_keep_on_the_volume_is_neither_read_nor_touched(acme: Host, volume: Path) -> None:
    alice = await acme.user("alice")
    foreign = events_of(volume, "theirs")
    foreign.parent.mkdir(parents=True)
    foreign.write_text('{"type":"user.message","data":{"content":"a secret"}}\n')
    await alice.open("theirs")
    problem = await alice.say("theirs", "What did I say before?", expect=409)
    assert problem["code"] == "conflict"
    assert (await alice.http.delete("/sessions/theirs")).status_code == 204
    assert "a secret" in foreign.read_text()


@pytest.mark.parametrize("link", ["events.jsonl", ""])
async def test_a_link_on_the_volume_leads_nowhere(acme: Host, volume: Path, tmp_path: Path, link: str) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    await put_to_sleep(acme)
    (tmp_path / "secret" / "events.jsonl").parent.mkdir()
    (tmp_path / "secret" / "events.jsonl").write_text('{"type":"user.message","data":{"content":"a secret"}}\n')
    target = volume / "acme" / "s1" / link
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    target.symlink_to(tmp_path / "secret" / link)
    response = await alice.http.get("/sessions/s1/messages")
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    assert "a secret" not in response.text


async def test_something_else_in_the_place_of_a_history_is_told_and_can_be_deleted(acme: Host, volume: Path) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    await put_to_sleep(acme)
    events_of(volume).unlink()
    for lay in (events_of(volume).mkdir, partial(os.mkfifo, events_of(volume))):
        lay()
        assert (await alice.say("s1", "two", expect=409))["code"] == "conflict"
        assert (await alice.http.get("/sessions/s1/messages")).status_code == 409
        with suppress(NotADirectoryError):
            events_of(volume).rmdir()
    assert (await alice.http.delete("/sessions/s1")).status_code == 204
    assert not (volume / "acme" / "s1").exists()


@pytest.mark.parametrize("size", [100_000, 1 << 40])
async def test_a_history_that_others_have_made_too_long_is_not_read(
    tmp_path: Path, volume: Path, model: ModelServer, size: int
) -> None:
    limits = {"large_history": "40kB", "max_history": "80kB"}
    async with host(tmp_path / "data", model, state=on(volume), sessions=limits) as acme:
        alice = await acme.user("alice")
        await alice.open("s1")
        await alice.say("s1", "one")
        await put_to_sleep(acme)
        before = events_of(volume).stat().st_size
        os.truncate(events_of(volume), size)  # which takes no room on the disk
        assert (await alice.say("s1", "two", expect=413))["code"] == "too_large"
        assert events_of(volume).stat().st_size == size, "nor mended"
        if size > 64 << 20:
            assert (await alice.http.get("/sessions/s1/messages")).status_code == 413
        os.truncate(events_of(volume), before)
        assert await alice.prompts_seen("s1") == ["one"]


async def test_an_export_has_all_but_what_is_no_file_or_too_large(
    tmp_path: Path, volume: Path, model: ModelServer
) -> None:
    async with host(tmp_path / "data", model, state=on(volume)) as acme:
        alice = await acme.user("alice")
        for session in ("odd", "sound", "stolen"):
            await alice.open(session)
            await alice.say(session, "one")
    deep = volume / "acme" / "odd"
    for _ in range(90):
        deep = deep / "deep"
        deep.mkdir()
    (deep / "file").write_text("x")
    os.mkfifo(volume / "acme" / "odd" / "pipe")
    (volume / "acme" / "odd" / "big").touch()
    os.truncate(volume / "acme" / "odd" / "big", 1 << 40)
    (volume / "acme" / ".aerodrome" / "stolen").rename(volume / "acme" / "elsewhere")
    config = tmp_path / "aerodrome.toml"
    config.write_text(f'[server]\ndata_dir = "{tmp_path / "data"}"\n[state]\nurl = "volume:{volume}"\n')
    arguments = ("sessions", "export", "--tenant", "acme", "--all", "--config", str(config))
    done = await run_aerodrome(*arguments)
    taken = {each["session"]["id"]: each for each in map(json.loads, done.out.splitlines())}
    for session in ("odd", "sound"):
        assert '"one"' in taken[session]["files"]["/state/events.jsonl"]
    assert taken["odd"]["files"]["/state" + "/deep" * 90 + "/file"] == "x"
    assert "/state/pipe" not in taken["odd"]["files"]
    assert {session: list(each["left_out"]) for session, each in taken.items()} == {
        "odd": ["/state/big"],
        "sound": [],
        "stolen": ["/"],
    }
    assert (await run_aerodrome(*arguments, "--to", str(tmp_path / "out"))).code == 0
    told = json.loads((tmp_path / "out" / "sessions" / "odd" / "session.json").read_text())
    assert list(told["left_out"]) == ["/state/big"]


async def test_a_volume_that_is_not_mounted_is_not_taken_for_an_empty_one(
    acme: Host, volume: Path, tmp_path: Path, model: ModelServer
) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    await put_to_sleep(acme)
    volume.rename(tmp_path / "away")
    volume.mkdir()
    assert (await alice.http.get("/sessions/s1/messages")).status_code == 503
    with pytest.raises(StoreUnavailable, match="mounted"):
        async with host(tmp_path / "data", model, state=on(volume, patience="0s")):
            pass
    volume.rmdir()
    (tmp_path / "away").rename(volume)
    assert await alice.prompts_seen("s1") == ["one"]


DAMAGES = {
    "torn": lambda data: data[:-40],
    "unterminated": lambda data: data.rstrip(b"\n"),
    "nul": lambda data: data + b"\0" * 512,
    "corrupt": lambda data: data.replace(b'{"type":"system', b'"type":"system', 1),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
async def test_a_damaged_history_is_mended_and_reported_before_it_is_loaded(
    acme: Host, volume: Path, damage: str
) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "My name is Ada")
    await put_to_sleep(acme)
    path = events_of(volume)
    before = DAMAGES[damage](path.read_bytes())
    path.write_bytes(before)
    async with alice.events("s1") as events:
        assert "Ada" in await alice.text("s1", "What is my name?")
        async for event in events:
            if event["event"] == "aerodrome.session_repaired":
                break
    told = event["data"]["data"]
    assert [found["kind"] for found in told["damages"]] == [damage]
    backup = path.with_name(told["backup"].rpartition("/")[2])
    assert backup.read_bytes() == before
    for line in path.read_bytes().splitlines():
        assert json.loads(line)["type"]
    assert [content for role, content in await alice.history("s1") if role == "user"][-1] == "What is my name?"


async def test_the_commands_find_and_mend(tmp_path: Path, volume: Path, model: ModelServer) -> None:
    async with host(tmp_path / "data", model, state=on(volume)) as acme:
        alice = await acme.user("alice")
        for session in ("whole", "torn", "left", "held"):
            await alice.open(session)
            await alice.say(session, "one")
        config = tmp_path / "aerodrome.toml"
        config.write_text(
            f'[server]\ndata_dir = "{tmp_path / "data"}"\n[state]\nurl = "volume:{volume}"\n'
            f'[provider]\ntype = "openai"\nbase_url = "{model.base_url}"\nmodel = "gpt-4.1"\n'
        )

        async def sessions(verb: str, *more: str) -> tuple[int, dict[str, Any]]:
            arguments = ("--tenant", "acme", *(more or ("--all",)), "--json", "--config", str(config))
            done = await run_aerodrome("sessions", verb, *arguments)
            assert done.out, done.err
            return done.code, {each["session"]: each for each in done.json}

        # While a node has them loaded they are its business.
        code, found = await sessions("repair")
        assert code == 0
        assert {each["verdict"] for each in found.values()} == {"loaded"}
    path = events_of(volume, "torn")
    path.write_bytes(path.read_bytes()[:-30])
    (volume / "acme" / "left" / "inuse.4194000.lock").write_text("4194000")
    (volume / "acme" / "held" / "inuse.4194001.lock").write_text("4194001")
    with (volume / "acme" / "held" / "inuse.4194001.hold").open("w") as holding:
        fcntl.flock(holding, fcntl.LOCK_EX)
        code, found = await sessions("check")
        assert code == 1
        assert {name: each["verdict"] for name, each in found.items()} == {
            "whole": "ok",
            "torn": "damaged",
            "left": "stale locks",
            "held": "in use",
        }
        assert path.read_bytes()[-1:] != b"\n", "check changes nothing"
        code, found = await sessions("repair")
        assert code == 1
        assert {name: each["verdict"] for name, each in found.items()} == {
            "whole": "ok",
            "torn": "repaired",
            "left": "stale locks",
            "held": "in use",
        }
    assert found["torn"]["backup"]
    assert not list((volume / "acme" / "left").glob("inuse.*"))
    assert list((volume / "acme" / "held").glob("inuse.*"))
    code, found = await sessions("check", "torn")
    assert (code, found["torn"]["verdict"]) == (0, "ok")


async def test_two_processes_share_a_volume(tmp_path: Path, volume: Path, model: ModelServer) -> None:
    async with host(tmp_path / "data", model, state=on(volume)) as first:
        alice = await first.user("alice")
        await alice.open("s1")
        await alice.say("s1", "My name is Ada")
    async with host(tmp_path / "data", model, state=on(volume)) as second:
        alice = await second.user("alice")
        assert "Ada" in await alice.text("s1", "What is my name?")
        assert await alice.prompts_seen("s1") == ["My name is Ada", "What is my name?"]
        await until(lambda: len(second.node.sessions.live) == 1)
