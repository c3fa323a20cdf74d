"""From what an operator has written to a cell that knows the secret."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from aerodrome.config.secret_cells import Cell
from aerodrome.config.secret_references import Reference, Scheme, parts_of
from aerodrome.config.secret_sources import CommandSource, Composed, FileSource, Fixed, Source, VaultSource
from aerodrome.config.vault import Vault

#: Cells by the setting's own name and what is written there.
Cells = dict[tuple[str, str], Cell]


class Known:
    """What the settings in force have looked up, for when they are read again while the node runs.

    What is not there at that moment, or can be read only once, then counts as it does for the node: it has its last
    good value. A secret that is new has to be there.
    """

    def __init__(self) -> None:
        self.cells: Cells = {}


class Resolver:
    """One for each configuration: its references share what they ask Vault, and equal ones of settings of the same name
    are one.

    Args:
        env: The variables that `env:` names, that programs are given, and that say where Vault is.
        timeout: Seconds for a program or for an answer of Vault.
        known: What is not looked up anew.
    """

    def __init__(self, env: Mapping[str, str] = os.environ, timeout: float = 10.0, known: Known | None = None) -> None:
        self._env = env
        self._timeout = timeout
        self._known = known.cells if known is not None else {}
        #: Of this configuration.
        self.cells: Cells = {}
        self._vault: Vault | None = None

    @classmethod
    def of(cls, context: Mapping[str, Any] | None) -> Resolver:
        """The one that the validation is done with."""
        found = (context or {}).get("resolver")
        return found if isinstance(found, Resolver) else cls()

    def secret(self, text: str, setting: str = "") -> Cell:
        """Args:
        setting: Its own name, without those of its sections: what is checked of a new value depends on it.

        Raises:
            ValueError: It is no reference, or leads to nothing.
        """
        return self._cell(setting, text, lambda: self._source(Reference.parse(text)))

    def address(self, text: str, setting: str = "") -> Cell:
        """As `secret`, of a text that may have references within it."""
        return self._cell(setting, text, lambda: self._source_of(parts_of(text), text))

    def _cell(self, setting: str, text: str, source: Callable[[], Source]) -> Cell:
        key = setting, text
        if key not in self.cells:
            self.cells[key] = self._known[key] if key in self._known else Cell(source())
        return self.cells[key]

    def _source_of(self, parts: list[str | Reference], text: str) -> Source:
        if len(parts) == 1:
            return self._source(Reference.parse(text))
        return Composed([part if isinstance(part, str) else self._source(part) for part in parts])

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
