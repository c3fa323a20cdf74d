"""A server that speaks as much of Vault's protocol as its client uses, in a thread of its own."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class VaultServer:
    """Mounts: `secret/` is a key-value store with versions, `kv/` one without, `database/` gives leases."""

    def __init__(self) -> None:
        #: Path behind the mount -> values.
        self.secret: dict[str, dict[str, Any]] = {}
        self.kv: dict[str, dict[str, Any]] = {}
        self.tokens = {"root-token"}
        self.sealed = False
        #: What is answered to everything in place of Vault, such as by a proxy in front of it.
        self.page: bytes | None = None
        #: Only who has a token is served.
        self.sealed_log_in = False
        #: Cleared, nothing is answered until it is set again.
        self.answers = threading.Event()
        self.answers.set()
        #: Seconds that tokens and leases are told to live.
        self.token_ttl = 3600.0
        self.lease_ttl = 3600.0
        #: Whether logins may ask where a path is mounted, as Vault's default policy lets them.
        self.mounts_are_told = True
        #: Method and path of each request.
        self.requests: list[str] = []
        self.logins: list[dict[str, Any]] = []
        self.leases: list[str] = []
        #: Lease -> the token that it was made with, and ends with.
        self.made_with: dict[str, str] = {}
        self.renewable = True

        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                outer.requests.append(f"{self.command} {self.path}")
                token = self.headers.get("X-Vault-Token", "")
                outer.answers.wait()
                status, answer = outer.answer(self.command, self.path.removeprefix("/v1/"), body, token)
                text = json.dumps(answer).encode()
                kind = "application/json"
                if outer.page is not None:
                    status, text, kind = 200, outer.page, "text/html"
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = _serve  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, method: str, path: str, body: dict[str, Any], token: str) -> tuple[int, dict[str, Any]]:
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if path in ("auth/approle/login", "auth/kubernetes/login"):
            if self.sealed_log_in:
                return 503, {"errors": ["Vault is sealed"]}
            return self._log_in(path, body)
        if token not in self.tokens:
            return 403, {"errors": ["permission denied"]}
        if path == "auth/token/lookup-self":
            return 200, {"data": {"ttl": self.token_ttl, "renewable": True}}
        if path == "auth/token/renew-self":
            return 200, {"auth": {"client_token": token, "lease_duration": self.token_ttl}}
        if path == "sys/leases/renew":
            if body["lease_id"] not in self.leases or not self.renewable:
                return 400, {"errors": ["lease not found or lease is not renewable"]}
            return 200, {"lease_id": body["lease_id"], "lease_duration": self.lease_ttl, "renewable": True}
        if path.startswith("sys/internal/ui/mounts/"):
            return self._mount(path.removeprefix("sys/internal/ui/mounts/"))
        return self._read(path, token)

    def end(self, token: str) -> None:
        """The token's time is over."""
        self.tokens.discard(token)
        self.leases = [lease if self.made_with[lease] != token else "ended" for lease in self.leases]

    def _log_in(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.logins.append({"path": path, **body})
        if body.get("secret_id") not in (None, "secret-id") or body.get("jwt") not in (None, "service-account"):
            return 400, {"errors": ["invalid secret id"]}
        token = f"token-{len(self.logins)}"
        self.tokens.add(token)
        return 200, {"auth": {"client_token": token, "lease_duration": self.token_ttl, "renewable": True}}

    def _mount(self, path: str) -> tuple[int, dict[str, Any]]:
        mount = path.partition("/")[0]
        kinds = {"secret": ("kv", {"version": "2"}), "kv": ("kv", {"version": "1"}), "database": ("database", None)}
        if not self.mounts_are_told or mount not in kinds:
            return 403, {"errors": ["preflight capability check returned 403"]}
        kind, options = kinds[mount]
        return 200, {"data": {"path": f"{mount}/", "type": kind, "options": options}}

    def _read(self, path: str, token: str) -> tuple[int, dict[str, Any]]:
        mount, _, rest = path.partition("/")
        if mount == "secret" and rest.startswith("data/") and (found := self.secret.get(rest.removeprefix("data/"))):
            return 200, {"data": {"data": found, "metadata": {"version": 1}}}
        if mount == "kv" and (found := self.kv.get(rest)):
            return 200, {"data": found, "lease_duration": 2764800}
        if mount == "database":
            lease = f"{path}/{len(self.leases)}"
            self.leases.append(lease)
            self.made_with[lease] = token
            values = {"username": f"user-{len(self.leases)}", "password": f"p@ss/{len(self.leases)}"}
            return 200, {"lease_id": lease, "lease_duration": self.lease_ttl, "renewable": True, "data": values}
        return 404, {"errors": []}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
