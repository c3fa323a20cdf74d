"""Fetch one large file over HTTP into a partial file that a later attempt, or a later run, goes on with."""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import httpx

from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime.registry import without_credentials

_TIMEOUT = httpx.Timeout(30.0, connect=15.0)
#: Where tools of the neighbourhood are told about a company's own certificate authority.
_CA_VARIABLES = ("NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Progress(Protocol):
    """Told what happens, from the thread that installs."""

    def bytes(self, done: int, total: int | None) -> None:
        """So much of the file is here; `total` is ``None`` while unknown."""
        ...

    def note(self, text: str) -> None:
        """Something a person may want to know, such as a retry."""
        ...


@dataclass(frozen=True, slots=True)
class Retries:
    """How often to try again when nothing more arrives, and how long to wait before the first time (seconds)."""

    limit: int = 5
    first_delay: float = 0.5
    longest_delay: float = 10.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int) -> None:
        self.sleep(min(self.longest_delay, self.first_delay * 2 ** (failures - 1)))


class _TryAgain(Exception):
    """A fault that may pass: of the network, or of a server under load."""


def download(
    url: str,
    part: Path,
    progress: Progress,
    *,
    retries: Retries | None = None,
    env: Mapping[str, str] = os.environ,
) -> bool:
    """Complete `part`, from where it ends if the server can, else from the start.

    Returns:
        Whether it was begun by an earlier run: then a wrong checksum may be that part's fault.

    Raises:
        RuntimeUnavailable: The server refuses, or the network fails for longer than the retries last.
        OSError: The file can not be written.
    """
    retries = retries or Retries()
    resumed = part.exists() and part.stat().st_size > 0
    failures, furthest = 0, 0
    with _client(url, env) as client:
        while True:
            try:
                _attempt(client, url, part, progress)
                return resumed
            except (_TryAgain, httpx.TransportError) as error:
                # A connection that breaks every few megabytes gets there in the end: only attempts that bring
                # nothing new count. A server that always starts anew and breaks at the same place brings nothing.
                size = part.stat().st_size if part.exists() else 0
                failures = 1 if size > furthest else failures + 1
                furthest = max(furthest, size)
                reason = str(error) or type(error).__name__
                if failures > retries.limit:
                    raise RuntimeUnavailable(
                        f"{without_credentials(url)} can not be downloaded: {reason}. Check network and proxy "
                        "(HTTPS_PROXY), then run it again: it goes on where it stopped. Or download the file "
                        "elsewhere and give it with --from FILE.tgz"
                    ) from None
                progress.note(f"{reason}; trying again from byte {size}")
                retries.wait(failures)


def _client(url: str, env: Mapping[str, str]) -> httpx.Client:
    verify = _tls(env) if url.startswith("https:") else True
    try:
        return httpx.Client(verify=verify, timeout=_TIMEOUT, follow_redirects=True)
    except (ImportError, ValueError) as error:
        # A SOCKS proxy without the package for it, or a proxy variable that is no URL.
        raise RuntimeUnavailable(f"the proxy settings of the environment can not be used: {error}") from None


def _tls(env: Mapping[str, str]) -> ssl.SSLContext:
    """httpx's own context (it honours SSL_CERT_FILE and SSL_CERT_DIR) that trusts a company's authority as well."""
    source = "SSL_CERT_FILE"
    try:
        context = httpx.create_ssl_context()
        for source in _CA_VARIABLES:
            if bundle := env.get(source):
                context.load_verify_locations(bundle)
    except OSError as error:
        raise RuntimeUnavailable(f"the certificates that {source} names can not be read: {error}") from None
    return context


def _attempt(client: httpx.Client, url: str, part: Path, progress: Progress) -> None:
    with part.open("ab") as file:
        offset = file.tell()
        # The archive's own bytes are wanted, whatever encoding a server offers on top.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        with client.stream("GET", url, headers=headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
                if _total(response) == offset:
                    return
                file.truncate(0)
                raise _TryAgain("the partial download does not fit the file")
            _check_status(response, url)
            if offset and not _continues(response, offset):
                file.truncate(0)
                offset = 0
            _receive(response, file, offset, progress)


def _check_status(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        return
    said = f"the server answered {status} {response.reason_phrase}".strip()
    if status in (408, 425, 429) or status >= 500:
        raise _TryAgain(said)
    mend = "check the registry (--registry URL)"
    if status in (401, 403, 407):
        mend = "download the package with npm (`npm pack`), which has the credentials, and give it with --from FILE.tgz"
    raise RuntimeUnavailable(f"{without_credentials(url)}: {said}; {mend}")


def _continues(response: httpx.Response, offset: int) -> bool:
    """Whether the body starts at the byte asked for; a server may ignore the range, or cut it otherwise."""
    content_range = response.headers.get("Content-Range", "")
    return response.status_code == httpx.codes.PARTIAL_CONTENT and content_range.startswith(f"bytes {offset}-")


def _total(response: httpx.Response) -> int | None:
    match = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _receive(response: httpx.Response, file: BinaryIO, offset: int, progress: Progress) -> None:
    length = response.headers.get("Content-Length", "")
    total = offset + int(length) if length.isdigit() else None
    done = offset
    progress.bytes(done, total)
    # As it arrives: gathered into larger chunks, the last ones would be lost with a connection that breaks.
    for chunk in response.iter_raw():
        file.write(chunk)
        done += len(chunk)
        progress.bytes(done, total)
