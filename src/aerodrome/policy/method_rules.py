"""What is said of a method. Pure data; the rules themselves are in `method_table` and `method_refusals`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from aerodrome.model import Role
from aerodrome.policy.profiles import ALL, NONE, Profile


class Handling(StrEnum):
    """Who answers a method."""

    #: The runtime that holds the session that the parameters name.
    FORWARD = "forward"
    #: Any runtime of the caller: it names no session and tells nothing of one.
    RUNTIME = "runtime"
    #: The gateway itself.
    GATEWAY = "gateway"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class MethodRule:
    method: str
    handling: Handling
    #: The profiles that may call it; empty when it is refused to all.
    profiles: frozenset[Profile]
    #: A read, which may be asked again when its runtime has gone.
    repeatable: bool
    #: Counts as use of the session, which keeps it from hibernating and expiring. Reads do not: who only watches, or
    #: polls, does not keep a session in memory for ever.
    uses: bool
    #: Why it is allowed to whom it is, or what a client is told that may not call it.
    why: str
    #: The least role that a caller must have in the session that it names; ``None``: it names none.
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """Several methods of one prefix for which the same is said: one line of the table."""

    handling: Handling
    profiles: frozenset[Profile]
    repeatable: bool
    uses: bool
    why: str
    names: tuple[str, ...]
    role: Role | None = None

    def __iter__(self) -> Iterator[MethodRule]:
        for name in self.names:
            yield MethodRule(name, self.handling, self.profiles, self.repeatable, self.uses, self.why, self.role)


def _names(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}" for name in names.split()) or (prefix,)


def read(
    prefix: str,
    names: str = "",
    why: str = "the session's own state",
    to: frozenset[Profile] = ALL,
    *,
    role: Role = Role.READER,
) -> Rules:
    return Rules(Handling.FORWARD, to, True, False, why, _names(prefix, names), role)


def act(prefix: str, names: str = "", why: str = "", to: frozenset[Profile] = ALL) -> Rules:
    return Rules(Handling.FORWARD, to, False, True, why, _names(prefix, names), Role.WRITER)


def of_any_runtime(prefix: str, names: str = "", why: str = "", to: frozenset[Profile] = ALL) -> Rules:
    return Rules(Handling.RUNTIME, to, True, False, why, _names(prefix, names))


def by_the_gateway(
    prefix: str,
    names: str = "",
    why: str = "",
    *,
    repeatable: bool = True,
    uses: bool = False,
    role: Role | None = None,
) -> Rules:
    return Rules(Handling.GATEWAY, ALL, repeatable, uses, why, _names(prefix, names), role)


def refuse(prefix: str, names: str = "", why: str = "") -> Rules:
    """A name that ends in a dot or is empty means all methods that begin with it and have no rule of their own."""
    return Rules(Handling.REFUSE, NONE, False, False, why, _names(prefix, names))
