"""The life of sessions through the official Python SDK: open, find, share, resume, fork, compact, delete."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from copilot import CopilotClient, RuntimeConnection
from copilot._jsonrpc import JsonRpcError
from copilot.rpc import SessionsForkRequest

from aerodrome.demo.model import ModelServer
from support.sdk_clients import MODEL, PATIENCE, Chat, Client, Endpoint, connected, custom_tool, gateway, requests_of

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

CALL = '[[tool: look {"x": "there"}]]'


# The connection.


async def test_the_server_says_who_it_is(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        pong = await client.sdk.ping("are you there?")
        assert (pong.message, pong.protocol_version) == ("pong: are you there?", 3)
        assert (await client.sdk.ping()).message == "pong"
        status = await client.sdk.get_status()
        assert (status.version, status.protocol_version) == ("1.0.102", 3)


async def test_who_is_authenticated(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        status = await client.sdk.get_auth_status()
        assert (status.isAuthenticated, status.login) == ((True, "alice") if gateway(endpoint) else (False, None))


async def test_models_without_github(endpoint: Endpoint) -> None:
    """The CLI has no list; the gateway's is the configured model."""
    async with connected(endpoint) as client:
        if gateway(endpoint):
            assert [model.id for model in await client.sdk.list_models()] == [MODEL]
            return
        with pytest.raises(JsonRpcError) as caught:
            await client.sdk.list_models()
        assert (caught.value.code, caught.value.message) == (
            -32603,
            "Request models.list failed with message: Not authenticated. Please authenticate first.",
        )


async def test_a_wrong_token_is_refused(endpoint: Endpoint) -> None:
    sdk = CopilotClient(connection=RuntimeConnection.for_uri(endpoint.address, connection_token="guessed"))
    try:
        with pytest.raises(JsonRpcError) as caught:
            await sdk.start()
        assert (caught.value.code, caught.value.message) == (-32002, "AUTHENTICATION_FAILED")
    finally:
        await sdk.force_stop()


async def test_stop_ends_a_client_and_leaves_its_sessions(endpoint: Endpoint) -> None:
    sdk = CopilotClient(
        connection=RuntimeConnection.for_uri(endpoint.address, connection_token=endpoint.token), mode="empty"
    )
    await sdk.start()
    chat = await Client(sdk, endpoint, "empty").create()
    await chat.turn("before the stop")
    await sdk.stop()
    async with connected(endpoint) as client:
        assert await (await client.resume(chat.id)).prompts_seen() == ["before the stop"]


# Finding sessions.


async def test_a_session_is_listed_and_described(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("the title of it")
        listed = described = None
        # Who runs it writes this down behind what happens, and in between the two questions it may have changed.
        async with asyncio.timeout(PATIENCE):
            while listed is None or listed.summary is None or listed != described:
                (listed,) = [found for found in await client.sdk.list_sessions() if found.session_id == chat.id]
                described = await client.sdk.get_session_metadata(chat.id)
        assert (listed.summary, listed.is_remote) == ("the title of it", False)
        assert listed.start_time <= listed.modified_time
        assert await client.sdk.get_last_session_id() == chat.id


async def test_an_unknown_session_has_no_description(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        assert await client.sdk.get_session_metadata("no-such-session") is None


async def test_an_unknown_session_cannot_be_resumed(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        with pytest.raises(JsonRpcError, match="Session not found: no-such-session") as caught:
            await client.resume("no-such-session")
        assert caught.value.code == -32603


async def test_a_session_is_deleted(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("to be deleted")
        await chat.session.disconnect()
        await client.sdk.delete_session(chat.id)
        assert await client.sdk.get_session_metadata(chat.id) is None
        assert chat.id not in [found.session_id for found in await client.sdk.list_sessions()]
        with pytest.raises(JsonRpcError, match="Session not found"):
            await client.resume(chat.id)
        with pytest.raises(RuntimeError, match=f"Failed to delete session {chat.id}"):
            await client.sdk.delete_session(chat.id)


async def test_the_life_of_a_session_is_told(endpoint: Endpoint) -> None:
    told: list[Any] = []
    news = asyncio.Event()

    def listen(event: Any) -> None:
        told.append(event)
        news.set()

    async def until(kind: str) -> Any:
        async with asyncio.timeout(PATIENCE):
            while not (found := [event for event in told if event.type == kind and event.session_id == chat.id]):
                news.clear()
                await news.wait()
        return found[0]

    async with connected(endpoint) as client:
        client.sdk.on_lifecycle(listen)
        chat = await client.create()
        created = await until("session.created")
        assert created.metadata.start_time
        await chat.turn("makes an update")
        await until("session.updated")
        await chat.session.disconnect()
        await client.sdk.delete_session(chat.id)
        await until("session.deleted")


# History.


async def test_the_history_of_a_session(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("one")
        await chat.turn("two")
        events = await chat.session.get_events()
        assert events[0].type.value == "session.start"
        assert contents(events) == ["one", "echo: one", "two", "echo: two"]
        assert not any(event.ephemeral for event in events)


async def test_a_note_is_written_into_the_history(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.session.log("half-way through", level="warning")
        assert (await chat.until("session.warning")).message == "half-way through"
        assert "session.warning" in [event.type.value for event in await chat.session.get_events()]


@pytest.mark.parametrize("mode", ["empty", "copilot-cli"])
async def test_a_session_is_resumed_by_another_client(endpoint: Endpoint, mode: str) -> None:
    async with connected(endpoint, mode=mode) as first:
        chat = await first.create()
        await chat.turn("my first words")
        await chat.session.disconnect()
        async with connected(endpoint, mode=mode) as second:
            resumed = await second.resume(chat.id)
            assert (await resumed.until("session.resume")).event_count > 0
            # Nothing of the past is sent again.
            assert resumed.data("user.message") == []
            assert contents(await resumed.session.get_events()) == ["my first words", "echo: my first words"]
            assert await resumed.prompts_seen() == ["my first words"]


async def test_a_session_is_resumed_by_the_same_client(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("before")
        await chat.session.disconnect()
        assert await (await client.resume(chat.id)).prompts_seen() == ["before"]


async def test_the_history_is_compacted(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("long ago")
        await chat.turn("yesterday")
        result = await chat.session.rpc.history.compact()
        assert result.success is True
        assert result.messages_removed > 0
        assert (await chat.until("session.compaction_complete")).success is True
        (summary,) = await chat.prompts_seen()
        assert "The conversation history has been summarized" in summary
        assert "long ago" in summary


async def test_a_session_is_forked(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("common past")
        forked = await client.sdk.rpc.sessions.fork(SessionsForkRequest(session_id=chat.id, name="the other way"))
        assert forked.session_id != chat.id
        assert forked.name == "the other way"
        await chat.turn("only here")
        other = await client.resume(forked.session_id)
        assert await other.prompts_seen() == ["common past"]


# Two clients at one session.


def in_turn(chat: Chat) -> list[Any]:
    """Ids of the events since the prompt: what the resume is followed by may come before it to one client alone."""
    found = itertools.dropwhile(lambda event: event.type.value != "user.message", chat.events)
    return [event.id for event in found]


async def test_two_clients_see_the_same_events(endpoint: Endpoint) -> None:
    async with connected(endpoint) as first, connected(endpoint) as second:
        one = await first.create(streaming=True)
        two = await second.resume(one.id)
        two.events.clear()
        await one.turn("for both to see")
        await two.until("session.idle")
        assert in_turn(two) == in_turn(one)
        assert two.answer == "echo: for both to see"
        # And the other way round.
        await two.turn("from the second")
        assert contents(await one.session.get_events())[-2:] == ["from the second", "echo: from the second"]


async def test_one_client_leaves_and_the_other_stays(endpoint: Endpoint) -> None:
    async with connected(endpoint) as first, connected(endpoint) as second:
        one = await first.create()
        two = await second.resume(one.id)
        await two.session.disconnect()
        assert await one.turn("are you still there?") == "echo: are you still there?"
        await second.resume(one.id)
        await one.session.disconnect()
        three = await first.resume(one.id)
        assert await three.prompts_seen() == ["are you still there?"]


async def test_a_turn_goes_on_when_one_of_two_clients_vanishes(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as first, connected(endpoint) as second:
        one = await first.create()
        two = await second.resume(one.id)
        await one.send("[[gate: vanished]] who hears me?")
        await model.gate_reached("vanished")
        await first.vanish()
        model.open_gate("vanished")
        await two.until("session.idle")
        assert two.answer == "echo: who hears me?"


async def test_the_owner_of_a_tool_runs_it_whoever_asks(endpoint: Endpoint) -> None:
    async with connected(endpoint) as first, connected(endpoint) as second:
        one = await first.create(tools=[custom_tool("look", skip_permission=True)])
        two = await second.resume(one.id)
        assert await two.turn(CALL) == "tool said: look got there"


async def test_two_clients_bring_tools_of_their_own(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as first, connected(endpoint) as second:
        one = await first.create(tools=[custom_tool("look", skip_permission=True)])
        await second.resume(one.id, tools=[custom_tool("listen", skip_permission=True)])
        both = f'{CALL} [[tool: listen {{"x": "here"}}]]'
        assert await one.turn(both) == "tool said: look got there | listen got here"
        assert {"look", "listen"} <= set(requests_of(model, both)[0].tools)


async def test_a_tool_has_one_owner(endpoint: Endpoint) -> None:
    async with connected(endpoint) as first, connected(endpoint) as second:
        one = await first.create(tools=[custom_tool("look", skip_permission=True)])
        with pytest.raises(
            JsonRpcError, match="External tool name clash: look already registered by another connection"
        ):
            await second.resume(one.id, tools=[custom_tool("look", skip_permission=True)])


async def test_the_first_answer_to_a_question_counts(endpoint: Endpoint) -> None:
    waits = asyncio.Event()

    async def never(_: Any, __: Any) -> Any:
        await waits.wait()
        return {"answer": "too late", "wasFreeform": True}

    async def at_once(_: Any, __: Any) -> Any:
        return {"answer": "in time", "wasFreeform": True}

    async with connected(endpoint) as first, connected(endpoint) as second:
        one = await first.create(on_user_input_request=never)
        await second.resume(one.id, on_user_input_request=at_once)
        assert await one.turn('[[tool: ask_user {"question": "When?"}]]') == "tool said: User responded: in time"
        waits.set()
        assert await one.turn("go on") == "echo: go on"


# Creating.


async def test_create_names_the_session(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create(name="Named at birth")
        assert (await chat.session.rpc.name.get()).name == "Named at birth"


@pytest.mark.parametrize("session_id", ["with space", "a/b", "ü", "x" * 300])
async def test_not_everything_is_a_session_id(endpoint: Endpoint, session_id: str) -> None:
    async with connected(endpoint) as client:
        with pytest.raises(JsonRpcError):
            await client.create(session_id=session_id)
        assert (await client.sdk.ping("ok")).message == "pong: ok"


def contents(events: list[Any]) -> list[str]:
    """The words of both sides."""
    kinds = ("user.message", "assistant.message")
    return [event.data.content for event in events if event.type.value in kinds and event.data.content]
