"""The router as a script of the conversation: frames in, commands out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.events import SessionEvent
from aerodrome.gateway.commands import Command, Gone, Place, Request, Serve, ToClient, Told, ToOwn, ToRuntime
from aerodrome.gateway.router import Router
from aerodrome.policy.profiles import Profile
from aerodrome.wire.framing import FrameDecoder, Oversized
from aerodrome.wire.readable import MAX_DEPTH

OWN = {"mine", "also-mine"}


def make(max_requests: int = 100) -> Router:
    router = Router(lambda session_id: session_id in OWN, max_requests=max_requests)
    router.profile = Profile.ISOLATED
    return router


def bound(*sessions: str, link: str = "rt-1") -> Router:
    router = make()
    for session in sessions:
        router.sessions.take_part(session)
        router.sessions.bind(session, link)
        router.sessions.ready(session)
    return router


def body(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode()


def request(request_id: Any, method: str, **params: Any) -> bytes:
    return body(id=request_id, method=method, params=params)


def event(session: str, event_id: str, kind: str = "assistant.message", **data: Any) -> bytes:
    return body(
        method="session.event", params={"sessionId": session, "event": {"type": kind, "data": data, "id": event_id}}
    )


def frames(commands: Sequence[Command]) -> list[bytes]:
    """The bodies of what goes to the client."""
    return [
        found for command in commands if isinstance(command, ToClient) for found in FrameDecoder().feed(command.frame)
    ]


def to_client(commands: Sequence[Command]) -> list[dict[str, Any]]:
    return [json.loads(found) for found in frames(commands)]


def to_runtime(commands: Sequence[Command]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (command.link, json.loads(FrameDecoder().feed(command.frame)[0]))
        for command in commands
        if isinstance(command, ToRuntime)
    ]


def error_of(commands: Sequence[Command]) -> dict[str, Any]:
    (message,) = to_client(commands)
    return dict(message["error"])


def placed(commands: Sequence[Command]) -> Request:
    (command,) = commands
    assert isinstance(command, Place)
    return command.request


# --- requests of the client ---


def test_before_connect_nothing_is_answered() -> None:
    router = make()
    router.profile = None
    assert error_of(router.from_client(request(1, "ping")))["code"] == -32001
    assert error_of(router.from_client(request(2, "session.list")))["code"] == -32001
    (command,) = router.from_client(request(3, "connect", token="k"))
    assert isinstance(command, Serve)


def test_a_request_goes_to_the_link_of_its_session_byte_for_byte() -> None:
    router = bound("s1")
    router.sessions.take_part("s2")
    router.sessions.bind("s2", "rt-2")
    router.sessions.ready("s2")
    raw = (
        b'{ "jsonrpc" : "2.0","id":"x-1", "method":"session.getMessages","params":{"sessionId" : "s2","\\u00fc":1.50}}'
    )
    (command,) = router.from_client(raw)
    assert isinstance(command, ToRuntime)
    assert command.link == "rt-2"
    assert FrameDecoder().feed(command.frame) == [raw]
    answer = b'{"jsonrpc":"2.0", "id":"x-1","result":{"events":[1.0]}}'
    assert frames(router.from_runtime("rt-2", answer)) == [answer]
    assert len(router.unanswered) == 0


def test_a_request_of_a_session_that_is_being_loaded_waits_and_its_events_do_not() -> None:
    router = make()
    router.sessions.bind("s1", "rt-1")
    waiting = placed(router.from_client(request(1, "session.getMessages", sessionId="s1")))
    assert ids(router.from_runtime("rt-1", event("s1", "e1"))) == ["e1"]
    router.sessions.ready("s1")
    assert to_runtime(router.from_client(request(2, "session.getMessages", sessionId="s1")))
    assert to_runtime(router.send(waiting, "rt-1"))


def test_a_session_stays_where_it_is_until_its_requests_are_answered() -> None:
    held: list[str] = []

    def hold(waiting: Request) -> Callable[[], None]:
        held.append(waiting.method)
        return lambda: held.remove(waiting.method)

    router = Router(lambda _: False, hold, max_requests=10)
    router.profile = Profile.ISOLATED
    router.sessions.bind("s1", "rt-1")
    router.sessions.ready("s1")
    router.from_client(request(1, "session.getMessages", sessionId="s1"))
    router.from_client(request(2, "session.history.truncate", sessionId="s1"))
    assert held == ["session.getMessages", "session.history.truncate"]
    router.from_runtime("rt-1", body(id=2, result={}))
    assert held == ["session.getMessages"]
    router.lost("rt-1")
    assert held == []


def test_a_request_of_a_session_that_is_bound_nowhere_waits_to_be_placed() -> None:
    router = make()
    waiting = placed(router.from_client(request(1, "session.getMessages", sessionId="s1")))
    assert [waiting.session_id, waiting.link] == ["s1", None]
    assert to_runtime(router.send(waiting, "rt-9")) == [("rt-9", json.loads(waiting.body))]
    assert to_client(router.from_runtime("rt-9", body(id=1, result={}))) == [{"jsonrpc": "2.0", "id": 1, "result": {}}]


def test_an_answer_on_another_link_is_not_taken_for_the_client_s() -> None:
    router = bound("s1")
    router.from_client(request(1, "session.getMessages", sessionId="s1"))
    (command,) = router.from_runtime("rt-2", body(id=1, result="forged"))
    assert isinstance(command, ToOwn)
    assert len(router.unanswered) == 1


def test_an_id_in_use_and_ids_of_our_own_are_refused() -> None:
    router = bound("s1")
    router.from_client(request(1, "session.getMessages", sessionId="s1"))
    assert error_of(router.from_client(request(1, "session.getMessages", sessionId="s1")))["code"] == -32600
    assert error_of(router.from_client(request("aerodrome:1", "ping")))["code"] == -32600
    assert to_client(router.from_runtime("rt-1", body(id=1, result={})))[0]["result"] == {}
    assert to_runtime(router.from_client(request(1, "session.getMessages", sessionId="s1")))


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("session.shell.exec", {"sessionId": "s1", "command": "id"}),
        ("sessionFs.setProvider", {}),
        ("runtime.shutdown", {}),
        ("account.login", {}),
        ("user.settings.set", {}),
        ("no.such.method", {}),
        ("session.noSuchMethod", {"sessionId": "s1"}),
    ],
)
def test_what_policy_refuses_reaches_no_runtime(method: str, params: dict[str, Any]) -> None:
    error = error_of(bound("s1").from_client(request(1, method, **params)))
    assert error["data"] == {"code": "forbidden", "retryable": False}
    assert method in error["message"]


def test_parameters_that_policy_cleans_are_the_cleaned_ones() -> None:
    router = bound("s1")
    commands = router.from_client(request(1, "session.options.update", sessionId="s1", skipCustomInstructions=True))
    ((link, message),) = to_runtime(commands)
    assert [link, message["method"], message["params"]["sessionId"]] == ["rt-1", "session.options.update", "s1"]
    hostile = router.from_client(request(2, "session.options.update", sessionId="s1", availableTools=["builtin:*"]))
    assert not any("builtin:*" in json.dumps(message) for _, message in to_runtime(hostile))


@pytest.mark.parametrize(
    "params",
    [
        b'{"sessionId":"s1","sessionId":"s2"}',
        b'{"sessionId":"s1","session\\u0049d":"s2"}',
        b'{"session\\u0049d":"s1","sessionId":"s2"}',
    ],
)
def test_a_session_that_is_named_twice_is_sent_on_as_we_have_read_it(params: bytes) -> None:
    router = bound("s1")
    router.sessions.take_part("s2")
    router.sessions.bind("s2", "rt-2")
    router.sessions.ready("s2")
    commands = router.from_client(b'{"jsonrpc":"2.0","id":1,"method":"session.getMessages","params":%b}' % params)
    ((link, message),) = to_runtime(commands)
    (command,) = commands
    assert isinstance(command, ToRuntime)
    assert command.frame.count(b"sessionId") == 1
    assert [link, message["params"]] == ["rt-2", {"sessionId": "s2"}]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"id":1,"method":"session.getMessages","method":"session.mode.get","params":{"sessionId":"s1"}}',
        b'{"id":1,"method":"session.getMessages","m\\u0065thod":"session.mode.get","params":{"sessionId":"s1"}}',
        b'{"id":1,"params":{"sessionId":"s2"},"method":"session.mode.get","params":{"sessionId":"s1"}}',
        b'{"id":7,"id":1,"method":"session.mode.get","params":{"sessionId":"s1"}}',
    ],
)
def test_a_method_that_is_named_twice_is_sent_on_as_we_have_read_it(raw: bytes) -> None:
    (command,) = bound("s1").from_client(raw)
    assert isinstance(command, ToRuntime)
    (sent,) = FrameDecoder().feed(command.frame)
    assert sent == b'{"jsonrpc":"2.0","id":1,"method":"session.mode.get","params":{"sessionId":"s1"}}'


def test_a_method_that_is_refused_is_not_smuggled_behind_one_that_is_not() -> None:
    raw = b'{"id":1,"method":"session.getMessages","params":{"sessionId":"s1"},"method":"session.shell.exec"}'
    assert error_of(bound("s1").from_client(raw))["data"]["code"] == "forbidden"


def test_more_requests_than_allowed_are_refused_and_the_others_go_on() -> None:
    router = make(max_requests=2)
    router.sessions.bind("s1", "rt-1")
    router.sessions.ready("s1")
    for number in range(2):
        assert to_runtime(router.from_client(request(number, "session.getMessages", sessionId="s1")))
    error = error_of(router.from_client(request(9, "session.getMessages", sessionId="s1")))
    assert [error["data"]["code"], error["data"]["retryable"]] == ["rate_limited", True]
    router.from_runtime("rt-1", body(id=0, result={}))
    assert to_runtime(router.from_client(request(9, "session.getMessages", sessionId="s1")))


def test_what_the_runtime_would_leave_unanswered_is_refused() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH + 5):
        deep = [deep]
    router = bound("s1")
    assert error_of(router.from_client(request(1, "session.log", sessionId="s1", message=deep)))["code"] == -32602
    router.from_runtime("rt-1", body(id=7, method="hooks.invoke", params={"sessionId": "s1"}))
    ((_, answer),) = to_runtime(router.from_client(body(id=1, result=deep)))
    assert [answer["id"], "error" in answer] == [7, True]


@pytest.mark.parametrize("value", [b"1e999", b"9" * 400, b"-9223372036854775809", b"[%b1]" % (b"1," * 50_000)])
def test_a_value_that_the_runtime_would_leave_unanswered_is_refused(value: bytes) -> None:
    router = bound("s1")
    written = b'{"jsonrpc":"2.0","id":5,"method":"%b","params":{"sessionId":"s1","message":"1e999","x":%b}}'
    for method in (b"session.log", b"session.send", b"session.abort"):
        assert error_of(router.from_client(written % (method, value)))["code"] == -32602
    router.from_runtime("rt-1", body(id=7, method="hooks.invoke", params={"sessionId": "s1"}))
    ((_, answer),) = to_runtime(router.from_client(b'{"jsonrpc":"2.0","id":1,"result":%b}' % value))
    assert [answer["id"], "error" in answer] == [7, True]


def test_numbers_in_texts_and_long_fractions_are_no_flaw() -> None:
    router = bound("s1")
    for value in (b'"1e999"', b'"\\"' + b"9" * 30 + b'"', b"0." + b"1" * 40, b"18446744073709551615", b"1e300"):
        written = b'{"jsonrpc":"2.0","id":5,"method":"session.log","params":{"sessionId":"s1","x":%b}}' % value
        assert to_runtime(router.from_client(written)), value
        router.from_runtime("rt-1", body(id=5, result={}))


def test_half_a_character_is_replaced_before_it_is_passed_on() -> None:
    written = rb'{"jsonrpc":"2.0","id":5,"method":"session.log","params":{"sessionId":"s1","x":"\ud800 \\ud800"}}'
    ((_, sent),) = to_runtime(bound("s1").from_client(written))
    assert sent["params"]["x"] == "\ufffd \\ud800"


def test_a_request_without_its_version_gets_one() -> None:
    ((_, sent),) = to_runtime(
        bound("s1").from_client(b'{"id":5,"method":"session.log","params":{"sessionId":"s1","message":"m"}}')
    )
    assert sent["jsonrpc"] == "2.0"


def test_an_id_of_more_than_64_bits_is_refused() -> None:
    (message,) = to_client(bound("s1").from_client(request(2**64, "session.getMessages", sessionId="s1")))
    assert [message["id"], message["error"]["code"]] == [None, -32600]


def test_a_body_that_could_be_read_in_two_ways_and_has_a_flaw_is_refused() -> None:
    written = b'{"jsonrpc":"2.0","id":5,"method":"session.log","params":{"sessionId":"s1","sessionId":"s1","x":1e999}}'
    assert error_of(bound("s1").from_client(written))["code"] == -32602


def test_an_error_of_another_shape_reaches_the_runtime_as_an_error() -> None:
    router = bound("s1")
    router.from_runtime("rt-1", body(id=7, method="hooks.invoke", params={"sessionId": "s1"}))
    ((_, answer),) = to_runtime(router.from_client(body(id=1, error="no")))
    assert isinstance(answer["error"]["code"], int)


@pytest.mark.parametrize("garbage", [b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"id":1}', b'{"jsonrpc":"2.0"}', b"1"])
def test_garbage_gets_an_error_without_an_id(garbage: bytes) -> None:
    (message,) = to_client(bound("s1").from_client(garbage)) or [{"id": None, "error": {}}]
    assert message["id"] is None


def test_a_session_method_without_a_session_is_an_error() -> None:
    assert error_of(bound("s1").from_client(request(1, "session.getMessages")))["code"] == -32602
    assert error_of(bound("s1").from_client(request(1, "session.getMessages", sessionId=7)))["code"] == -32602


def test_an_answer_over_the_limit_is_an_error() -> None:
    router = bound("s1")
    router.from_client(request(5, "session.getMessages", sessionId="s1"))
    error = error_of(router.from_runtime("rt-1", Oversized(b'{"jsonrpc":"2.0","id":5,"result":{"id":7,', 1 << 30)))
    assert error["data"]["code"] == "too_large"
    assert len(router.unanswered) == 0
    (own,) = router.from_runtime("rt-1", Oversized(b'{"jsonrpc":"2.0","id":"aerodrome:1","result":{"id":7,', 1 << 30))
    assert isinstance(own, ToOwn)
    assert own.message.is_error


def test_a_request_or_an_event_over_the_limit_does_not_reach_the_client() -> None:
    router = bound("s1")
    large = Oversized(b'{"jsonrpc":"2.0","id":5,"method":"hooks.invoke","params":{"sessionId":"s1"', 1 << 30)
    ((_, answer),) = to_runtime(router.from_runtime("rt-1", large))
    assert [answer["id"], "error" in answer] == [5, True]
    large = Oversized(b'{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"s1","event":{"id":"', 1 << 30)
    assert not router.from_runtime("rt-1", large)


def test_a_request_that_is_not_answered_is_given_up_at_last() -> None:
    router = bound("s1")
    router.from_client(request(1, "session.getMessages", sessionId="s1"))
    router.from_client(request(2, "session.history.truncate", sessionId="s1"))
    router.from_client(request(3, "session.getMessages", sessionId="s2"))  # waits for its session
    assert router.overdue(100.0) == []
    (message,) = to_client(router.overdue(100.0))
    assert [message["id"], message["error"]["data"]["code"]] == [1, "runtime_unavailable"]
    (message,) = to_client(router.overdue(3500.0))
    assert message["id"] == 2
    assert len(router.unanswered) == 1


def test_what_asks_the_model_waits_for_a_place_wherever_its_session_is() -> None:
    router = bound("s1")
    for method in ("session.ui.ephemeralQuery", "session.history.compact", "session.history.summarizeForHandoff"):
        assert placed(router.from_client(request(method, method, sessionId="s1"))).method == method


def test_a_session_s_runtime_is_heard_and_no_other_that_has_one_of_the_same_name() -> None:
    router = make()
    router.sessions.take_part("s1")
    assert not router.from_runtime("rt-2", event("s1", "e1"))
    router.sessions.bind("s1", "rt-1")
    assert not router.from_runtime("rt-2", event("s1", "e2"))
    router.sessions.unbind("s1")
    assert ids(router.from_runtime("rt-1", event("s1", "e3"))) == ["e3"]
    assert not router.from_runtime("rt-2", event("s1", "e4"))


def test_while_hooks_are_refused_the_runtime_gets_an_error_and_the_client_is_not_asked() -> None:
    router = bound("s1", "s2")

    def hook(number: int, session: str = "s1") -> bytes:
        return body(id=number, method="hooks.invoke", params={"sessionId": session})

    (first,) = to_client(router.from_runtime("rt-1", hook(7)))
    assert router.questions.holds_up("s1")
    ((_, answer),) = to_runtime(router.refuse_hooks("s1", "aborted"))
    assert [answer["id"], answer["error"]["message"]] == [7, "aborted"]
    assert not router.questions.holds_up("s1")
    assert not router.from_client(body(id=first["id"], result={}))  # too late
    ((_, answer),) = to_runtime(router.from_runtime("rt-1", hook(8)))
    assert answer["id"] == 8
    assert to_client(router.from_runtime("rt-1", hook(9, "s2")))
    assert not router.refuse_hooks("s1", None)
    assert to_client(router.from_runtime("rt-1", hook(10)))


# --- requests of a runtime ---


def test_requests_of_two_runtimes_with_one_id_do_not_collide() -> None:
    router = bound("s1")
    router.sessions.take_part("s2")
    router.sessions.bind("s2", "rt-2")
    router.sessions.ready("s2")
    (first,) = to_client(router.from_runtime("rt-1", body(id=1, method="hooks.invoke", params={"sessionId": "s1"})))
    (second,) = to_client(router.from_runtime("rt-2", body(id=1, method="hooks.invoke", params={"sessionId": "s2"})))
    assert first["id"] != second["id"]
    assert to_runtime(router.from_client(body(id=second["id"], result={"b": 1.0}))) == [
        ("rt-2", {"jsonrpc": "2.0", "id": 1, "result": {"b": 1.0}})
    ]
    assert to_runtime(router.from_client(body(id=first["id"], error={"code": 1, "message": "no"}))) == [
        ("rt-1", {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "no"}})
    ]


def test_an_answer_to_nobody_and_a_second_answer_go_nowhere() -> None:
    router = bound("s1")
    (asked,) = to_client(router.from_runtime("rt-1", body(id=5, method="hooks.invoke", params={"sessionId": "s1"})))
    assert router.from_client(body(id=999, result={})) == ()
    assert router.from_client(body(id="x", result={})) == ()
    assert to_runtime(router.from_client(body(id=asked["id"], result={})))
    assert router.from_client(body(id=asked["id"], result={})) == ()


def test_a_request_about_a_session_that_is_not_the_client_s_is_refused_in_its_name() -> None:
    router = bound("s1")
    ((link, message),) = to_runtime(
        router.from_runtime("rt-1", body(id=5, method="userInput.request", params={"sessionId": "other"}))
    )
    assert [link, message["id"], message["error"]["code"]] == ["rt-1", 5, -32601]
    assert to_runtime(router.from_runtime("rt-1", body(id=6, method="llmInference.httpRequestStart", params={})))


# --- notifications ---


def test_events_of_own_sessions_pass_byte_for_byte_and_once() -> None:
    router = bound("s1")
    raw = event("s1", "e1", content="h\u00e9 \u2028")
    assert frames(router.from_runtime("rt-1", raw)) == [raw]
    assert router.from_runtime("rt-1", raw) == ()
    assert router.from_runtime("rt-1", event("other", "e2")) == ()


def test_a_session_s_events_come_from_its_present_link_only() -> None:
    router = bound("s1")
    router.sessions.bind("s1", "rt-2")
    assert router.from_runtime("rt-1", event("s1", "e1")) == ()
    assert router.from_runtime("rt-2", event("s1", "e2"))


def test_lifecycle_is_told_of_own_sessions_only() -> None:
    router = bound("s1")

    def lifecycle(session: str) -> Sequence[Command]:
        return router.from_runtime(
            "rt-1", body(method="session.lifecycle", params={"type": "session.updated", "sessionId": session})
        )

    assert lifecycle("s1")
    assert lifecycle("mine")
    assert lifecycle("somebody-else-s") == ()


def test_of_the_host_only_tasks_of_own_sessions_are_told() -> None:
    router = bound("s1")

    def host_event(kind: str, session: str) -> Sequence[Command]:
        scope = {"type": "session", "sessionId": session}
        return router.from_runtime("rt-1", body(method="host.event", params={"scope": scope, "kind": kind}))

    assert host_event("task_transition", "s1")
    assert host_event("task_transition", "other") == ()
    assert host_event("plugin_caches_invalidated", "s1") == ()
    assert router.from_runtime("rt-1", body(method="gitHubTelemetry.event", params={"sessionId": "s1"})) == ()


# --- loss ---


def test_after_a_loss_reads_are_placed_anew_and_the_rest_is_answered_as_interrupted() -> None:
    router = bound("s1", "s2")
    router.sessions.bind("s2", "rt-2")
    router.sessions.ready("s2")
    router.from_client(request(1, "session.getMessages", sessionId="s1"))
    router.from_client(request(2, "session.history.truncate", sessionId="s1"))
    router.from_client(request(3, "session.getMessages", sessionId="s2"))
    done: list[int] = []
    commands = router.lost("rt-1")
    (again,) = [command.request for command in commands if isinstance(command, Place)]
    assert again.on_done is None  # what was held for it was held for the lost runtime
    again.on_done = lambda: done.append(1)
    assert again.id == 1
    (message,) = to_client(commands)
    assert [message["id"], message["error"]["data"]["code"]] == [2, "turn_interrupted"]
    router.send(again, "rt-3")
    assert done == []
    router.from_runtime("rt-3", body(id=1, result={}))
    assert done == [1]
    assert to_client(router.from_runtime("rt-2", body(id=3, result={})))
    assert not router.sessions.is_bound("s1")
    assert router.sessions.is_bound("s2")


def test_an_answer_to_a_question_of_a_lost_runtime_goes_nowhere() -> None:
    router = bound("s1")
    (asked,) = to_client(router.from_runtime("rt-1", body(id=5, method="hooks.invoke", params={"sessionId": "s1"})))
    router.lost("rt-1")
    assert router.from_client(body(id=asked["id"], result={})) == ()


def told(*ids: str) -> list[SessionEvent]:
    return [SessionEvent(i, "x", json.dumps({"type": "x", "data": {}, "id": i}).encode()) for i in ids]


def host_event(event_id: str, kind: str, **data: Any) -> SessionEvent:
    return SessionEvent(event_id, kind, json.dumps({"type": kind, "data": data, "id": event_id}).encode())


def ids(commands: Sequence[Command]) -> list[str]:
    return [message["params"]["event"]["id"] for message in to_client(commands)]


def test_what_a_lost_runtime_did_not_tell_is_told_once_and_in_order() -> None:
    router = bound("s1")
    for number in (1, 2):
        router.from_runtime("rt-1", event("s1", f"e{number}"))
    router.lost("rt-1")
    assert ids(router.sessions.catch_up("s1", told("e0", "e1", "e2", "e3", "e4"))) == ["e3", "e4"]
    assert router.sessions.catch_up("s1", told("e3", "e4")) == []
    # What was still on its way on the lost link comes after; only what is new is told.
    assert router.from_runtime("rt-1", event("s1", "e4")) == ()
    assert ids(router.from_runtime("rt-1", event("s1", "e5"))) == ["e5"]
    assert ids(router.sessions.tell("s1", told("e5", "e6"))) == ["e6"]
    router.sessions.bind("s1", "rt-2")
    assert router.sessions.tell("s1", told("e7")) == ()
    assert ids(router.sessions.tell("s1", told("e7"), from_host=True)) == ["e7"]


def prompt_sent(router: Router, number: int, link: str) -> None:
    """The client's prompt is on its way to where the session runs."""
    (serve,) = router.from_client(request(number, "session.send", sessionId="s1", prompt="hello"))
    assert isinstance(serve, Serve)
    serve.request.session_id = "s1"
    router.send(serve.request, link)


def test_prompts_that_a_lost_node_had_taken_are_known() -> None:
    """Of those that were taken: one was answered, one stands in the history, one had not begun."""
    link = "node:b-1"
    router = bound("s1", link=link)
    answers: list[dict[str, Any]] = [{"result": {"messageId": message}} for message in ("m1", "m2", "m3")]
    for number, answer in enumerate([*answers, {"error": {"code": -32000, "message": "no"}}]):
        prompt_sent(router, number, link)
        router.from_runtime(link, body(id=number, **answer))
    router.from_runtime(link, event("s1", "e1", "user.message", messageId="m1"))
    router.from_runtime(link, event("s1", "e2", "session.idle"))
    router.sessions.hold_back("s1")
    raw = json.dumps({"type": "user.message", "data": {"messageId": "m2"}, "id": "e3"}).encode()
    assert router.sessions.lost_prompts("s1", [SessionEvent("e3", "user.message", raw)]) == ["m3"]
    router.sessions.settled("s1")
    assert router.sessions.lost_prompts("s1", []) == []


def test_a_prompt_is_known_to_have_begun_or_ended_also_when_its_answer_comes_behind_that() -> None:
    link = "node:b-1"
    router = bound("s1", link=link)

    def prompt(number: int) -> bytes:
        prompt_sent(router, number, link)
        return body(id=number, result={"messageId": f"m{number}"})

    answer = prompt(1)
    assert not router.sessions.under_way
    router.from_runtime(link, event("s1", "e1", "user.message", messageId="m1"))
    assert router.sessions.under_way
    router.from_runtime(link, answer)
    router.from_runtime(link, event("s1", "e2", "session.idle"))
    assert not router.sessions.under_way, "it was answered while it ran"
    answer = prompt(2)
    router.from_runtime(link, event("s1", "e3", "user.message", messageId="m2"))
    router.from_runtime(link, event("s1", "e4", "session.idle"))
    router.from_runtime(link, answer)
    assert not router.sessions.under_way, "it was answered behind its end"
    answer = prompt(3)
    router.from_runtime(link, event("s1", "e5", "session.error", originatingMessageId="m3"))
    router.from_runtime(link, event("s1", "e6", "session.idle"))
    router.from_runtime(link, answer)
    assert not router.sessions.under_way, "it was answered behind the error that ended it"
    router.from_runtime(link, prompt(4))
    assert router.sessions.under_way, "it has not begun"
    router.sessions.hold_back("s1")
    assert router.sessions.lost_prompts("s1", []) == ["m4"]


def test_an_abort_ends_the_prompts_that_wait_in_a_runtime_elsewhere() -> None:
    link = "node:b-1"
    router = bound("s1", link=link)
    for number in (1, 2):
        prompt_sent(router, number, link)
        router.from_runtime(link, body(id=number, result={"messageId": f"m{number}"}))
    router.from_runtime(link, event("s1", "e1", "user.message", messageId="m1"))
    router.from_runtime(link, event("s1", "e2", "abort"))
    router.from_runtime(link, event("s1", "e3", "session.idle"))
    assert not router.sessions.under_way
    router.sessions.hold_back("s1")
    assert router.sessions.lost_prompts("s1", []) == []


def test_of_a_session_that_runs_here_the_node_knows_better_whether_it_is_at_work() -> None:
    router = bound("s1")
    router.from_runtime("rt-1", event("s1", "e1", "assistant.turn_start"))
    router.sessions.unbind("s1")
    assert not router.sessions.under_way
    router.sessions.doubt("s1", ["m1"])
    assert router.sessions.under_way
    router.sessions.assured("s1", ["m1"])
    assert not router.sessions.under_way


def test_trace_that_nobody_has_looked_at_is_no_part_of_a_message_to_the_client() -> None:
    router = bound("s1")
    router.sessions.unbind("s1")
    good = SessionEvent("e1", "model.log", b'{"type":"model.log"}', ephemeral=True)
    forged = SessionEvent("e2", "model.log", b'{"type":"model.log"}},"x":{', ephemeral=True)
    assert [found["params"]["event"] for found in to_client(router.sessions.tell("s1", [good, forged]))] == [
        {"type": "model.log"}
    ]


def test_a_prompt_that_was_lost_with_its_node_is_not_ended_by_the_next_nodes_idle() -> None:
    link = "node:b-1"
    router = bound("s1", link=link)
    prompt_sent(router, 1, link)
    router.from_runtime(link, body(id=1, result={"messageId": "m1"}))
    router.from_runtime(link, event("s1", "e1", "user.message", messageId="m1"))
    router.sessions.hold_back("s1")
    router.sessions.bind("s1", "node:c-1")
    router.sessions.ready("s1")
    router.sessions.release("s1", [])
    router.from_runtime("node:c-1", event("s1", "e2", "user.message", messageId="m2"))
    assert router.from_runtime("node:c-1", event("s1", "e3", "session.idle")) == ()
    assert router.sessions.is_idle_withheld("s1")
    assert router.sessions.lost_prompts("s1", []) == ["m1"]
    lost = host_event("e4", "session.error", originatingMessageId="m1")
    assert ids(router.sessions.tell("s1", [lost], from_host=True)) == ["e4", "e3"]
    assert router.sessions.settled("s1") == ()
    assert not router.sessions.has_doubts("s1")


def test_what_was_in_doubt_and_is_stored_ends_with_the_idle_that_was_withheld() -> None:
    router = bound("s1")
    router.from_runtime("rt-1", event("s1", "e1", "user.message", messageId="m1"))
    router.sessions.hold_back("s1")
    router.sessions.doubt("s1", ["m1", "m2"])
    router.sessions.bind("s1", "rt-2")
    router.sessions.ready("s1")
    router.sessions.release("s1", [])
    assert router.from_runtime("rt-2", event("s1", "e2", "session.idle")) == ()
    stored = [host_event(f"h{number}", "user.message", messageId=f"m{number}") for number in (1, 2)]
    assert router.sessions.lost_prompts("s1", stored) == []
    assert ids(router.sessions.settled("s1")) == ["e2"]
    assert not router.sessions.at_work("s1")


def test_an_idle_that_was_withheld_is_not_told_when_work_has_begun_again() -> None:
    router = bound("s1")
    router.sessions.doubt("s1", ["m1"])
    assert router.from_runtime("rt-1", event("s1", "e1", "session.idle")) == ()
    assert ids(router.from_runtime("rt-1", event("s1", "e2", "user.message", messageId="m1"))) == ["e2"]
    assert ids(router.from_runtime("rt-1", event("s1", "e3", "session.idle"))) == ["e3"]
    assert router.sessions.settled("s1") == ()


def test_a_prompt_that_is_sent_again_is_in_doubt_until_a_runtime_has_it() -> None:
    router = bound("s1")
    router.from_runtime("rt-1", event("s1", "e1", "user.message", messageId="m1"))
    router.sessions.doubt("s1", ["m1"])
    router.sessions.alias("s1", "m1", None)
    router.sessions.alias("s1", "m1", "m1")  # it could not be sent
    assert router.from_runtime("rt-1", event("s1", "e2", "session.idle")) == ()
    router.sessions.alias("s1", "m1", None)
    router.from_runtime("rt-1", event("s1", "e3", "user.message", messageId="m7"))
    router.sessions.alias("s1", "m1", "m7")
    assert ids(router.from_runtime("rt-1", event("s1", "e4", "session.idle"))) == ["e4"]


def test_a_prompt_whose_end_the_client_was_told_is_not_in_doubt() -> None:
    link = "node:b-1"
    router = bound("s1", link=link)
    for number in (1, 2):
        prompt_sent(router, number, link)
        router.from_runtime(link, body(id=number, result={"messageId": f"m{number}"}))
    router.from_runtime(link, event("s1", "e1", "session.error", originatingMessageId="m1"))
    router.sessions.hold_back("s1")
    router.sessions.bind("s1", "node:c-1")
    router.sessions.ready("s1")
    router.from_runtime("node:c-1", event("s1", "e2", "session.error", originatingMessageId="m2"))
    assert not router.sessions.has_doubts("s1")
    assert router.sessions.lost_prompts("s1", []) == []


def test_a_client_that_came_later_is_not_told_what_was_before() -> None:
    router = bound("s1")
    assert router.sessions.catch_up("s1", told("e1", "e2")) == ()


def test_our_own_events_are_not_the_client_s() -> None:
    router = bound("s1")
    ours = SessionEvent("a", "aerodrome.turn_retried", b'{"type":"aerodrome.turn_retried","id":"a"}')
    assert router.sessions.tell("s1", [ours], from_host=True) == []


def test_a_prompt_that_was_sent_again_keeps_the_id_the_client_knows() -> None:
    first, latest = "1" * 36, "2" * 36
    router = bound("s1")
    router.sessions.alias("s1", first, None)
    assert router.from_runtime("rt-1", event("s1", "e1", messageId=latest)) == ()
    assert router.from_runtime("rt-1", body(id=1, method="hooks.invoke", params={"sessionId": "s1"})) == ()
    released = to_client(router.sessions.alias("s1", first, latest))
    assert released[0]["params"]["event"]["data"] == {"messageId": first}
    assert released[1]["method"] == "hooks.invoke"
    (message,) = to_client(router.from_runtime("rt-1", event("s1", "e2", originatingMessageId=latest)))
    assert message["params"]["event"]["data"] == {"originatingMessageId": first}


def test_a_client_that_has_gone_is_owed_nothing() -> None:
    router = bound("s1")
    done: list[int] = []
    waiting = placed(router.from_client(request(1, "session.getMessages", sessionId="s9")))
    waiting.on_done = lambda: done.append(1)
    router.close()
    assert [done, len(router.unanswered)] == [[1], 0]
    assert router.send(waiting, "rt-1") == ()
    assert router.answered(waiting, b"") == ()


# --- whatever comes ---

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0"),
        "id": st.integers(0, 5) | st.text(max_size=3) | st.none(),
        "method": st.sampled_from(["session.event", "session.getMessages", "hooks.invoke", "ping", "x"]) | json_values,
        "params": st.fixed_dictionaries(
            {},
            optional={"sessionId": st.sampled_from(["s1", "s2", 1, None]), "event": json_values, "scope": json_values},
        )
        | json_values,
        "result": json_values,
        "error": json_values,
    },
)


@given(st.lists(st.tuples(st.sampled_from(["client", "rt-1", "rt-2", "lost"]), messages | json_values), max_size=20))
def test_no_message_breaks_it_and_nobody_gets_an_answer_twice(script: list[tuple[str, Any]]) -> None:
    router = bound("s1")
    router.sessions.take_part("s2")
    router.sessions.bind("s2", "rt-2")
    router.sessions.ready("s2")
    asked: list[Any] = []
    answered: list[Any] = []
    for source, message in script:
        raw = json.dumps(message).encode()
        if source == "client":
            commands = router.from_client(raw)
            if isinstance(message, dict) and isinstance(message.get("method"), str) and message.get("id") is not None:
                asked.append(message["id"])
        elif source == "lost":
            commands = router.lost("rt-1")
        else:
            commands = router.from_runtime(source, raw)
        answers = [answer for answer in to_client(commands) if "method" not in answer]
        answered.extend(answer["id"] for answer in answers if answer.get("id") is not None)
    for request_id in set(answered):
        assert answered.count(request_id) <= asked.count(request_id)


# --- members ---


def as_reader(*sessions: str) -> Router:
    router = bound(*sessions)
    for session in sessions:
        router.restrict(session, reads_only=True, unasked=True)
    return router


def test_a_reader_reads_and_does_not_write() -> None:
    router = as_reader("s1")
    assert len(to_runtime(router.from_client(request(1, "session.getMessages", sessionId="s1")))) == 1
    said = error_of(router.from_client(request(2, "session.mode.set", sessionId="s1", mode="plan")))
    assert (said["code"], said["data"]["code"]) == (-32601, "forbidden")
    assert len(router.unanswered) == 1
    router.restrict("s1", reads_only=False, unasked=True)
    assert len(to_runtime(router.from_client(request(3, "session.mode.set", sessionId="s1", mode="plan")))) == 1


def test_a_reader_that_waits_for_its_session_does_not_write_either() -> None:
    router = as_reader("s1")
    router.sessions.unbind("s1")
    assert error_of(router.from_client(request(1, "session.mode.set", sessionId="s1")))["data"]["code"] == "forbidden"
    placed(router.from_client(request(2, "session.mode.get", sessionId="s1")))


def test_what_sdks_say_behind_a_resume_is_answered_for_a_reader_and_goes_nowhere() -> None:
    router = as_reader("s1")
    options = {"skipCustomInstructions": True, "installedPlugins": [], "coauthorEnabled": False}
    (answer,) = to_client(router.from_client(request(1, "session.options.update", sessionId="s1", **options)))
    assert answer["result"] == {"success": True}
    (answer,) = to_client(
        router.from_client(request(2, "session.eventLog.registerInterest", sessionId="s1", eventType="x"))
    )
    assert answer["result"] == {"handle": "reader"}
    said = error_of(router.from_client(request(3, "session.options.update", sessionId="s1", model="other")))
    assert said["data"]["code"] == "forbidden"


@pytest.mark.parametrize("told", [False, True])
def test_a_reader_is_told_what_happens_and_asked_nothing(told: bool) -> None:
    router = as_reader("s1")

    def hear(event_id: str, kind: str) -> Sequence[Command]:
        raw = event("s1", event_id, kind)
        if not told:
            return router.from_runtime("rt-1", raw)
        inner = json.dumps(json.loads(raw)["params"]["event"]).encode()
        return router.sessions.tell("s1", [SessionEvent(event_id, kind, inner, False)], from_host=True)

    assert len(to_client(hear("e1", "assistant.message"))) == 1
    assert not hear("e2", "permission.requested")
    assert not hear("e3", "external_tool.requested")
    assert not hear("e4", "command.execute")
    assert len(to_client(hear("e5", "permission.completed"))) == 1
    ((link, answer),) = to_runtime(router.from_runtime("rt-1", request(7, "hooks.invoke", sessionId="s1")))
    assert (link, answer["id"], answer["error"]["code"]) == ("rt-1", 7, -32601)


def test_who_is_expelled_hears_nothing_more_and_holds_nobody_up() -> None:
    router = bound("s1", "s2")
    router.from_client(request(1, "session.getMessages", sessionId="s1"))
    router.from_client(request(2, "session.getMessages", sessionId="s2"))
    (asked,) = to_client(router.from_runtime("rt-1", request(7, "hooks.invoke", sessionId="s1")))
    own, _ = router.ask("s1", "systemMessage.transform", b"{}")
    withdrawn = router.expel("s1")
    ((link, answer),) = to_runtime(withdrawn)
    assert (link, answer["id"], "error" in answer) == ("rt-1", 7, True)
    (told,) = (command for command in withdrawn if isinstance(command, Told))
    assert told.number == own
    assert told.message.is_error
    # Its late answers go nowhere, and what it has asked is not answered to it.
    assert not router.from_client(body(id=asked["id"], result={"decision": "allow"}))
    late = error_of(router.from_runtime("rt-1", body(id=1, result={"events": ["secret"]})))
    assert late["data"]["code"] == "not_found"
    assert to_client(router.from_runtime("rt-1", body(id=2, result={"events": []})))[0]["result"] == {"events": []}
    assert not router.from_runtime("rt-1", event("s1", "e9"))
    placed(router.from_client(request(3, "session.getMessages", sessionId="s1")))


# --- other nodes ---

NODE = "node:b-1"


def stored(event_id: str) -> SessionEvent:
    raw = json.dumps({"type": "assistant.message", "data": {}, "id": event_id}).encode()
    return SessionEvent(event_id, "assistant.message", raw, cursor=event_id)


def told_ids(commands: Sequence[Command]) -> list[str]:
    return [message["params"]["event"]["id"] for message in to_client(commands)]


def test_what_another_node_says_of_a_session_s_life_is_passed_on() -> None:
    """That node knows whose it is, also when the client takes part in it no more."""
    router = make()
    deleted = body(method="session.lifecycle", params={"type": "session.deleted", "sessionId": "left"})
    assert to_client(router.from_runtime(NODE, deleted)) == [json.loads(deleted)]
    assert Gone("left", NODE) in router.from_runtime(NODE, deleted)
    assert router.from_runtime("rt-1", deleted) == ()


def test_what_was_missed_while_a_session_changed_nodes_is_told_in_order_and_once() -> None:
    router = bound("s", link=NODE)
    assert told_ids(router.from_runtime(NODE, event("s", "e1"))) == ["e1"]
    router.sessions.hold_back("s")
    assert router.sessions.known("s") == ["e1"]
    router.sessions.bind("s", "node:c-1")
    assert router.from_runtime("node:c-1", event("s", "e3")) == ()
    # That node goes, too: what it said is held, and the client does not have it.
    router.lost("node:c-1")
    router.sessions.hold_back("s")
    assert router.sessions.known("s") == ["e1"]
    router.sessions.bind("s", "node:d-1")
    assert router.from_runtime("node:d-1", event("s", "e5")) == ()
    assert router.sessions.held_bytes == len(event("s", "e3")) + len(event("s", "e5"))
    missed = [stored(event_id) for event_id in ("e2", "e3", "e4", "e5", "e6")]
    assert told_ids(router.sessions.release("s", missed)) == ["e2", "e3", "e4", "e5", "e6"]
    assert router.sessions.held_bytes == 0
    assert router.from_runtime("node:d-1", event("s", "e6")) == ()
    assert told_ids(router.from_runtime("node:d-1", event("s", "e7"))) == ["e7"]
    router.sessions.hold_back("s")
    assert router.sessions.known("s")[0] == "e7"


def test_a_long_answer_does_not_push_out_what_a_client_is_known_to_have() -> None:
    router = bound("s", link=NODE)
    router.from_runtime(NODE, event("s", "e1"))
    for number in range(5000):
        piece = {"type": "assistant.message_delta", "data": {}, "id": f"d{number}", "ephemeral": True}
        router.from_runtime(NODE, body(method="session.event", params={"sessionId": "s", "event": piece}))
    router.sessions.hold_back("s")
    assert router.sessions.known("s") == ["e1"]


@pytest.mark.parametrize("code", ["session_moved", "draining"])
def test_what_another_node_gives_back_is_placed_anew_and_what_a_runtime_says_so_is_not(code: str) -> None:
    for link in (NODE, "rt-1"):
        router = bound("s", link=link)
        router.from_client(request(1, "session.getMessages", sessionId="s"))
        commands = router.from_runtime(link, body(id=1, error={"code": -32000, "message": "", "data": {"code": code}}))
        if link == NODE:
            assert placed(commands).returned == 1
            assert len(router.unanswered) == 1
        else:
            assert error_of(commands)["data"] == {"code": code}


def test_what_a_runtime_says_of_a_session_that_was_taken_from_it_is_void() -> None:
    """It goes on after a refused write, and says that its turn has ended."""
    router = bound("s1")
    assert to_client(router.from_runtime("rt-1", event("s1", "e1")))
    router.sessions.cut_off("s1", "rt-0")
    assert to_client(router.from_runtime("rt-1", event("s1", "e2")))
    router.sessions.unbind("s1")
    assert to_client(router.from_runtime("rt-1", event("s1", "e3")))  # as it is being unloaded
    router.sessions.cut_off("s1", "rt-1")
    assert router.from_runtime("rt-1", event("s1", "e4", "session.idle")) == ()
    router.sessions.bind("s1", "rt-2")
    assert to_client(router.from_runtime("rt-2", event("s1", "e5")))
    assert router.from_runtime("rt-1", event("s1", "e6")) == ()
