"""Which nodes live, as SQL: what leases and places ask of the table of nodes."""

from __future__ import annotations

#: Whether node `n` lives, from the parameters `:now` and `:boot_id`. A heartbeat from the future is one of
#: another boot on a machine that does not tell its boots apart.
ALIVE = "n.boot_id = :boot_id AND :now - n.beat_at < n.ttl AND n.beat_at - :now < n.ttl"
