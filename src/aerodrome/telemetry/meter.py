"""What is counted and timed. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndedTurn:
    tenant: str
    #: One of the final states of a turn.
    status: str
    #: Error code; empty when it ended well.
    code: str = ""
    #: From its acceptance to its end.
    seconds: float | None = None
    #: From its acceptance to its place among the turns that run; ``None`` when it never got one.
    waited: float | None = None
    #: From its acceptance to the first event of the answer; ``None`` when there was none.
    answered: float | None = None


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of the model, as the runtime has accounted for it."""

    tenant: str
    provider: str
    model: str
    input_tokens: int
    output_tokens: int
    seconds: float | None = None


class Traffic:
    """Counts of a kind of connections, added to by the connections themselves: a call for each frame would cost more
    than the frame."""

    __slots__ = ("bytes_in", "bytes_out", "frames_in", "frames_out")

    def __init__(self) -> None:
        self.frames_in = 0
        self.bytes_in = 0
        self.frames_out = 0
        self.bytes_out = 0


class Meter:
    """Told of everything; does nothing with it."""

    #: Whether anything is done with what is told, for what costs something to find out.
    on = False

    # --- turns ---

    def turn_ended(self, turn: EndedTurn) -> None: ...

    def turn_retried(self) -> None:
        """A turn whose runtime was lost is sent once more."""

    def model_called(self, call: ModelCall) -> None: ...

    # --- sessions ---

    def session_woken(self, seconds: float, *, after_loss: bool) -> None:
        """A session was loaded into a runtime.

        Args:
            seconds: From the wish to the loaded session, the wait for a place included.
            after_loss: Where it was loaded before, it was lost: its runtime died, or its node gave it up.
        """

    def session_lost(self) -> None:
        """A session was lost with its runtime, its lease or a write that was refused."""

    def session_hibernated(self) -> None: ...

    def session_quarantined(self) -> None:
        """A session has made runtimes end, and is loaded no more."""

    # --- runtimes ---

    def runtime_started(self, seconds: float) -> None:
        """A runtime has become ready; `seconds` is its start and the proof that it can take a turn."""

    def runtime_failed_to_start(self) -> None: ...

    def runtime_ended(self, reason: str) -> None:
        """Args:
        reason: `lost`, `idle`, `room`, `surplus`, `drain`, or why it was recycled: one of few words.
        """

    # --- stores ---

    def store_called(self, store: str, operation: str, seconds: float, failure: str | None) -> None:
        """Args:
        failure: Error code of what it raised, such as `fenced` and `store_unavailable`; ``None`` when it did its work.
        """

    # --- front doors ---

    def http_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Args:
        route: The template, never a path with ids in it.
        """

    def rejected(self, door: str, code: str) -> None:
        """A request was answered with an error.

        Args:
            door: `http` or `gateway`.
            code: The error code.
        """

    # --- the node ---

    def fenced_itself(self) -> None:
        """The node could not heartbeat for so long that it has given its sessions up."""

    def reborn(self) -> None:
        """The node was held for dead, and goes on as a new incarnation."""

    def nodes_gone(self, count: int) -> None:
        """Other nodes were held for dead."""

    def loop_lagged(self, seconds: float) -> None:
        """How much later than planned the event loop came to something."""
