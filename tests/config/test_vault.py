"""`vault:PATH#KEY`, with the real client, at a server that speaks Vault's protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aerodrome.config import load_settings
from aerodrome.config import vault as vault_module
from aerodrome.config.provider_settings import reveal
from aerodrome.config.secret_resolver import Resolver
from aerodrome.config.secret_sources import Unresolved
from support.vault import VaultServer

_APPROLE = {"VAULT_ROLE_ID": "role", "VAULT_SECRET_ID": "secret-id"}


@pytest.fixture
def vault() -> Iterator[VaultServer]:
    with VaultServer() as server:
        server.secret["aerodrome"] = {"key": "one", "other": "else", "number": 5}
        server.kv["aerodrome"] = {"key": "plain"}
        yield server


class Hours:
    """The clock of the room that renews."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Hours:
    hours = Hours()
    monkeypatch.setattr(vault_module, "monotonic", hours)
    return hours


def resolver(vault: VaultServer, **variables: str) -> Resolver:
    variables = variables or {"VAULT_TOKEN": "root-token"}
    return Resolver({"VAULT_ADDR": vault.url, "HOME": "/nonexistent", **variables}, timeout=20.0)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("vault:secret/aerodrome#key", "one"),
        ("vault:secret/data/aerodrome#key", "one"),
        ("vault:/secret/aerodrome#other", "else"),
        ("vault:kv/aerodrome#key", "plain"),
        ("vault:database/creds/aerodrome#username", "user-1"),
    ],
)
def test_stores_with_and_without_versions(vault: VaultServer, reference: str, expected: str) -> None:
    assert resolver(vault).secret(reference).current() == expected


def test_a_log_in_that_may_not_ask_for_mounts_names_the_whole_path(vault: VaultServer) -> None:
    vault.mounts_are_told = False
    assert resolver(vault).secret("vault:secret/data/aerodrome#key").current() == "one"
    assert resolver(vault).secret("vault:kv/aerodrome#key").current() == "plain"


def test_settings_refer_to_it_and_a_change_is_seen_by_the_next_refresh(vault: VaultServer, tmp_path: Path) -> None:
    file = tmp_path / "aerodrome.toml"
    file.write_text('[provider]\ngithub_token = "vault:secret/aerodrome#key"\n')
    settings = load_settings(file, env={"VAULT_ADDR": vault.url, "VAULT_TOKEN": "root-token"})
    secret = settings.provider.github_token
    assert reveal(secret) == "one"
    vault.secret["aerodrome"] = {"key": "two"}
    assert reveal(secret) == "one"
    assert secret.cell.refresh()  # type: ignore[union-attr]
    assert reveal(secret) == "two"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("vault:secret/nothing#key", r"Vault has nothing at this path \(status 404\)"),
        ("vault:secret/aerodrome#missing", "Vault has no 'missing' at secret/aerodrome"),
        ("vault:secret/aerodrome#number", "what Vault has as 'number' at secret/aerodrome is no text"),
    ],
)
def test_what_is_not_there_is_told(vault: VaultServer, reference: str, expected: str) -> None:
    with pytest.raises(Unresolved, match=expected):
        resolver(vault).secret(reference)


def test_a_vault_that_is_sealed_refuses_or_is_away_leaves_the_last_good_value(vault: VaultServer) -> None:
    cell = resolver(vault).secret("vault:secret/aerodrome#key")
    vault.sealed = True
    assert not cell.refresh()
    assert cell.problem == "Vault is sealed, or under maintenance (status 503)"
    vault.sealed = False
    vault.tokens.clear()
    assert not cell.refresh()
    assert cell.problem is not None
    assert cell.problem.startswith("Vault refuses this log-in")
    assert cell.current() == "one"
    vault.tokens.add("root-token")
    vault.secret["aerodrome"] = {"key": "two"}
    assert cell.refresh()
    assert cell.problem is None
    assert "root-token" not in repr(cell)


def test_nobody_there_is_told() -> None:
    with pytest.raises(Unresolved, match="Vault cannot be reached"):
        Resolver({"VAULT_ADDR": "http://127.0.0.1:9", "VAULT_TOKEN": "t"}).secret("vault:secret/a#k")
    with pytest.raises(Unresolved, match="no VAULT_TOKEN, VAULT_ROLE_ID or VAULT_ROLE is set, and the token file "):
        Resolver({"HOME": "/nonexistent"}).secret("vault:secret/a#k")


def test_the_file_of_vault_login(vault: VaultServer, tmp_path: Path) -> None:
    (tmp_path / ".vault-token").write_text("root-token\n")
    assert resolver(vault, HOME=str(tmp_path)).secret("vault:secret/aerodrome#key").current() == "one"


def test_a_role_logs_in(vault: VaultServer) -> None:
    found = resolver(vault, VAULT_ROLE_ID="role", VAULT_SECRET_ID="secret-id").secret("vault:secret/aerodrome#key")
    assert found.current() == "one"
    assert vault.logins == [{"path": "auth/approle/login", "role_id": "role", "secret_id": "secret-id"}]
    with pytest.raises(Unresolved, match="does not accept the request"):
        resolver(vault, VAULT_ROLE_ID="role", VAULT_SECRET_ID="wrong").secret("vault:secret/aerodrome#key")


def test_a_pod_logs_in(vault: VaultServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("service-account")
    variables = {"VAULT_ROLE": "aerodrome", "VAULT_SERVICE_ACCOUNT_TOKEN": str(tmp_path / "token")}
    assert resolver(vault, **variables).secret("vault:secret/aerodrome#key").current() == "one"
    assert vault.logins == [{"path": "auth/kubernetes/login", "role": "aerodrome", "jwt": "service-account"}]
    with pytest.raises(Unresolved, match="log-in at Vault /nowhere can not be read"):
        resolver(vault, VAULT_ROLE="a", VAULT_SERVICE_ACCOUNT_TOKEN="/nowhere").secret("vault:secret/aerodrome#key")


def test_one_log_in_serves_all_references(vault: VaultServer) -> None:
    shared = resolver(vault, VAULT_ROLE_ID="role", VAULT_SECRET_ID="secret-id")
    assert [shared.secret(f"vault:secret/aerodrome#{key}").current() for key in ("key", "other")] == ["one", "else"]
    assert len(vault.logins) == 1


def test_a_token_is_renewed_before_it_ends(vault: VaultServer, clock: Hours) -> None:
    cell = resolver(vault).secret("vault:secret/aerodrome#key")
    clock.now += 1000
    cell.refresh()
    assert "POST /v1/auth/token/renew-self" not in vault.requests
    clock.now += 1000
    cell.refresh()
    assert vault.requests.count("POST /v1/auth/token/renew-self") == 1
    cell.refresh()
    assert vault.requests.count("POST /v1/auth/token/renew-self") == 1


def test_a_token_that_was_revoked_is_made_anew(vault: VaultServer) -> None:
    cell = resolver(vault, VAULT_ROLE_ID="role", VAULT_SECRET_ID="secret-id").secret("vault:secret/aerodrome#key")
    vault.tokens.clear()
    vault.secret["aerodrome"] = {"key": "two"}
    assert cell.refresh()
    assert len(vault.logins) == 2


@pytest.mark.parametrize("page", [b"<html>Back soon</html>", b"{}", b"[]", b'{"data": 5}', b'{"auth": null}', b""])
def test_what_answers_in_place_of_vault_is_not_taken_for_it(vault: VaultServer, clock: Hours, page: bytes) -> None:
    """Such as a proxy whose Vault is away."""
    references = ("vault:secret/aerodrome#key", "vault:database/creds/a#username")
    cells = [resolver(vault, **_APPROLE).secret(reference) for reference in references]
    vault.page = page
    for seconds in (0.0, vault.token_ttl * 0.6, vault.token_ttl):
        clock.now += seconds
        assert [cell.refresh() for cell in cells] == [False, False]
        assert cells[0].problem == "what answers at VAULT_ADDR is not Vault"
    with pytest.raises(Unresolved, match="is not Vault"):
        resolver(vault, **_APPROLE).secret(references[0])
    vault.page = None
    vault.secret["aerodrome"] = {"key": "two"}
    assert cells[0].refresh()
    assert cells[0].problem is None


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://{{vault:secret/aerodrome#key}}:{{file:{file}}}@db.example/a",
        "postgresql://{{file:{file}}}:{{vault:secret/aerodrome#key}}@db.example/a",
    ],
)
def test_an_address_with_a_file_in_it_waits_for_no_vault_when_the_file_changes(
    vault: VaultServer, tmp_path: Path, address: str
) -> None:
    """It is asked for in the event loop."""
    file = tmp_path / "part"
    file.write_text("first")
    address = address.format(file=file)
    cell = resolver(vault).address(address)

    def with_parts(key: str, part: str) -> str:
        return address.replace("{vault:secret/aerodrome#key}", key).replace(f"{{file:{file}}}", part)

    assert cell.current() == with_parts("one", "first")
    vault.sealed = True
    asked = len(vault.requests)
    file.write_text("second")
    assert [cell.current() for _ in range(3)] == [with_parts("one", "second")] * 3
    assert len(vault.requests) == asked
    # Also when Vault is away at the moment at which it is asked by whoever may wait.
    file.write_text("third")
    assert not cell.refresh()
    assert cell.problem == "Vault is sealed, or under maintenance (status 503)"
    assert cell.current() == with_parts("one", "third")
    assert cell.problem is not None
    vault.sealed = False
    vault.secret["aerodrome"] = {"key": "two"}
    assert cell.refresh()
    assert cell.current() == with_parts("two", "third")
    assert cell.problem is None


def test_nobody_waits_for_one_who_waits_for_vault(vault: VaultServer, tmp_path: Path) -> None:
    file = tmp_path / "part"
    file.write_text("first")
    cell = resolver(vault).address(f"postgresql://{{vault:secret/aerodrome#key}}:{{file:{file}}}@db.example/a")
    asked = len(vault.requests)
    vault.answers.clear()
    refreshing = threading.Thread(target=cell.refresh)
    refreshing.start()
    while len(vault.requests) == asked:
        time.sleep(0.01)
    file.write_text("second")
    assert cell.current() == "postgresql://one:first@db.example/a"
    assert refreshing.is_alive()
    vault.answers.set()
    refreshing.join()
    assert cell.current() == "postgresql://one:second@db.example/a"


def test_two_values_of_one_place_are_of_the_same_time(vault: VaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.secret["db"] = {"user": "user-1", "password": "password-1"}
    cell = resolver(vault).address("postgresql://{vault:secret/db#user}:{vault:secret/db#password}@db.example/a")
    as_it_is = VaultServer.answer

    def changed_behind_each(self: VaultServer, *request: Any) -> Any:
        answer = as_it_is(self, *request)
        if "/secret/data/db" in f"/{request[1]}":
            self.secret["db"] = {"user": "user-2", "password": "password-2"}
        return answer

    monkeypatch.setattr(VaultServer, "answer", changed_behind_each)
    cell.refresh()
    assert cell.current() == "postgresql://user-1:password-1@db.example/a"
    cell.refresh()
    assert cell.current() == "postgresql://user-2:password-2@db.example/a"


def test_what_is_leased_ends_with_the_token_and_is_made_anew_with_the_next(vault: VaultServer, clock: Hours) -> None:
    vault.lease_ttl = 30 * 86400.0
    cell = resolver(vault, **_APPROLE).secret("vault:database/creds/a#username")
    vault.end("token-1")
    clock.now += vault.token_ttl * 0.6
    assert cell.refresh()
    assert (cell.current(), len(vault.logins)) == ("user-2", 2)
    assert not cell.refresh()


def test_a_token_near_the_end_of_its_longest_time_is_replaced_while_what_is_leased_is_good(
    vault: VaultServer, clock: Hours
) -> None:
    vault.lease_ttl = 30 * 86400.0
    cell = resolver(vault, **_APPROLE).secret("vault:database/creds/a#username")
    for _ in range(3):
        clock.now += vault.token_ttl * 0.6
        assert not cell.refresh()
    # A renewal gives no more than what is left of it.
    vault.token_ttl = 1000.0
    clock.now += 3600.0 * 0.6
    vault.sealed_log_in = True
    assert not cell.refresh()
    assert (cell.current(), cell.problem) == ("user-1", None)
    vault.sealed_log_in = False
    vault.token_ttl -= 600.0
    clock.now += 600.0
    assert cell.refresh()
    assert cell.current() == "user-2"
    assert {"token-1", "token-2"} <= vault.tokens


def test_a_token_in_a_file_may_be_replaced(vault: VaultServer, tmp_path: Path) -> None:
    """By `vault login`, or by an agent that keeps it good."""
    file = tmp_path / ".vault-token"
    file.write_text("root-token\n")
    cell = resolver(vault, HOME=str(tmp_path)).secret("vault:secret/aerodrome#key")
    vault.tokens = {"next-token"}
    vault.secret["aerodrome"] = {"key": "two"}
    assert not cell.refresh()
    file.write_text("")
    assert not cell.refresh()
    assert str(cell.problem).startswith("Vault refuses this log-in")
    file.write_text("next-token\n")
    assert cell.refresh()
    assert cell.current() == "two"


def test_leased_credentials_stay_together_and_are_renewed_until_their_end(vault: VaultServer, clock: Hours) -> None:
    shared = resolver(vault)
    cell = shared.address(
        "postgresql://{vault:database/creds/a#username}:{vault:database/creds/a#password}@db.example/a"
    )
    first = "postgresql://user-1:p%40ss%2F1@db.example/a"
    assert cell.current() == first
    assert not cell.refresh()
    assert "PUT /v1/sys/leases/renew" not in vault.requests
    clock.now += vault.lease_ttl * 0.6
    assert not cell.refresh()
    assert vault.requests.count("PUT /v1/sys/leases/renew") == 1
    assert len(vault.leases) == 1
    # Near the end of its longest time, less is given than before: new ones come before these are over.
    clock.now += vault.lease_ttl * 0.6
    vault.lease_ttl = 100.0
    assert cell.refresh()
    assert cell.current() == "postgresql://user-2:p%40ss%2F2@db.example/a"
    vault.renewable = False
    clock.now += vault.lease_ttl * 0.6
    assert cell.refresh()
    assert cell.current() == "postgresql://user-3:p%40ss%2F3@db.example/a"
