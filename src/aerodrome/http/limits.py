"""Bounds on what one HTTP client may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    #: Bytes of a request body. A prompt of 5 MB is ordinary; attachments come inline, as base64.
    max_body: int = 16 * 1024 * 1024
    #: Bytes of bodies that are coming in, of one user. At least a few of the largest have to be let in.
    max_incoming: int = 256 * 1024 * 1024
    #: Seconds in which a client must have sent the head of its request; while it is sending the body it must send
    #: something in each of them.
    read_timeout: float = 30.0
    #: Seconds for which a connection is kept between two requests. Proxies keep theirs for 60 in general, and a request
    #: that they send when we close is lost: whoever chooses the connection has to be the one that closes it.
    keep_alive: float = 75.0
    #: Connections on which no request is being answered, strangers' included; past it the one that has been silent for
    #: longest is cut. A client may find that at any time, and connects anew.
    max_silent: int = 10_000
    #: Seconds in which a client that has bytes to fetch must take some; then its connection is cut.
    write_timeout: float = 30.0
    #: Seconds between two heartbeat comments of an event stream.
    heartbeat: float = 15.0
    #: Streams of events that are read at the same time, and those of one user.
    max_readers: int = 10_000
    max_readers_per_user: int = 1_000
    #: Seconds between two looks at whether the keys of those who read events are still good. That is a read of the
    #: store for each, of thousands perhaps, and only makes up for news of a revocation that was lost.
    recheck: float = 60.0
    #: Bytes of formatted events that wait for one reader; past it no more are taken from its subscription.
    stream_buffer: int = 64 * 1024
