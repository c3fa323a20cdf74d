"""Named blocks of SQL, and that those of the adapters are all used."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from aerodrome._util.queries import load_queries


@pytest.mark.parametrize(
    ("package", "file", "module"),
    [
        ("aerodrome.statestore.backends", "postgresql_files.sql", "postgresql.py"),
        ("aerodrome.sessions.backends", "postgresql_ledger.sql", "postgresql.py"),
        ("aerodrome.identity.backends", "postgresql_keys.sql", "postgresql.py"),
        ("aerodrome.coordination.backends", "postgresql_directory.sql", "postgresql_directory.py"),
    ],
)
def test_every_query_is_used(package: str, file: str, module: str) -> None:
    queries = load_queries(package, file)
    source = resources.files(package).joinpath(module).read_text(encoding="utf-8")
    assert queries
    for name, query in queries.items():
        assert re.search(rf'"{name}"', source), name
        assert query
        assert not query.endswith(";")
        assert "-- name:" not in query
