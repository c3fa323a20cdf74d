"""Clients that are attached to a session while it is loaded again."""

from __future__ import annotations

from typing import Any, cast

import pytest

from aerodrome.errors import AerodromeError, Refused, RuntimeUnavailable
from aerodrome.sessions.attachments import Attachment, Attachments


class Ours:
    foreign = False


class Theirs:
    foreign = True


class RefusedOne:
    """Was attached before, and the runtime refuses to have it again."""

    is_replay = True
    passive = False

    def __init__(self) -> None:
        self.finished: list[AerodromeError] = []
        self.asked = 0

    async def open(self, runtime: Any, *, resume: bool) -> None:
        self.asked += 1
        raise Refused("session resume failed: this activation of the session is closed for writing")

    def finish(self, error: AerodromeError) -> None:
        self.finished.append(error)


def attached() -> tuple[Attachments, RefusedOne]:
    attachments, one = Attachments(), RefusedOne()
    attachments.add(cast("Attachment", one))
    return attachments, one


async def test_a_client_stays_when_the_activation_is_lost_while_the_session_is_loaded() -> None:
    attachments, one = attached()
    for opening in (
        attachments.open_first(cast("Any", None), resume=True, lost=lambda: True),
        attachments.open_others(None, cast("Any", None), lost=lambda: True),
    ):
        with pytest.raises(RuntimeUnavailable) as caught:
            await opening
        assert not isinstance(caught.value, Refused)
    assert one in attachments
    assert one.finished == []


async def test_a_client_whose_demands_are_refused_leaves_the_others_their_session() -> None:
    attachments, one = attached()
    assert await attachments.open_first(cast("Any", Ours), resume=True, lost=lambda: False) is None
    assert one not in attachments
    assert len(one.finished) == 1


async def test_what_one_server_of_somebody_else_refuses_another_one_may_take() -> None:
    attachments, one = attached()
    with pytest.raises(Refused):
        await attachments.open_first(cast("Any", Theirs), resume=True, lost=lambda: False)
    assert one in attachments
    assert one.finished == []
    # Two have refused it: it is not the server.
    assert await attachments.open_first(cast("Any", Theirs), resume=True, lost=lambda: False) is None
    assert (one.asked, len(one.finished)) == (2, 1)
