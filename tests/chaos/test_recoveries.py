"""How long the loss of a node is felt."""

from __future__ import annotations

from support.fleet_chaos.transcript import NodeKill, Outcome, Prompt, Transcript


def prompt(began: float, ended: float, outcome: Outcome, session: str = "s1") -> Prompt:
    return Prompt(session, "alice", "", "", began=began, ended=ended, outcome=outcome)


def test_what_users_wait_for_counts_and_what_they_let_pass_does_not() -> None:
    transcript = Transcript()
    transcript.kills.append(NodeKill(10.0, "a", ("s1", "s2")))
    transcript.prompts += [
        prompt(9.0, 11.0, Outcome.INTERRUPTED),  # a second of it behind the kill
        prompt(10.5, 12.0, Outcome.UNKNOWN),  # another second, by somebody else
        prompt(14.0, 15.5, Outcome.ACKNOWLEDGED),
        prompt(15.0, 30.0, Outcome.ACKNOWLEDGED),  # behind the first that was served, but for its beginning
        prompt(5.0, 10.0, Outcome.ACKNOWLEDGED),  # before
        prompt(9.0, 60.0, Outcome.FAILED, "s2"),  # never served: no recovery
    ]
    assert list(transcript.recoveries()) == [(3.5, True)]


def test_another_fault_before_the_session_is_served_is_told() -> None:
    transcript = Transcript()
    transcript.kills.append(NodeKill(10.0, "a", ("s1",)))
    transcript.faults += [(10.0, 10.0, "node killed"), (11.0, 12.0, "Valkey restarted")]
    transcript.prompts.append(prompt(10.0, 13.0, Outcome.ACKNOWLEDGED))
    assert list(transcript.recoveries()) == [(3.0, False)]
