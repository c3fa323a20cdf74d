"""What becomes of a turn: by itself, when its end is asked for, when its runtime is lost. Pure."""

from __future__ import annotations

from aerodrome.errors import AerodromeError, Draining, TurnFailed, TurnInterrupted
from aerodrome.model import TurnStatus
from aerodrome.sessions.activation import Loss
from aerodrome.sessions.history import Standing
from aerodrome.sessions.run import TurnRun

#: How often a prompt is sent to a runtime: once, and once more when the runtime was lost before a tool had run.
ATTEMPTS = 2

Outcome = tuple[TurnStatus, AerodromeError | None]


def outcome_of(run: TurnRun) -> Outcome:
    """Of a turn that the runtime has ended."""
    if run.tracker.aborted:
        return outcome_as_asked(run) if run.stop_asked.done() else (TurnStatus.ABORTED, None)
    if run.tracker.error is not None:
        return TurnStatus.FAILED, TurnFailed(run.tracker.error)
    return TurnStatus.COMPLETED, None


def outcome_as_asked(run: TurnRun) -> Outcome:
    """Of a turn whose end was asked for."""
    error = run.stop_asked.result()
    return (TurnStatus.ABORTED, None) if error is None else (status_of(error), error)


def outcome_after(run: TurnRun, loss: Loss, found: Standing | None) -> Outcome | None:
    """Of a turn whose runtime was lost, from how its prompt stands in the history.

    Returns:
        ``None`` when the prompt may be sent again.
    """
    if run.tracker.ended:
        return outcome_of(run)
    if found is not None and found.answer is not None:
        return TurnStatus.COMPLETED, None
    if run.stop_asked.done():
        return outcome_as_asked(run)
    if loss.error is not None:
        return status_of(loss.error), loss.error
    if found is not None and (run.tracker.error is not None or run.tracker.aborted):
        return outcome_of(run)
    if found is not None or run.tracker.tool_ran or run.attempts >= ATTEMPTS:
        detail = f"the runtime was lost in mid-turn: {loss.reason}"
        return TurnStatus.INTERRUPTED, TurnInterrupted(detail, tool_ran=run.tracker.tool_ran)
    return None


def status_of(error: AerodromeError) -> TurnStatus:
    return TurnStatus.INTERRUPTED if isinstance(error, (TurnInterrupted, Draining)) else TurnStatus.FAILED
