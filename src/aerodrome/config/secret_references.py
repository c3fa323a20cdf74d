"""How an operator says where a secret is. Pure: nothing is looked up here.

==========================  =================================================================================
``env:NAME``                an environment variable
``file:PATH``               a file; ``~`` and ``$CREDENTIALS_DIRECTORY`` at its beginning are replaced
``vault:PATH#KEY``          a value in Vault
``command:PROGRAM ARG...``  what a program prints; words are split as a shell would, and no shell is started
anything else               the secret itself
==========================  =================================================================================

The address of a store may also have references within it, in braces:
``postgresql://aerodrome:{file:/run/secrets/db}@db.example/aerodrome``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from enum import StrEnum

#: A reference in braces, in the address of a store.
_WITHIN = re.compile(r"\{((?:env|file|vault|command):[^{}]*)\}")

#: What is said of a secret that is no reference.
GIVEN = "the configuration itself"


class Scheme(StrEnum):
    ENV = "env"
    FILE = "file"
    VAULT = "vault"
    COMMAND = "command"
    LITERAL = "literal"


@dataclass(frozen=True, slots=True)
class Reference:
    scheme: Scheme
    #: What comes after the colon; of a literal the secret itself.
    rest: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises ValueError: it is meant as a reference and is none."""
        scheme, colon, rest = text.partition(":")
        if not colon or scheme not in (Scheme.ENV, Scheme.FILE, Scheme.VAULT, Scheme.COMMAND):
            if not text:
                raise ValueError("expected a secret, env:NAME or file:PATH, not an empty text")
            return cls(Scheme.LITERAL, text)
        reference = cls(Scheme(scheme), rest.strip())
        if not reference.rest:
            raise ValueError(f"expected something after {scheme}:")
        if reference.scheme is Scheme.VAULT:
            reference.vault_path()
        if reference.scheme is Scheme.COMMAND:
            reference.words()
        return reference

    def vault_path(self) -> tuple[str, str]:
        """The path and the key in it."""
        path, _, key = self.rest.rpartition("#")
        if not path.strip("/") or not key:
            raise ValueError("expected vault:PATH#KEY, such as vault:secret/aerodrome#model_key")
        return path.strip("/"), key

    def words(self) -> list[str]:
        """The program of a command and its arguments."""
        try:
            return shlex.split(self.rest)
        except ValueError as error:
            raise ValueError(f"the command can not be understood: {error}") from None

    def __str__(self) -> str:
        """For people: where the secret is, and nothing of what it is. Arguments of a program may hold one."""
        if self.scheme is Scheme.LITERAL:
            return GIVEN
        if self.scheme is Scheme.COMMAND:
            program, *arguments = self.words()
            return f"command:{program}{' ...' if arguments else ''}"
        return f"{self.scheme}:{self.rest}"


def parts_of(text: str) -> list[str | Reference]:
    """A text with references in braces, cut into what is text and what refers."""
    pieces = _WITHIN.split(text)
    return [Reference.parse(piece) if number % 2 else piece for number, piece in enumerate(pieces)]
