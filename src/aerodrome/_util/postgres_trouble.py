"""What PostgreSQL's errors mean: in plain words, whether a repetition may help, and what became of the connection."""

from __future__ import annotations

from typing import NamedTuple

import psycopg


class Trouble(NamedTuple):
    #: Follows "the PostgreSQL server"; without names, addresses or credentials, because callers of the API see it.
    what: str
    #: Seconds after which a caller may try again.
    retry_after: float | None = None
    #: The same attempt may succeed within seconds: the server is restarting, or had to choose between two.
    passing: bool = False
    #: The connection is of no use any more, or leads to the wrong server.
    lost: bool = False


_AWAY = Trouble("cannot be reached", 2.0, passing=True, lost=True)
_CONFLICT = Trouble("could not order concurrent changes", 1.0, passing=True)
_NO_TABLES = Trouble("has not the expected tables, or this role may not use them: run `aerodrome migrate --check`")

_BY_STATE: dict[str, Trouble] = {
    "57P01": Trouble("is shutting down", 2.0, passing=True, lost=True),
    "57P02": Trouble("has crashed and recovers", 2.0, passing=True, lost=True),
    "57P03": Trouble("is starting up or shutting down", 2.0, passing=True, lost=True),
    "57P05": _AWAY,
    "25P03": Trouble("has ended a transaction that stood still", 1.0, passing=True, lost=True),
    "53300": Trouble("has no connection left; raise its max_connections", 2.0, passing=True, lost=True),
    "40001": _CONFLICT,
    "40P01": _CONFLICT,
    "55P03": Trouble("is held up by a lock of somebody else", 1.0),
    "57014": Trouble("takes too long", 1.0),
    "53100": Trouble("cannot grow: its disk is full; free some space there", 5.0),
    "53200": Trouble("is out of memory", 5.0),
    # After a fail-over the old primary may still be connected to: another connection may lead to the new one.
    "25006": Trouble("is read-only: it is a standby, or was made so", 5.0, lost=True),
    "28000": Trouble("refuses this role; see its pg_hba.conf"),
    "28P01": Trouble("refuses the password"),
    "3D000": Trouble("has no database of this name"),
    "3F000": _NO_TABLES,
    "42P01": _NO_TABLES,
    "42703": _NO_TABLES,
    "42883": _NO_TABLES,
    "42501": _NO_TABLES,
    "58030": Trouble("cannot read or write its disk", 5.0),
    "XX001": Trouble("reports damaged data; restore it from a backup"),
    "XX002": Trouble("reports a damaged index; rebuild it with REINDEX"),
}

#: The log-in's refusals come without a code, and in the server's language: whatever is not found here is "away".
_BY_WORDS = (
    ("starting up", _BY_STATE["57P03"]),
    ("shutting down", _BY_STATE["57P03"]),
    ("recovery", _BY_STATE["57P03"]),
    ("not yet accepting", _BY_STATE["57P03"]),
    ("too many clients", _BY_STATE["53300"]),
    ("connection slots", _BY_STATE["53300"]),
    ("password", _BY_STATE["28P01"]),
    ("pg_hba", _BY_STATE["28000"]),
    ("role ", _BY_STATE["28000"]),
    ("database ", _BY_STATE["3D000"]),
    ("certificate", Trouble("has a certificate that is not trusted; see sslmode and sslrootcert")),
    ("SSL", Trouble("does not agree on TLS; see sslmode")),
    ("session is read-only", _BY_STATE["25006"]),
    ("could not translate host name", Trouble("has a host name that cannot be resolved", 5.0, passing=True, lost=True)),
    ("Name or service not known", Trouble("has a host name that cannot be resolved", 5.0, passing=True, lost=True)),
)


def of_connecting(error: psycopg.Error) -> Trouble:
    """What kept a new connection from being made."""
    if (known := _by_state(error.sqlstate)) is not None:
        return known._replace(lost=True)
    text = str(error)
    return next((trouble for words, trouble in _BY_WORDS if words in text), _AWAY)._replace(lost=True)


def of_statement(error: psycopg.Error) -> Trouble:
    """What went wrong on a connection that had been made."""
    if (known := _by_state(error.sqlstate)) is not None:
        return known
    if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
        return _AWAY
    return Trouble(f"refuses a statement ({error.sqlstate or type(error).__name__})")


def _by_state(state: str | None) -> Trouble | None:
    if state is None:
        return None
    return _BY_STATE.get(state, _AWAY if state.startswith("08") else None)
