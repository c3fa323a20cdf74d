"""LSP framing: `Content-Length: N`, a blank line, N bytes of body.

Sans-IO: bytes in, bodies out. The decoder is bounded: it holds at most one incomplete frame of `max_frame` bytes
and one header block of `MAX_HEADER` bytes, whatever the peer sends. A frame that breaks the rules ends the
stream, because nothing tells where the next one starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Self

#: Bytes of a header block, without the blank line that ends it.
MAX_HEADER = 4096
DEFAULT_MAX_FRAME = 64 * 1024 * 1024

#: A body so many times over the limit is not skipped either: it would be the last thing that is heard for long.
_SKIPPED = 64
#: Bytes that are kept of a body that is skipped.
HEAD = 4096

_SEPARATOR = b"\r\n\r\n"
_PLAIN_HEADER = re.compile(rb"Content-Length: (\d{1,15})\r\n\r\n")


class FramingError(Exception):
    """The peer broke the framing; the connection cannot be used any further.

    `bodies` are those that were complete in the same piece, before the break.
    """

    def __init__(self, message: str, bodies: Sequence[bytes] = ()) -> None:
        super().__init__(message)
        self.bodies = list(bodies)


class FrameTooLarge(FramingError):
    """The peer announced a body over the limit. None of it has been read into memory."""


class Oversized(bytes):
    """Stands in the place of a body over the limit that was skipped: its first `HEAD` bytes, which tell what it is."""

    #: Bytes of the whole body.
    length: int

    def __new__(cls, head: bytes, length: int) -> Self:
        made = super().__new__(cls, head)
        made.length = length
        return made


def encode_frame(body: bytes) -> bytes:
    """Header and body as one piece, so that they leave in one segment (docs/facts.md, "Wire": 40 ms otherwise)."""
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


class FrameDecoder:
    """Turns arbitrary pieces of a byte stream into bodies.

    Args:
        max_frame: Bytes of a body.
        skip: Pass over a body over the limit, and return an `Oversized` for it, in place of breaking the stream.

    After `FramingError` every further call raises that error again, without bodies.
    """

    def __init__(self, max_frame: int = DEFAULT_MAX_FRAME, *, skip: bool = False) -> None:
        #: Bytes of a body; may be changed, and holds for those whose header has not been read yet.
        self.max_frame = max_frame
        self._skip = skip
        #: Bytes of an oversized body that have been passed over, and its first ones; None while there is none.
        self._skipped: int | None = None
        self._head = b""
        self._buffer = bytearray()
        #: Length of the body we are waiting for; None while the header is incomplete.
        self._body_length: int | None = None
        #: How far the buffer has been searched for the end of the header.
        self._searched = 0
        self._broken: FramingError | None = None

    @property
    def buffered(self) -> int:
        """Bytes of the incomplete frame held now."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take in a piece and return the bodies that are complete, in order.

        Raises:
            FramingError: The stream is broken. Bodies that were complete in this piece before the break are in the
                error's `bodies`.
        """
        self._raise_if_broken()
        bodies: list[bytes] = []
        try:
            self._take(data, bodies)
        except FramingError as error:
            self._broken = error
            self._buffer.clear()
            raise type(error)(str(error), bodies) from None
        return bodies

    def eof(self) -> None:
        """The peer has closed.

        Raises:
            FramingError: It did so within a frame.
        """
        self._raise_if_broken()
        if self._body_length is not None or self._buffer:
            self._broken = FramingError(f"the stream ended within a frame ({len(self._buffer)} bytes of it are here)")
            self._buffer.clear()
            raise self._broken

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            # A new one: the first has the bodies, and must not grow a longer traceback with each call.
            raise type(self._broken)(str(self._broken))

    def _take(self, data: bytes, bodies: list[bytes]) -> None:
        if self._buffer or self._body_length is not None:
            # First the frame that earlier pieces began.
            self._buffer += data
            if (body := self._next()) is None:
                return
            bodies.append(body)
            data = bytes(self._buffer)
            self._buffer.clear()
        if rest := self._take_plain(data, bodies):
            self._buffer += rest
            while (body := self._next()) is not None:
                bodies.append(body)

    def _take_plain(self, data: bytes, bodies: list[bytes]) -> bytes:
        """Take the frames that are whole and have the header every peer writes; returns what is left.

        A short way for nearly all frames, of which a streamed turn has hundreds. It must accept nothing that
        `_next` would not.
        """
        at, all_of_it = 0, len(data)
        while at < all_of_it and (header := _PLAIN_HEADER.match(data, at)) is not None:
            begin = header.end()
            end = begin + int(header[1])
            if end > all_of_it or end - begin > self.max_frame:
                break
            bodies.append(data[begin:end])
            at = end
        return data[at:]

    def _next(self) -> bytes | None:
        if self._body_length is None and not self._take_header():
            return None
        assert self._body_length is not None
        if self._skipped is not None:
            return self._pass_over(self._body_length, self._skipped)
        if len(self._buffer) < self._body_length:
            return None
        with memoryview(self._buffer) as buffer:  # a slice of the buffer itself would be one more copy
            body = bytes(buffer[: self._body_length])
        del self._buffer[: self._body_length]
        self._body_length = None
        return body

    def _pass_over(self, length: int, skipped: int) -> bytes | None:
        here = min(length - skipped, len(self._buffer))
        self._head += bytes(self._buffer[: min(here, HEAD - len(self._head))])
        del self._buffer[:here]
        self._skipped = skipped + here
        if self._skipped < length:
            return None
        found = Oversized(self._head, length)
        self._skipped, self._head, self._body_length = None, b"", None
        return found

    def _take_header(self) -> bool:
        end = self._buffer.find(_SEPARATOR, self._searched)
        # Without a separator the header is too long once even one that begins with the last bytes would come too
        # late; any earlier, and it would depend on how the stream is cut into pieces whether a header is accepted.
        if end > MAX_HEADER or (end < 0 and len(self._buffer) >= MAX_HEADER + len(_SEPARATOR)):
            raise FramingError(f"no end of header within {MAX_HEADER} bytes")
        if end < 0:
            # The separator may have begun with the last three bytes seen so far.
            self._searched = max(0, len(self._buffer) - len(_SEPARATOR) + 1)
            return False
        self._body_length = self._parse_header(bytes(self._buffer[:end]))
        del self._buffer[: end + len(_SEPARATOR)]
        self._searched = 0
        return True

    def _parse_header(self, header: bytes) -> int:
        length: int | None = None
        for line in header.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if not colon:
                raise FramingError(f"a header line without a colon: {line[:60]!r}")
            if name.strip().lower() != b"content-length":
                continue
            digits = value.strip()
            # int() would take signs, underscores and blanks, and be slow on a million digits.
            if not digits.isdigit() or len(digits) > 15:
                raise FramingError(f"Content-Length is not a number: {digits[:60]!r}")
            if length is not None and length != int(digits):
                raise FramingError("two Content-Length headers that differ")
            length = int(digits)
        if length is None:
            raise FramingError(f"a header without Content-Length: {header[:60]!r}")
        if self.max_frame < length <= _SKIPPED * self.max_frame and self._skip:
            self._skipped = 0
        elif length > self.max_frame:
            raise FrameTooLarge(f"a frame of {length} bytes is over the limit of {self.max_frame}")
        return length
