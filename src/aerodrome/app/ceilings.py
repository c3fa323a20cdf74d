"""The ceilings of `limits` as the sessions of a node meet them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from aerodrome._util.tasks import TaskOwner
from aerodrome.app.options import turn_ceilings
from aerodrome.config.settings import Settings
from aerodrome.coordination.ports import Limits
from aerodrome.errors import AerodromeError
from aerodrome.fairness.gate import FairGate
from aerodrome.fairness.line import Ceilings
from aerodrome.sessions.admission import TurnAdmission, TurnLimits
from aerodrome.sessions.backlog import BacklogLimits
from aerodrome.sessions.residents import Residents


def turn_admission(
    settings: Settings, store: Limits, incarnation: Callable[[], str], tasks: TaskOwner
) -> TurnAdmission:
    """Args:
    store: What holds over all nodes.
    tasks: Those of the sessions; what is left to do when they are closed is not done.
    """
    limits, timeout = settings.limits, settings.runtime.capacity_timeout
    return TurnAdmission(
        FairGate(turn_ceilings(settings), timeout=timeout, what="no turn could be started", weight=limits.weight_of),
        TurnLimits(
            per_minute=limits.turns_per_minute,
            per_minute_of_tenant=limits.turns_per_minute_per_tenant,
            at_once=limits.max_turns_per_user,
            at_once_of_tenant=limits.max_turns_per_tenant,
        ),
        store,
        incarnation=incarnation,
        later=partial(tasks.start_if_open, expected=AerodromeError),  # the places of a node that has left are free
        timeout=timeout,
        backlog=BacklogLimits(
            limits.max_waiting_per_tenant,
            limits.max_waiting_per_user,
            limits.max_waiting_text_per_tenant,
            limits.max_waiting_text_per_user,
        ),
        per_runtime=limits.max_turns_per_runtime,
    )


def residents(settings: Settings, changed: Callable[[], asyncio.Event]) -> Residents:
    """Args:
    changed: Set with the next change of what sessions may wait for.
    """
    limits = settings.limits
    return Residents(
        Ceilings(limits.max_sessions, limits.max_sessions_per_tenant, limits.max_sessions_per_user),
        timeout=settings.runtime.capacity_timeout,
        weight=limits.weight_of,
        changed=changed,
    )
