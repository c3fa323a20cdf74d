"""A client's requests that are not answered yet: how many and how large they may be, and for how long. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from aerodrome.errors import RateLimited
from aerodrome.gateway.commands import Request, release
from aerodrome.wire.envelope import RequestId

#: Seconds that a runtime may take for a request, of those that only read and of others. It holds the session where it
#: is, and without an end would for ever.
_READS, _ACTS = 120.0, 3600.0


class Unanswered:
    """Args:
    max_requests, max_bytes: Requests that there may be at the same time, and bytes of them.
    stranger_bytes: The same, of a client that has not said who it is.
    """

    def __init__(self, *, max_requests: int, max_bytes: int, stranger_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._stranger_bytes = stranger_bytes
        self._requests: dict[RequestId, Request] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests.values()))

    def get(self, request_id: RequestId | None) -> Request | None:
        return self._requests.get(request_id) if request_id is not None else None

    def __contains__(self, request: Request) -> bool:
        """Whether this very request is among them: its id may be in use again."""
        return self._requests.get(request.id) is request

    def check_count(self) -> None:
        """Raises `RateLimited`: there is no room for one more."""
        if len(self._requests) >= self._max_requests:
            said = f"{self._max_requests} requests of this connection are not answered yet"
            raise RateLimited(said, retry_after=1.0)

    def check_bytes(self, size: int, *, stranger: bool) -> None:
        """Raises `RateLimited`: there is no room for one of that size."""
        if self._bytes + size > (self._stranger_bytes if stranger else self._max_bytes):
            raise RateLimited(
                f"{self._bytes} bytes of requests of this connection are not answered yet", retry_after=1.0
            )

    def add(self, request: Request) -> None:
        self._requests[request.id] = request
        self._bytes += request.size

    def remove(self, request: Request) -> None:
        """It is answered, or never will be."""
        if self._requests.pop(request.id, None) is not None:
            self._bytes -= request.size
        release(request)

    def on_link(self, link: str) -> list[Request]:
        """Those that the runtime behind the link has to answer."""
        return [request for request in self if request.link == link]

    def overdue(self, seconds: float) -> list[Request]:
        """Those that a runtime has left unanswered for too long; so many seconds have passed since the last call."""
        overdue: list[Request] = []
        for request in self:
            if request.link is None:
                continue
            request.age += seconds
            if request.age >= (_READS if request.rule.repeatable else _ACTS):
                overdue.append(request)
        return overdue
