from __future__ import annotations

import pytest

from aerodrome.errors import StoreUnavailable, Unauthenticated
from aerodrome.identity.ephemeral import EitherOf, EphemeralCredentials
from aerodrome.model import Principal

ALICE = Principal("acme", "alice")


async def test_a_credential_proves_the_principal_that_it_was_issued_for_and_no_other() -> None:
    credentials = EphemeralCredentials()
    others = [Principal("acme", "bob"), Principal("bank", "alice"), Principal("acme", "alice", frozenset({"admin"}))]
    issued = {credentials.issue(who): who for who in (ALICE, *others)}
    assert len(issued) == 4
    for credential, who in issued.items():
        assert await credentials.authenticate(credential) == who


async def test_a_principal_has_one_credential_however_often_it_is_asked_for() -> None:
    credentials = EphemeralCredentials()
    assert credentials.issue(ALICE) == credentials.issue(Principal("acme", "alice"))


@pytest.mark.parametrize("credential", ["", "nobody's", "\ud800", "x" * 100_000])
async def test_what_was_not_issued_proves_nothing(credential: str) -> None:
    credentials = EphemeralCredentials()
    credentials.issue(ALICE)
    with pytest.raises(Unauthenticated):
        await credentials.authenticate(credential)


async def test_a_credential_of_one_process_is_none_of_another() -> None:
    credential = EphemeralCredentials().issue(ALICE)
    with pytest.raises(Unauthenticated):
        await EphemeralCredentials().authenticate(credential)


class _Away:
    async def authenticate(self, key: str) -> Principal:
        raise StoreUnavailable("the store is away")


async def test_the_second_is_asked_about_what_the_first_does_not_know() -> None:
    first, second = EphemeralCredentials(), EphemeralCredentials()
    either = EitherOf(first, second)
    assert await either.authenticate(first.issue(ALICE)) == ALICE
    assert await either.authenticate(second.issue(ALICE)) == ALICE
    with pytest.raises(Unauthenticated):
        await either.authenticate("nobody's")


async def test_a_store_that_is_away_is_no_reason_to_refuse_what_is_known_without_it() -> None:
    known = EphemeralCredentials()
    assert await EitherOf(known, _Away()).authenticate(known.issue(ALICE)) == ALICE
    with pytest.raises(StoreUnavailable):
        await EitherOf(known, _Away()).authenticate("nobody's")
