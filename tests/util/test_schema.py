"""Migrations: in order, once, all or nothing, and never backwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from aerodrome._util.schema import Schema, statements
from aerodrome.errors import ConfigError

FIRST = "CREATE TABLE item (id INTEGER);\n-- a comment; with a semicolon\nINSERT INTO item VALUES (1);\n"
SECOND = "ALTER TABLE item ADD COLUMN name TEXT;"


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def test_each_migration_runs_once(connection: sqlite3.Connection) -> None:
    Schema("items", (FIRST,)).migrate(connection)
    Schema("items", (FIRST,)).migrate(connection)
    Schema("items", (FIRST, SECOND)).migrate(connection)
    assert columns(connection, "item") == ["id", "name"]
    assert connection.execute("SELECT count(*) FROM item").fetchone() == (1,)


def test_several_schemas_share_a_file(connection: sqlite3.Connection) -> None:
    Schema("items", (FIRST, SECOND)).migrate(connection)
    Schema("others", ("CREATE TABLE other (id INTEGER);",)).migrate(connection)
    versions = connection.execute("SELECT name, version FROM aerodrome_schema ORDER BY name").fetchall()
    assert versions == [("items", 2), ("others", 1)]


def test_tables_of_a_newer_release_are_refused(connection: sqlite3.Connection) -> None:
    Schema("items", (FIRST, SECOND)).migrate(connection)
    with pytest.raises(ConfigError, match="release at least as new"):
        Schema("items", (FIRST,)).migrate(connection)


def test_a_release_that_the_newer_tables_still_suit_may_start(connection: sqlite3.Connection) -> None:
    added = f"-- oldest compatible: 1\n{SECOND}"
    Schema("items", (FIRST, added)).migrate(connection)
    Schema("items", (FIRST,)).migrate(connection)
    assert columns(connection, "item") == ["id", "name"]
    # What once broke with the past stays broken, whatever comes after it.
    third = "ALTER TABLE item DROP COLUMN name;"
    fourth = "-- oldest compatible: 3\nALTER TABLE item ADD COLUMN size INTEGER;"
    Schema("items", (FIRST, added, third, fourth)).migrate(connection)
    Schema("items", (FIRST, added, third)).migrate(connection)
    with pytest.raises(ConfigError, match="release at least as new"):
        Schema("items", (FIRST, added)).migrate(connection)


def test_a_file_of_a_release_without_that_column_is_taken_over(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE aerodrome_schema (name TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    connection.execute("CREATE TABLE item (id INTEGER)")
    connection.execute("INSERT INTO aerodrome_schema VALUES ('items', 1), ('newer', 2)")
    Schema("items", (FIRST, SECOND)).migrate(connection)
    assert columns(connection, "item") == ["id", "name"]
    with pytest.raises(ConfigError, match="release at least as new"):
        Schema("newer", (FIRST,)).migrate(connection)


def test_statements_keep_triggers_whole() -> None:
    trigger = "CREATE TRIGGER t AFTER INSERT ON item BEGIN\n  DELETE FROM item;\n  SELECT 1;\nEND;\n"
    assert statements(FIRST + trigger)[-1] == trigger
    with pytest.raises(ValueError, match="unfinished"):
        statements("SELECT 1;\nCREATE TABLE half (")


@pytest.mark.parametrize(
    "package",
    [
        "aerodrome.coordination.backends",
        "aerodrome.statestore.backends",
        "aerodrome.sessions.backends",
        "aerodrome.identity.backends",
    ],
)
def test_the_scripts_of_each_adapter_are_found(package: str) -> None:
    assert Schema.load("x", package).migrations
