"""What a client has changed in a session, and what of it is said again."""

from __future__ import annotations

from aerodrome.gateway.replay import REMEMBERED, Changes
from aerodrome.policy.methods import rule_for
from aerodrome.policy.profiles import Profile


def test_the_latest_choice_of_a_kind_holds() -> None:
    changes = Changes()
    changes.note("session.agent.select", {"sessionId": "s", "name": "gardener"})
    changes.note("session.agent.deselect", {"sessionId": "s"})
    assert changes.requests == [("session.agent.deselect", {})]
    changes.note("session.agent.select", {"sessionId": "s", "name": "cook"})
    assert changes.requests == [("session.agent.select", {"name": "cook"})]


def test_updates_of_options_add_up() -> None:
    changes = Changes()
    changes.note("session.options.update", {"sessionId": "s", "a": 1, "b": 1})
    changes.note("session.options.update", {"sessionId": "s", "b": 2})
    assert changes.requests == [("session.options.update", {"a": 1, "b": 2})]


def test_interests_are_held_one_by_one_until_they_are_released() -> None:
    changes = Changes()
    for event in ("x", "x", "y"):
        handle = {"handle": f"interest-{len(changes.requests)}"}
        changes.note("session.eventLog.registerInterest", {"sessionId": "s", "eventType": event}, handle)
    changes.note("session.eventLog.releaseInterest", {"sessionId": "s", "handle": "interest-0"}, {"success": True})
    assert changes.requests == [("session.eventLog.registerInterest", {"eventType": event}) for event in ("x", "y")]


def test_tools_take_the_place_of_those_the_session_was_opened_with() -> None:
    assert Changes().tools is None
    changes = Changes()
    changes.note("session.tools.set", {"sessionId": "s", "tools": []})
    assert changes.tools == []
    assert changes.requests == []


def test_a_server_that_was_disabled_stays_so_until_it_is_enabled() -> None:
    changes = Changes()
    for server in ("x", "y"):
        changes.note("session.mcp.disable", {"sessionId": "s", "serverName": server})
    changes.note("session.mcp.enable", {"sessionId": "s", "serverName": "x"})
    assert changes.requests == []
    opening = {"disabledMcpServers": ["z"], "model": "gpt"}
    changes.onto(opening)
    assert opening == {"disabledMcpServers": ["z", "y"], "model": "gpt"}


def test_only_what_a_client_may_call_is_remembered() -> None:
    assert {method for method in REMEMBERED if not rule_for(method).profiles} == set()
    assert all(Profile.TRUSTED in rule_for(method).profiles for method in REMEMBERED)
