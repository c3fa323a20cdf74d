"""Tables that change under a running fleet."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aerodrome._util.migrations import Migration, Phase, PostgresSchema
from aerodrome.errors import ConfigError
from support.postgres import fetch, fresh_schema, postgres


def release(*scripts: tuple[Phase, str]) -> PostgresSchema:
    """A program that knows these scripts."""
    return PostgresSchema(
        "things",
        tuple(
            Migration(number, phase, f"postgresql_things_{number:03d}_{phase}_x.sql", script)
            for number, (phase, script) in enumerate(scripts, start=1)
        ),
    )


FIRST: tuple[Phase, str] = ("pre", "CREATE TABLE thing (id text PRIMARY KEY, old text); CREATE TABLE other (id text)")
ADD: tuple[Phase, str] = ("pre", "ALTER TABLE thing ADD COLUMN new text")
DROP: tuple[Phase, str] = ("post", "-- oldest compatible: 2\nALTER TABLE thing DROP COLUMN old")


async def test_missing_tables_are_made_by_whoever_comes_first() -> None:
    schema = fresh_schema()
    async with postgres(schema) as a, postgres(schema) as b:
        await asyncio.gather(*(release(FIRST, ADD, DROP).ensure(db) for db in (a, b) * 3))
        assert await fetch(a, "SELECT id, new FROM thing") == []
        status = await release(FIRST, ADD, DROP).status(b)
        assert (status.stored, status.known, status.pre, status.post, status.problem) == (3, 3, (), (), None)


async def test_a_program_behind_whose_tables_are_says_what_to_run_and_changes_nothing() -> None:
    async with postgres() as db:
        await release(FIRST).ensure(db)
        with pytest.raises(ConfigError, match="run `aerodrome migrate`"):
            await release(FIRST, ADD).ensure(db)
        assert (await release(FIRST, ADD).status(db)).pre == ("postgresql_things_002_pre_x.sql",)
        assert await release(FIRST, ADD).migrate(db) == ["postgresql_things_002_pre_x.sql"]
        assert await release(FIRST, ADD).migrate(db) == []
        await release(FIRST, ADD).ensure(db)


async def test_old_nodes_start_until_the_post_phase_has_run() -> None:
    old, new = release(FIRST), release(FIRST, ADD, DROP)
    async with postgres() as db:
        await old.ensure(db)
        assert await new.migrate(db) == ["postgresql_things_002_pre_x.sql"]
        await new.ensure(db)
        await old.ensure(db)
        assert (await new.status(db)).post == ("postgresql_things_003_post_x.sql",)
        assert await new.migrate(db, post=True) == ["postgresql_things_003_post_x.sql"]
        await new.ensure(db)
        # The release between knows version 2 and needs no more.
        await release(FIRST, ADD).ensure(db)
        with pytest.raises(ConfigError, match="run a newer release"):
            await old.ensure(db)
        with pytest.raises(ConfigError, match="run a newer release"):
            await old.migrate(db)


async def test_a_release_may_be_skipped() -> None:
    later = release(FIRST, ADD, DROP, ("pre", "ALTER TABLE other ADD COLUMN note text"))
    async with postgres() as db:
        await release(FIRST).ensure(db)
        assert [file[18:25] for file in await later.migrate(db)] == ["002_pre", "004_pre"]
        await later.ensure(db)
        assert [file[18:26] for file in await later.migrate(db, post=True)] == ["003_post"]


async def test_a_migration_that_fails_leaves_nothing_behind() -> None:
    broken = release(FIRST, ADD, ("pre", "CREATE TABLE half (id text); SELECT 1 / 0"))
    async with postgres() as db:
        await release(FIRST).ensure(db)
        with pytest.raises(Exception, match="22012"):
            await broken.migrate(db)
        assert (await broken.status(db)).stored == 1
        assert await fetch(db, "SELECT to_regclass('half')") == [(None,)]


async def test_a_changed_script_is_noticed() -> None:
    async with postgres() as db:
        await release(FIRST).ensure(db)
        (migration,) = release(FIRST).migrations
        other = PostgresSchema("things", (replace(migration, script="CREATE TABLE thing (id text)"),))
        for call in (other.ensure(db), other.migrate(db)):
            with pytest.raises(ConfigError, match="made by another postgresql_things_001_pre_x"):
                await call


async def test_schemas_share_a_database_and_programs_share_a_server() -> None:
    other = replace(release(("pre", "CREATE TABLE elsewhere (id text)")), name="others")
    async with postgres() as db, postgres() as neighbour:
        await release(FIRST).ensure(db)
        await other.ensure(db)
        await release(FIRST, ADD).ensure(neighbour)
        assert (await release(FIRST).status(db)).stored == 1
        assert (await other.status(db)).stored == 1
        assert (await other.status(neighbour)).stored == 0
