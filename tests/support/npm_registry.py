"""A local npm registry with one package, and the ways in which real ones and the network misbehave."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aerodrome.runtime.release import Release

VERSION = "9.8.7"


def tarball(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """A package; `links` are symbolic links, name to target."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", compresslevel=1) as tar:
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def release_of(package: bytes, platform: str) -> Release:
    digest = base64.b64encode(hashlib.sha512(package).digest()).decode()
    return Release(VERSION, {platform: f"sha512-{digest}"})


@dataclass
class Registry:
    """Serves `package` for every path. Behaviour is set before the request and may be changed between them."""

    package: bytes
    url: str = ""
    ranges: bool = True
    #: Break off the n-th answer after so many bytes of its body.
    cut: list[int] = field(default_factory=list)
    #: Answer so first, one status a request.
    statuses: list[int] = field(default_factory=list)
    #: (path, Range header) of each request.
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving(package: bytes) -> Iterator[Registry]:
    registry = Registry(package)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            registry.requests.append((self.path, wanted))
            if registry.statuses and (status := registry.statuses.pop(0)) != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self._send(wanted if registry.ranges else None)

        def _send(self, wanted: str | None) -> None:
            body, total = registry.package, len(registry.package)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            if wanted and start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = body[start:]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if registry.cut:
                body = body[: registry.cut.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ranges_asked(registry: Registry) -> list[int]:
    """Where each request wanted to start; 0 without a range."""
    found = []
    for _, header in registry.requests:
        match = re.fullmatch(r"bytes=(\d+)-", header or "bytes=0-")
        assert match
        found.append(int(match[1]))
    return found
