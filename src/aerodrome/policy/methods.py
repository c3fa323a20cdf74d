"""The methods of the runtime's protocol: who may call them, who answers them, and with which parameters.

Allowed by list: `method_table` has what somebody may call, `method_refusals` what is to be said of the rest. The
gateway asks `refusal` for every message, which needs no more than the method's name, and decodes the parameters only
where `needs_check` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aerodrome.policy import method_params
from aerodrome.policy.method_refusals import NOT_ON_THE_LIST, REFUSED
from aerodrome.policy.method_rules import Handling, MethodRule
from aerodrome.policy.method_table import GROUPS
from aerodrome.policy.profiles import NONE, Profile
from aerodrome.policy.shapes import Denied, Refusal

__all__ = ["Handling", "MethodRule", "Refusal", "checked_params", "needs_check", "refusal", "rule_for"]

_RULES: Mapping[str, MethodRule] = {rule.method: rule for _, lines in GROUPS for line in lines for rule in line}
_REFUSED: Mapping[str, MethodRule] = {rule.method: rule for line in REFUSED for rule in line}
#: Longest beginning first.
_BEGINNINGS = sorted((name for name in _REFUSED if name.endswith(".")), key=len, reverse=True)
_CHECKED = frozenset(method_params.ISOLATED) | frozenset(method_params.SANDBOXED)
#: A method is quoted up to this length, in characters.
_QUOTE = 100


def rule_for(method: str) -> MethodRule:
    """The rule of a method; one that nobody has heard of is refused."""
    if found := _RULES.get(method) or _REFUSED.get(method):
        return found
    why = next((_REFUSED[beginning].why for beginning in _BEGINNINGS if method.startswith(beginning)), NOT_ON_THE_LIST)
    return MethodRule(method, Handling.REFUSE, NONE, repeatable=False, uses=False, why=why)


def refusal(method: str, profile: Profile) -> Refusal | None:
    """Why a client with this profile may not call the method; ``None`` when it may."""
    rule = rule_for(method)
    if profile in rule.profiles:
        return None
    name = method if len(method) <= _QUOTE else f"{method[:_QUOTE]}..."
    if rule.profiles:
        return Refusal(f"{name} is not allowed in the profile {profile.value}: {rule.why}")
    return Refusal(f"{name} is not allowed: {rule.why}")


def needs_check(method: str) -> bool:
    """Whether the parameters have to pass `checked_params`. Not those of create and resume: see `open_params`."""
    return method in _CHECKED


def checked_params(method: str, profile: Profile, params: Mapping[str, Any]) -> Mapping[str, Any] | Refusal:
    """The parameters as they may be passed on, or why they may not; for a method that `refusal` has let through."""
    shape = method_params.shape_of(method, profile)
    if shape is None:
        return params
    try:
        checked: Mapping[str, Any] = shape(dict(params), "")
    except Denied as denied:
        return Refusal(f"{method}: {denied.refusal.reason}", denied.refusal.code)
    return checked
