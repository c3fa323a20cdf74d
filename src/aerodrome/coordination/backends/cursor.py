"""The cursor of a directory listing: the place of its last row in the order of the listing.

Rows are ordered by last use, the latest first, then by id, then by tenant. A cursor names a place in that
order, not a number of rows, so that rows that come, go or move do not shift the pages behind them.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import NamedTuple

from aerodrome.errors import Invalid
from aerodrome.model import SessionRow


class Place(NamedTuple):
    last_used_at: float
    id: str
    tenant: str

    @property
    def rank(self) -> tuple[float, str, str]:
        """What a listing is sorted by."""
        return -self.last_used_at, self.id, self.tenant


def place_of(row: SessionRow) -> Place:
    return Place(row.last_used_at, row.key.id, row.key.tenant)


def rank(row: SessionRow) -> tuple[float, str, str]:
    return place_of(row).rank


def encode(place: Place) -> str:
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(cursor: str) -> Place:
    """Raises `Invalid` for whatever `encode` did not make."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        fields = json.loads(base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        fields = None
    match fields:
        case [float(last_used_at), str(id_), str(tenant)] if (
            # As ids and tenants are; not every store can compare with others.
            math.isfinite(last_used_at) and (id_ + tenant).isascii() and (id_ + tenant).isprintable()
        ):
            return Place(last_used_at, id_, tenant)
    raise Invalid("the cursor is not one that a listing returned; start again without it")


def check_limit(limit: int) -> None:
    if limit < 1:
        raise Invalid(f"a page has at least one row, so `limit` cannot be {limit}")
