"""From what an operator has written to a cell that knows the secret."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from aerodrome.config.secret_cells import Cell
from aerodrome.config.secret_references import Reference, Scheme, parts_of
from aerodrome.config.secret_sources import CommandSource, Composed, FileSource, Fixed, Source, VaultSource
from aerodrome.config.vault import Vault


class Resolver:
    """One for each configuration: its references share what they ask Vault.

    Args:
        env: The variables that `env:` names, that programs are given, and that say where Vault is.
        timeout: Seconds for a program or for an answer of Vault.
    """

    def __init__(self, env: Mapping[str, str] = os.environ, timeout: float = 10.0) -> None:
        self._env = env
        self._timeout = timeout
        self._vault: Vault | None = None

    @classmethod
    def of(cls, context: Mapping[str, Any] | None) -> Resolver:
        """The one that the validation is done with."""
        found = (context or {}).get("resolver")
        return found if isinstance(found, Resolver) else cls()

    def secret(self, text: str) -> Cell:
        """Raises ValueError: it is no reference, or leads to nothing."""
        return Cell(self._source(Reference.parse(text)))

    def address(self, text: str, check: Callable[[str], object] | None = None) -> Cell:
        """As `secret`, of a text that may have references within it."""
        parts = parts_of(text)
        if len(parts) == 1:
            return Cell(self._source(Reference.parse(text)), check)
        return Cell(Composed([part if isinstance(part, str) else self._source(part) for part in parts]), check)

    def _source(self, reference: Reference) -> Source:
        match reference.scheme:
            case Scheme.ENV:
                name = reference.rest
                missing = f"the environment variable {name!r} is not set, or is empty"
                return Fixed(reference, self._env.get(name, ""), missing)
            case Scheme.FILE:
                return FileSource(reference, self._env)
            case Scheme.VAULT:
                return VaultSource(reference, self._vault_of_all)
            case Scheme.COMMAND:
                return CommandSource(reference, self._env, self._timeout)
            case _:
                return Fixed(reference, reference.rest, "")

    def _vault_of_all(self) -> Vault:
        if self._vault is None:
            self._vault = Vault(self._env, self._timeout)
        return self._vault
