"""Hints that nodes give each other about sessions (`coordination.ports.ClusterEvents`); the subject is the key."""

from __future__ import annotations

#: The node that says so has loaded the session.
AWAKE = "session.awake"
DELETED = "session.deleted"
#: Who takes part in it has changed.
MEMBERS = "session.members"
