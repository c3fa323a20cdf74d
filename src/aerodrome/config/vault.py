"""Values in Vault, or in whatever speaks its protocol, for `vault:PATH#KEY`.

**Log-in**, by the variables that are set: `VAULT_TOKEN`, or the file that `vault login` leaves; `VAULT_ROLE_ID` with
`VAULT_SECRET_ID` (AppRole); `VAULT_ROLE` (Kubernetes: the pod's service account proves who it is). Tokens are renewed
when half of their time is over, and made anew by another log-in when that fails, or gives much less than before: they
are near the end of their longest time. What is leased ends with the token that it was made with, so it is made anew
then, too. A token in a file is replaced by whoever put it there.

**Paths** are those of `vault kv get`: of the versions of a key-value store which it is asks Vault. Any other path that
can be read works, too; what is leased (a database's credentials) is kept, and its lease renewed, until that ends.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from aerodrome.config.secret_sources import Unresolved

_SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
#: Status of an answer -> what it means here.
_TROUBLE = {
    400: "does not accept the request",
    403: "refuses this log-in, or what it asks for: see its policy",
    404: "has nothing at this path",
    429: "is asked too often",
    501: "is not initialised",
    503: "is sealed, or under maintenance",
}


@dataclass(slots=True)
class _Leased:
    values: Mapping[str, object]
    lease: str
    renewable: bool
    seconds: float
    since: float

    def due(self) -> bool:
        """Whether half of its time is over."""
        return monotonic() - self.since > self.seconds / 2

    def ended(self) -> bool:
        return monotonic() - self.since >= self.seconds


class Vault:
    """Args:
    env: The `VAULT_*` variables.
    timeout: Seconds for each answer.
    """

    def __init__(self, env: Mapping[str, str], timeout: float) -> None:
        self._env = env
        self._timeout = timeout
        self._client: Any = None
        #: When half of the token's time is over.
        self._renew_at = float("inf")
        #: How long it was to live when it was last given or renewed.
        self._token_seconds = 0.0
        #: Of this token.
        self._leased: dict[str, _Leased] = {}
        self._lock = threading.Lock()

    def read(self, path: str) -> Mapping[str, object]:
        """What is stored there, by key. Raises `Unresolved`."""
        with self._lock:
            try:
                return self._look_up(path)
            except (KeyError, TypeError, AttributeError):
                raise _not_vault() from None

    def _look_up(self, path: str) -> Mapping[str, object]:
        if self._client is None or self._is_replaced():
            self._log_in()
        elif monotonic() >= self._renew_at:
            self._renew_token()
        if (leased := self._renewed(path)) is not None:
            return leased.values
        try:
            return self._read(path)
        except _Refused as refused:
            # The token may have been revoked, or outlived; but who has only a token has no other.
            if refused.status != 403 or self._method() == "token":
                raise
            self._log_in()
            return self._read(path)

    # Log-in

    def _method(self) -> str:
        if self._env.get("VAULT_TOKEN"):
            return "token"
        if self._env.get("VAULT_ROLE_ID"):
            return "approle"
        return "kubernetes" if self._env.get("VAULT_ROLE") else "token"

    def _is_replaced(self) -> bool:
        """Whether there is another token in the file. One that is being written does not count."""
        if self._method() != "token" or self._env.get("VAULT_TOKEN"):
            return False
        try:
            return bool(self._token_file() != self._client.token)
        except Unresolved:
            return False

    def _log_in(self) -> None:
        """When that fails, all is as before."""
        client = self._connect()
        method = self._method()
        if method == "approle":
            self._keep_token(
                self._ask(
                    lambda: client.auth.approle.login(
                        self._env["VAULT_ROLE_ID"],
                        self._env.get("VAULT_SECRET_ID"),
                        mount_point=self._env.get("VAULT_AUTH_MOUNT", "approle"),
                    )
                )
            )
        elif method == "kubernetes":
            service_account = self._service_account_token()
            self._keep_token(
                self._ask(
                    lambda: client.auth.kubernetes.login(
                        self._env["VAULT_ROLE"],
                        service_account,
                        mount_point=self._env.get("VAULT_AUTH_MOUNT", "kubernetes"),
                    )
                )
            )
        else:
            client.token = self._env.get("VAULT_TOKEN") or self._token_file()
            self._look_at_own_token(client)
        self._client = client
        self._leased.clear()

    def _connect(self) -> Any:
        try:
            hvac = importlib.import_module("hvac")
        except ImportError as error:
            raise Unresolved(f"Vault needs its client ({error}): pip install 'aerodrome[vault]'") from None
        env = self._env
        certificate = (env["VAULT_CLIENT_CERT"], env.get("VAULT_CLIENT_KEY")) if env.get("VAULT_CLIENT_CERT") else None
        unverified = env.get("VAULT_SKIP_VERIFY", "").lower() in ("1", "t", "true")
        return hvac.Client(
            url=env.get("VAULT_ADDR") or "https://127.0.0.1:8200",
            # Not the one that the client would look for by itself.
            token="",
            cert=certificate,
            verify=False if unverified else env.get("VAULT_CACERT") or env.get("VAULT_CAPATH") or True,
            timeout=self._timeout,
            namespace=env.get("VAULT_NAMESPACE") or None,
        )

    def _service_account_token(self) -> str:
        path = self._env.get("VAULT_SERVICE_ACCOUNT_TOKEN", _SERVICE_ACCOUNT_TOKEN)
        return _first_line(Path(path), "the service account's token for the log-in at Vault")

    def _token_file(self) -> str:
        home = Path(self._env.get("HOME") or Path.home())
        return _first_line(
            home / ".vault-token", "no VAULT_TOKEN, VAULT_ROLE_ID or VAULT_ROLE is set, and the token file"
        )

    def _look_at_own_token(self, client: Any) -> None:
        """How long it lives, to renew it in time. One that may not look at itself is used as it is."""
        try:
            data = self._ask(client.auth.token.lookup_self)["data"]
        except _Refused as refused:
            if refused.status != 403:
                raise
            data = {}
        self._renew_at = float("inf")
        if data.get("renewable") and data.get("ttl"):
            self._renew_at = monotonic() + float(data["ttl"]) / 2

    def _keep_token(self, answer: Mapping[str, Any]) -> None:
        self._token_seconds = seconds = _lifetime(answer)
        self._renew_at = monotonic() + seconds / 2 if seconds else float("inf")

    def _renew_token(self) -> None:
        try:
            answer = self._ask(self._client.auth.token.renew_self)
            if self._method() != "token" and _lifetime(answer) <= self._token_seconds / 2:
                # Now, while what was leased with it is good. If it cannot be now, there is some time yet.
                with suppress(Unresolved):
                    self._log_in()
                    return
            self._keep_token(answer)
        except _Refused:
            if self._method() == "token":
                # It may live on for a while; whether it does is told by what is read with it.
                self._renew_at = float("inf")
            else:
                self._log_in()

    # Values

    def _read(self, path: str) -> Mapping[str, object]:
        client = self._client
        mount, version = self._mount(path)
        api_path = path
        if version == 2 and not path.startswith(f"{mount}data/"):
            api_path = f"{mount}data/{path.removeprefix(mount)}"
        answer = self._ask(lambda: client.adapter.get(f"/v1/{api_path}"))
        data = answer.get("data") or {}
        if version == 2 or (set(data) == {"data", "metadata"} and isinstance(data["data"], dict)):
            data = data.get("data") or {}
        if not isinstance(data, Mapping):
            raise _not_vault()
        if lease := answer.get("lease_id"):
            seconds = float(answer.get("lease_duration") or 0)
            self._leased[path] = _Leased(data, lease, bool(answer.get("renewable")), seconds, monotonic())
        return data

    def _mount(self, path: str) -> tuple[str, int]:
        """Where the store is mounted that has this path, and its version; of a log-in that may not know, nothing."""
        client = self._client
        try:
            found = self._ask(lambda: client.adapter.get(f"/v1/sys/internal/ui/mounts/{path}"))["data"]
        except _Refused as refused:
            if refused.status not in (403, 404):
                raise
            return "", 0
        options = found.get("options") or {}
        return str(found["path"]), int(options.get("version") or 1) if found.get("type") == "kv" else 0

    def _renewed(self, path: str) -> _Leased | None:
        """What is leased under this path, if its lease goes on."""
        leased = self._leased.get(path)
        if leased is None:
            return None
        if leased.due() and leased.renewable:
            client = self._client
            try:
                answer = self._ask(lambda: client.sys.renew_lease(leased.lease))
            except _Refused:
                # Past its longest time, or revoked: there are new ones.
                leased.seconds = 0
            else:
                seconds = float(answer.get("lease_duration") or 0)
                # Less than there was at first: its longest time is nearly over, and the next renewal would be too late.
                leased.seconds = seconds if seconds > leased.seconds / 2 else 0
                leased.since = monotonic()
        if leased.ended() or (leased.due() and not leased.renewable):
            del self._leased[path]
            return None
        return leased

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Raises `_Refused` (an `Unresolved`) for what the server says, `Unresolved` when it says nothing."""
        exceptions = importlib.import_module("hvac.exceptions")
        requests = importlib.import_module("requests")
        try:
            return call()
        except exceptions.VaultError as error:
            # Its own text has the address, and may have more.
            raise _Refused(_status(exceptions, error)) from None
        except requests.RequestException as error:
            kind = "does not answer in time" if isinstance(error, requests.Timeout) else "cannot be reached"
            if isinstance(error, requests.exceptions.SSLError):
                kind = "has a certificate that is not trusted: see VAULT_CACERT"
            raise Unresolved(f"Vault {kind}") from None
        except (KeyError, TypeError, AttributeError, ValueError):
            raise _not_vault() from None


def _lifetime(answer: Mapping[str, Any]) -> float:
    """Seconds that a token lives which was given or renewed; 0: without end."""
    return float(answer["auth"].get("lease_duration") or 0)


def _not_vault() -> Unresolved:
    """Such as a proxy in front of it, with a page of its own."""
    return Unresolved("what answers at VAULT_ADDR is not Vault")


class _Refused(Unresolved):
    def __init__(self, status: int) -> None:
        super().__init__(f"Vault {_TROUBLE.get(status, 'has an error of its own')} (status {status})")
        self.status = status


def _status(exceptions: Any, error: Exception) -> int:
    kinds = {
        exceptions.InvalidRequest: 400,
        exceptions.Unauthorized: 401,
        exceptions.Forbidden: 403,
        exceptions.InvalidPath: 404,
        exceptions.RateLimitExceeded: 429,
        exceptions.VaultNotInitialized: 501,
        exceptions.BadGateway: 502,
        exceptions.VaultDown: 503,
    }
    return next((status for kind, status in kinds.items() if isinstance(error, kind)), 500)


def _first_line(path: Path, what: str) -> str:
    try:
        line = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise Unresolved(f"{what} {path} can not be read") from None
    if not line:
        raise Unresolved(f"{what} {path} is empty")
    return line
