from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.wire.framing import (
    HEAD,
    MAX_HEADER,
    FrameDecoder,
    FrameTooLarge,
    FramingError,
    Oversized,
    encode_frame,
)

BODIES = st.lists(st.binary(max_size=300), max_size=8)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def feed_all(decoder: FrameDecoder, parts: list[bytes]) -> tuple[list[bytes], str | None]:
    """The bodies, and what broke the stream, if anything did."""
    bodies: list[bytes] = []
    for part in parts:
        try:
            bodies += decoder.feed(part)
        except FramingError as error:
            return bodies + error.bodies, str(error)
    return bodies, None


@given(bodies=BODIES, cuts=st.lists(st.integers(min_value=0), max_size=20))
def test_however_the_stream_is_cut_the_bodies_come_out_untouched(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(encode_frame, bodies))
    decoder = FrameDecoder()
    assert feed_all(decoder, pieces(stream, cuts)) == (bodies, None)
    assert decoder.buffered == 0
    decoder.eof()


@given(bodies=BODIES)
def test_byte_by_byte_is_the_same_as_at_once(bodies: list[bytes]) -> None:
    stream = b"".join(map(encode_frame, bodies))
    assert feed_all(FrameDecoder(), [bytes([byte]) for byte in stream]) == (bodies, None)


def test_a_body_over_the_limit_is_skipped_however_the_stream_is_cut() -> None:
    large = b'{"id":1,"result":"' + b"x" * 6000
    stream = encode_frame(b"before") + encode_frame(large) + encode_frame(b"behind")
    for step in (1, 7, 100, 5000, len(stream)):
        decoder = FrameDecoder(max_frame=5000, skip=True)
        bodies, broken = feed_all(decoder, [stream[at : at + step] for at in range(0, len(stream), step)])
        assert (bodies, broken) == ([b"before", large[:HEAD], b"behind"], None)
        assert isinstance(bodies[1], Oversized)
        assert bodies[1].length == len(large)
        decoder.eof()


def test_what_is_skipped_is_not_kept() -> None:
    decoder = FrameDecoder(max_frame=1_000_000, skip=True)
    decoder.feed(b"Content-Length: 30000000\r\n\r\n")
    for _ in range(100):
        assert decoder.feed(b"x" * 10_000) == []
        assert decoder.buffered == 0


def test_a_body_that_looks_like_frames_is_a_body_however_the_stream_is_cut() -> None:
    body = encode_frame(b"{}") * 3
    stream = encode_frame(body) * 2
    for cut in range(len(stream)):
        assert feed_all(FrameDecoder(), [stream[:cut], stream[cut:]]) == ([body, body], None)


def test_a_frame_is_one_piece_with_its_header() -> None:
    assert encode_frame(b"{}") == b"Content-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "header",
    [
        b"content-length: 2",
        b"CONTENT-LENGTH:2",
        b"Content-Length:   2  ",
        b"Content-Length: 0002",
        b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\nContent-Length: 2",
        b"Content-Length: 2\r\nX-Other: a:b:c",
        b"Content-Length: 2\r\nContent-Length: 2",
    ],
)
def test_headers_that_are_taken(header: bytes) -> None:
    assert FrameDecoder().feed(header + b"\r\n\r\n{}") == [b"{}"]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"Content-Length: -1", "not a number"),
        (b"Content-Length: +2", "not a number"),
        (b"Content-Length: 1_0", "not a number"),
        (b"Content-Length: 2.0", "not a number"),
        (b"Content-Length: 0x2", "not a number"),
        (b"Content-Length:", "not a number"),
        (b"Content-Length: 2 2", "not a number"),
        ("Content-Length: ٢".encode(), "not a number"),
        (b"Content-Length: " + b"9" * 4000, "not a number"),
        (b"Content-Length: 2\r\nContent-Length: 3", "differ"),
        (b"Content-Type: json", "without Content-Length"),
        (b"Content-Length 2", "without a colon"),
        (b"{}", "without a colon"),
        (b"", "without a colon"),
        (b"Content-Length: 2\nContent-Type: json", "not a number"),
    ],
)
def test_headers_that_break_the_stream(header: bytes, reason: str) -> None:
    with pytest.raises(FramingError, match=reason):
        FrameDecoder().feed(header + b"\r\n\r\n{}")


def test_bodies_before_the_break_are_not_lost() -> None:
    decoder = FrameDecoder()
    with pytest.raises(FramingError) as caught:
        decoder.feed(encode_frame(b"1") + encode_frame(b"2") + b"garbage\r\n\r\n")
    assert caught.value.bodies == [b"1", b"2"]


def test_after_the_break_it_is_the_same_error_and_no_body_comes_twice() -> None:
    decoder = FrameDecoder(max_frame=10)
    with pytest.raises(FrameTooLarge) as first:
        decoder.feed(encode_frame(b"1") + encode_frame(b"x" * 11))
    for _ in range(2):
        with pytest.raises(FrameTooLarge) as again:
            decoder.feed(encode_frame(b"2"))
        assert str(again.value) == str(first.value)
        assert again.value.bodies == []
    with pytest.raises(FrameTooLarge):
        decoder.eof()
    assert decoder.buffered == 0


def test_an_oversized_frame_is_refused_at_its_header() -> None:
    decoder = FrameDecoder(max_frame=1000)
    assert decoder.feed(encode_frame(b"x" * 1000)) == [b"x" * 1000]
    with pytest.raises(FrameTooLarge, match="1001 bytes is over the limit of 1000"):
        decoder.feed(b"Content-Length: 1001\r\n\r\n")
    assert decoder.buffered == 0


@pytest.mark.parametrize("part", [b"C", b"Content-Length: 2\r\n\r\n", b"Content-Length: 2\r\n\r\n{"])
def test_the_end_of_the_stream_within_a_frame_is_an_error(part: bytes) -> None:
    decoder = FrameDecoder()
    assert decoder.feed(encode_frame(b"whole") + part) == [b"whole"]
    with pytest.raises(FramingError, match="within a frame"):
        decoder.eof()


def test_the_end_of_the_stream_between_frames_is_none() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(b"whole"))
    decoder.eof()


@pytest.mark.parametrize("length", range(MAX_HEADER - 2, MAX_HEADER + 6))
def test_the_limit_of_a_header_does_not_depend_on_how_it_is_cut(length: int) -> None:
    header = b"Content-Length: 2\r\nX: ".ljust(length, b"x")
    stream = header + b"\r\n\r\n{}"
    whole = feed_all(FrameDecoder(), [stream])
    assert (whole[1] is None) == (length <= MAX_HEADER)
    for cut in range(len(stream) - 8, len(stream)):
        assert feed_all(FrameDecoder(), [stream[:cut], stream[cut:]]) == whole
    assert feed_all(FrameDecoder(), [bytes([byte]) for byte in stream]) == whole


#: Bytes that look like headers more often than chance would.
NOISE = st.lists(
    st.one_of(
        st.binary(max_size=100),
        st.sampled_from([b"\r\n", b"\r\n\r\n", b"Content-Length: ", b":", b"90", b"Content-Length: 50\r\n\r\n"]),
        st.integers(min_value=0, max_value=9000).map(lambda n: b"y" * n),
    ),
    max_size=20,
)


@given(parts=NOISE)
def test_whatever_comes_in_little_is_held_and_nothing_but_framing_errors_come_out(parts: list[bytes]) -> None:
    limit = 100
    decoder = FrameDecoder(max_frame=limit)
    held = 0
    for part in parts:
        try:
            bodies = decoder.feed(part)
        except FramingError as error:
            bodies = error.bodies
        assert all(len(body) <= limit for body in bodies)
        held = max(held, decoder.buffered)
    assert held <= max(limit, MAX_HEADER + 3)


@given(parts=NOISE)
def test_noise_is_understood_the_same_however_it_is_cut(parts: list[bytes]) -> None:
    stream = b"".join(parts)
    whole = feed_all(FrameDecoder(max_frame=100), [stream])
    assert feed_all(FrameDecoder(max_frame=100), parts) == whole
    assert feed_all(FrameDecoder(max_frame=100), [bytes([byte]) for byte in stream]) == whole
