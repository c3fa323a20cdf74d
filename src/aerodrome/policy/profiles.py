"""How much of the runtime's protocol a native client may use.

`isolated`
    For users who share a runtime, and the default for all. Nothing that reaches the host: no tools but those that
    stay within the session, no commands, no paths, no keys and no addresses of the client's choice.
`sandboxed`
    For a user who is alone in a runtime inside a sandbox. The workspace and what runs in it are theirs; the host's
    identities, its model keys and other sessions are not. Needs isolation `user`.
`trusted`
    For users to whom the operator would give a shell on the machine. Everything is passed on but what concerns the
    runtime as a whole: the host has to stay its master.

`Profile` itself is in `aerodrome.model`, because the settings name it.
"""

from __future__ import annotations

from aerodrome.model import Profile

__all__ = ["ALL", "NONE", "SANDBOXED", "TRUSTED", "Profile"]

#: The sets of profiles that occur in the tables: what one profile may do, the next may as well.
ALL = frozenset(Profile)
SANDBOXED = frozenset({Profile.SANDBOXED, Profile.TRUSTED})
TRUSTED = frozenset({Profile.TRUSTED})
NONE: frozenset[Profile] = frozenset()
