from __future__ import annotations

import json
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from aerodrome._util.surrogates import replace_lone_escapes, replace_lone_surrogates
from aerodrome.events import SessionEvent
from aerodrome.wire import envelope
from aerodrome.wire.envelope import EnvelopeError
from aerodrome.wire.framing import FrameDecoder
from aerodrome.wire.readable import MAX_DEPTH

#: Text as JavaScript may hold it, lone surrogates and all.
TEXT = st.text(alphabet=st.characters(), max_size=20) | st.text(
    alphabet=st.characters(categories=["Cs", "Lu", "So"]), max_size=6
)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)
IDS = st.integers(-(2**70), 2**70) | st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def body_of(frame: bytes) -> bytes:
    (body,) = FrameDecoder().feed(frame)
    return body


def sane(value: Any) -> Any:
    """The value with its lone surrogates replaced, as it crosses the wire."""
    if isinstance(value, str):
        return replace_lone_surrogates(value)
    if isinstance(value, list):
        return [sane(item) for item in value]
    if isinstance(value, dict):
        return {sane(name): sane(item) for name, item in value.items()}
    return value


# --- what we write, somebody else reads ---


@given(request_id=IDS, method=st.text(alphabet=st.characters(exclude_categories=["Cs"])), params=VALUES)
def test_the_standard_library_reads_what_we_ask(request_id: int | str, method: str, params: Any) -> None:
    read = json.loads(body_of(envelope.request_frame(request_id, method, params)).decode())
    assert read == {"jsonrpc": "2.0", "id": request_id, "method": method, "params": sane(params)}


@given(request_id=IDS, value=VALUES)
def test_the_standard_library_reads_what_we_answer(request_id: int | str, value: Any) -> None:
    read = json.loads(body_of(envelope.result_frame(request_id, value)).decode())
    assert read == {"jsonrpc": "2.0", "id": request_id, "result": sane(value)}
    read = json.loads(body_of(envelope.error_frame(request_id, -32000, "no", value)).decode())
    error = {"code": -32000, "message": "no"} | ({} if value is None else {"data": sane(value)})
    assert read == {"jsonrpc": "2.0", "id": request_id, "error": error}
    read = json.loads(body_of(envelope.notification_frame("told", value)).decode())
    assert read == {"jsonrpc": "2.0", "method": "told", "params": sane(value)}


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"x": value}
    return value


def test_a_request_is_not_nested_deeper_than_the_cli_reads() -> None:
    assert envelope.request_frame(1, "m", nested(MAX_DEPTH))
    for levels in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(EnvelopeError, match="nested deeper"):
            envelope.request_frame(1, "m", nested(levels))


# --- what others write, we read ---


@given(request_id=IDS, params=VALUES)
def test_a_request_is_read(request_id: int | str, params: Any) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": request_id, "method": "m", "params": params}).encode()
    message = envelope.decode(body)
    assert (message.is_request, message.is_notification, message.is_response) == (True, False, False)
    assert (message.id, message.method) == (request_id, "m")
    assert envelope.decode_value(message.params) == sane(params)


@given(params=VALUES, null_id=st.booleans())
def test_a_notification_is_read(params: Any, null_id: bool) -> None:
    written = {"jsonrpc": "2.0", "method": "m", "params": params} | ({"id": None} if null_id else {})
    message = envelope.decode(json.dumps(written).encode())
    assert (message.is_request, message.is_notification, message.is_response) == (False, True, False)


@given(request_id=IDS, value=VALUES)
def test_an_answer_is_read(request_id: int | str, value: Any) -> None:
    message = envelope.decode(json.dumps({"jsonrpc": "2.0", "id": request_id, "result": value}).encode())
    assert (message.is_request, message.is_notification, message.is_response) == (False, False, True)
    assert (message.id, message.is_error) == (request_id, False)
    assert envelope.decode_value(message.result) == sane(value)


def test_a_null_error_is_none() -> None:
    message = envelope.decode(b'{"jsonrpc":"2.0","id":1,"result":7,"error":null}')
    assert not message.is_error
    assert envelope.decode_value(message.result) == 7


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ('{"code":-32603,"message":"boom"}', (-32603, "boom")),
        ('{"code":-32603,"message":"half \\ud83d"}', (-32603, "half \ufffd")),
        ('{"code":"ENOENT","message":"boom","data":[1]}', (envelope.INTERNAL_ERROR, "boom")),
        ('{"message":null}', (envelope.INTERNAL_ERROR, "an error without a message")),
        ('"boom"', (envelope.INTERNAL_ERROR, "an error of an unknown shape: b'\"boom\"'")),
        ("[]", (envelope.INTERNAL_ERROR, "an error of an unknown shape: b'[]'")),
    ],
)
def test_an_error_of_any_shape_is_an_error(error: str, expected: tuple[int, str]) -> None:
    message = envelope.decode(b'{"id":1,"error":%b}' % error.encode())
    assert message.is_response
    assert message.is_error
    assert envelope.error_of(message) == expected


def test_an_error_that_belongs_to_no_request_is_read() -> None:
    message = envelope.decode(b'{"id":null,"error":{"code":-32700,"message":"parse error"}}')
    assert message.is_error
    assert message.id is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"id":1',
        b'{"id":1}{"id":2}',
        b"null",
        b"7",
        b'"text"',
        b"[]",
        b'[{"jsonrpc":"2.0","id":1,"method":"a"}]',
        b"{}",
        b'{"id":null}',
        b'{"id":null,"result":1}',
        b'{"id":1.5,"method":"m"}',
        b'{"id":{"a":1},"method":"m"}',
        b'{"id":true,"method":"m"}',
        b'{"id":1,"method":7}',
        b'{"id":1,"params":nope}',
        b'\xef\xbb\xbf{"id":1}',
        b'{"id":1,"method":"\xff"}',
        b'{"id":1,"method":"m","params":"\xff"}',
        b'{"id":1,"method":"m","params":"\xed\xa0\x80"}',
        b'{"id":1,"params":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id":1,"params":' + b'{"a":' * 100_000,
    ],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(EnvelopeError):
        envelope.decode(body)


@given(body=st.binary() | st.text().map(str.encode) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    try:
        message = envelope.decode(body)
    except EnvelopeError:
        return
    assert sum((message.is_request, message.is_notification, message.is_response)) == 1
    envelope.decode_value(message.params)


def test_a_value_nested_too_deep_is_refused_where_it_is_decoded() -> None:
    with pytest.raises(EnvelopeError, match="not JSON"):
        envelope.decode_value(msgspec.Raw(b"[" * 100_000 + b"]" * 100_000))


def test_an_absent_value_is_none() -> None:
    assert envelope.decode_value(UNSET) is None


# --- sessions and their events ---


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (b'{"sessionId":"s1","other":[1,2]}', "s1"),
        (b'{"sessionId":null}', None),
        (b'{"sessionId":7}', None),
        (b"{}", None),
        (b"[1]", None),
        (b"null", None),
        (b"[" * 100_000, None),
    ],
)
def test_the_session_of_a_call(params: bytes, expected: str | None) -> None:
    assert envelope.session_of(msgspec.Raw(params)) == expected


def test_a_call_without_parameters_has_no_session() -> None:
    assert envelope.session_of(UNSET) is None


@given(data=VALUES.map(sane), indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), ephemeral=st.booleans())
def test_an_event_keeps_its_bytes(data: Any, indent: int | None, ascii_only: bool, ephemeral: bool) -> None:
    written: dict[str, Any] = {"type": "assistant.message", "id": "e1", "data": {"content": data}, "parentId": None}
    if ephemeral:
        written["ephemeral"] = True
    raw = json.dumps(written, indent=indent, ensure_ascii=ascii_only).encode()
    body = b'{"method":"session.event","params":{"x":1, "sessionId":"s1","event": %b }}' % raw
    message = envelope.decode(body)
    assert message.params is not UNSET
    session_id, event = envelope.event_of(message.params)
    assert session_id == "s1"
    assert event.raw == raw
    assert (event.id, event.type, event.ephemeral) == ("e1", "assistant.message", ephemeral)
    assert event.data == {"content": data}


def test_half_a_character_in_an_event_is_replaced_and_the_event_is_kept() -> None:
    body = (
        rb'{"method":"session.event","params":{"sessionId":"s1","event":{"type":"t","id":"1","data":{"a":"x\ud83dy"}}}}'
    )
    message = envelope.decode(body)
    assert message.params is not UNSET
    _, event = envelope.event_of(message.params)
    assert event.data == {"a": "x\ufffdy"}


@pytest.mark.parametrize(
    "params",
    [
        b"{}",
        b'{"sessionId":"s1"}',
        b'{"sessionId":"s1","event":7}',
        b'{"sessionId":"s1","event":{}}',
        b'{"sessionId":"s1","event":{"type":null}}',
        b'{"sessionId":null,"event":{"type":"t"}}',
        b'{"event":{"type":"t"}}',
        b"[]",
    ],
)
def test_what_is_no_event_is_refused(params: bytes) -> None:
    with pytest.raises(EnvelopeError, match="not a session event"):
        envelope.event_of(msgspec.Raw(params))


# --- lone surrogates ---


@given(value=VALUES)
def test_replacing_escapes_is_replacing_surrogates(value: Any) -> None:
    repaired = replace_lone_escapes(json.dumps(value).encode())
    assert json.loads(repaired) == sane(value)
    assert len(repaired) == len(json.dumps(value))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb'"\ud83d\ude00"', rb'"\ud83d\ude00"'),
        (rb'"\\ud83d"', rb'"\\ud83d"'),
        (rb'"\\\ud83d"', rb'"\\\ufffd"'),
        (rb'"\ude00\ud83d"', rb'"\ufffd\ufffd"'),
        (rb'"\ud83d\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"'),
        (rb'"\uD83Dx\n"', rb'"\ufffdx\n"'),
    ],
)
def test_only_escapes_of_lone_surrogates_are_replaced(text: bytes, expected: bytes) -> None:
    assert replace_lone_escapes(text) == expected


@given(text=TEXT)
def test_replaced_text_can_be_written_in_utf_8(text: str) -> None:
    replaced = replace_lone_surrogates(text)
    assert replaced.encode().decode() == replaced
    assert replace_lone_surrogates(replaced) == replaced


# --- the short way for events ---


def told(event: bytes, session: str = "s-1", more: bytes = b"") -> bytes:
    """A `session.event` as the CLI writes it."""
    head = b'{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"%b","event":' % session.encode()
    return head + event + more + b"}}"


def the_long_way(body: bytes) -> Any:
    try:
        message = envelope.decode(body)
        if message.method != "session.event" or not isinstance(message.params, msgspec.Raw):
            return None
        return envelope.event_of(message.params)
    except EnvelopeError:
        return None


def test_the_short_way_is_taken_for_what_the_cli_writes() -> None:
    raw = '{"type":"user.message","data":{"content":"\u00e9 \\u00e9 }}"},"id":"e1","parentId":null}'.encode()
    found = envelope.session_event(told(raw))
    assert found is not None
    assert (found[0], found[1].id, found[1].type, found[1].raw, found[1].ephemeral) == (
        "s-1",
        "e1",
        "user.message",
        raw,
        False,
    )
    assert found == the_long_way(told(raw))


EVENT_ID, PARENT, STAMP = str(uuid.UUID(int=7)), str(uuid.UUID(int=6)), "2026-11-26T03:53:56.162Z"


def long_trace(data: str, *, type_: str = "model.messages_snapshot", tail: str | None = None) -> bytes:
    """An event that repeats the history, as the CLI writes it."""
    tail = tail or f'"ephemeral":true,"id":"{EVENT_ID}","timestamp":"{STAMP}","parentId":"{PARENT}"'
    return f'{{"type":"{type_}","data":{{"messages":[{data}],"more":"{"x" * 3_000}"}},{tail}}}'.encode(
        "utf-8", "surrogateescape"
    )


@pytest.mark.parametrize("data", ['"\u00e9"', "[}", '"\udcff"', f'"{{\\"id\\":\\"{PARENT}\\"}}"'])
def test_of_a_long_trace_only_both_ends_are_read(data: str) -> None:
    raw = long_trace(data)
    found = envelope.session_event(told(raw))
    assert found == ("s-1", SessionEvent(EVENT_ID, "model.messages_snapshot", raw, ephemeral=True))
    assert found[1].is_trace
    assert envelope.is_json(raw) == (the_long_way(told(raw)) == found)


@pytest.mark.parametrize(
    "raw",
    [
        long_trace('"\udcff"', type_="assistant.message"),
        long_trace('"\udcff"', type_="model.call_start"),
        long_trace('"\udcff"', tail=f'"id":"{EVENT_ID}","timestamp":"{STAMP}","parentId":"{PARENT}"'),
        long_trace('"\udcff"', tail=f'"agentId":"a","ephemeral":true,"id":"{EVENT_ID}","timestamp":"{STAMP}"'),
        long_trace('"\udcff"', tail=f'"more":{{"ephemeral":true,"id":"{EVENT_ID}"}}'),
    ],
)
def test_what_is_no_trace_is_read_as_a_whole(raw: bytes) -> None:
    assert envelope.session_event(told(raw)) is None


@pytest.mark.parametrize(
    "body",
    [
        told(b'{"type":"t"}', session="a\\u0062"),
        told(b'{"type":"t"}', more=b',"x":{}'),
        told(b'{"type":"t"} '),
        told(b'{"type":"t"},{"type":"t"}'),
        told(b'{"type":"t","data":"\xff"}'),
        told(b'{"type":"\\ud800"}'),
        told(b'{"id":"e"}'),
        told(b"[]"),
        told(b'{"type":"t"}') + b"}",
        told(b'{"type":"t"}')[:-1],
        b'{"jsonrpc":"2.0","id":1,"method":"session.event","params":{"sessionId":"s","event":{"type":"t"}}}',
    ],
)
def test_what_is_written_in_another_way_goes_the_long_way(body: bytes) -> None:
    assert envelope.session_event(body) is None


@given(event=st.dictionaries(st.sampled_from(["type", "id", "ephemeral", "data"]), VALUES), cut=st.integers(0, 12))
def test_the_short_way_leads_where_the_long_way_does(event: dict[str, Any], cut: int) -> None:
    body = told(json.dumps(event, ensure_ascii=bool(cut % 2), separators=(",", ":")).encode("utf-8", "surrogatepass"))
    for piece in (body, body[: len(body) - cut] + body[len(body) - cut + 1 :]):
        found = envelope.session_event(piece)
        assert found is None or found == the_long_way(piece)
