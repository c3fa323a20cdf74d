"""Rates and places in SQLite, as operations of a `Database`.

A rate is one number, the time at which the next admission is due if all came evenly (GCRA): an admission moves it by
`period / limit`, and may come as early as lets a burst of `limit` through.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from aerodrome.coordination.backends.names import ascii_name
from aerodrome.coordination.backends.sqlite_lives import ALIVE
from aerodrome.coordination.ports import Admission, Cap, Rate

#: Seconds: less than this too early is an artefact of adding fractions.
_EPSILON = 1e-6
#: Whether a place is nobody's any more.
_DEAD = f"incarnation NOT IN (SELECT incarnation FROM node AS n WHERE {ALIVE})"


def admit(
    connection: sqlite3.Connection,
    now: Mapping[str, Any],
    place: str,
    incarnation: str,
    rates: Sequence[Rate],
    caps: Sequence[Cap],
) -> Admission:
    """Args:
    now: The parameters `:now` and `:boot_id` of `ALIVE`.
    """
    arrivals = [(rate, _arrival(connection, rate, now["now"])) for rate in rates]
    for rate, arrival in arrivals:
        wait = arrival - now["now"] - rate.period * (rate.limit - 1) / rate.limit
        if wait > _EPSILON:
            return Admission(exceeded=rate, retry_after=wait)
    connection.executemany(
        "INSERT OR REPLACE INTO rate (name, arrival) VALUES (?, ?)",
        [(ascii_name(rate.name), arrival + rate.period / rate.limit) for rate, arrival in arrivals],
    )
    # An arrival in the past says as much as none; there would be a row for every user who ever came.
    connection.execute("DELETE FROM rate WHERE arrival < :now", now)
    for cap in caps:
        parameters = {**now, "cap": ascii_name(cap.name), "place": place}
        connection.execute(f"DELETE FROM place WHERE cap = :cap AND {_DEAD}", parameters)
        (others,) = connection.execute(
            "SELECT count(*) FROM place WHERE cap = :cap AND place != :place", parameters
        ).fetchone()
        had = connection.execute("SELECT 1 FROM place WHERE cap = :cap AND place = :place", parameters).fetchone()
        if had is None and others >= cap.limit:
            return Admission(full=cap)
    connection.executemany(
        "INSERT OR REPLACE INTO place (cap, place, incarnation) VALUES (?, ?, ?)",
        [(ascii_name(cap.name), place, incarnation) for cap in caps],
    )
    return Admission()


def vacate(connection: sqlite3.Connection, place: str, incarnation: str) -> None:
    connection.execute("DELETE FROM place WHERE place = ? AND incarnation = ?", (place, incarnation))


def clear_dead(connection: sqlite3.Connection, now: Mapping[str, Any]) -> None:
    connection.execute(f"DELETE FROM place WHERE {_DEAD}", now)


def _arrival(connection: sqlite3.Connection, rate: Rate, now: float) -> float:
    row = connection.execute("SELECT arrival FROM rate WHERE name = ?", (ascii_name(rate.name),)).fetchone()
    # No rate is ever used up for longer than its period: an arrival after that is of another boot's clock.
    return now if row is None or row[0] > now + rate.period else max(row[0], now)
