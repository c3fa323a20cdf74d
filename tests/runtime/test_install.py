"""Installing the CLI from a registry or a file: whole, verified, or not at all."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aerodrome.errors import ConfigError, RuntimeUnavailable
from aerodrome.runtime.download import Retries
from aerodrome.runtime.install import Installation, install
from aerodrome.runtime.registry import find_registry, without_credentials
from support.npm_registry import VERSION, Registry, ranges_asked, release_of, serving, tarball

PLATFORM = "linux-x64"
#: Does not compress, so that the package is about as long: several reads of the downloader.
BINARY = random.Random(1).randbytes(1_500_000)
MEMBERS = {
    "package/package.json": b"{}",
    "package/copilot": BINARY,
    "package/LICENSE.md": b"licence",
    "package/README.md": b"not wanted",
}
PACKAGE = tarball(MEMBERS)
AT_ONCE = Retries(limit=3, sleep=lambda _: None)


@dataclass
class Notes:
    notes: list[str] = field(default_factory=list)
    seen: list[tuple[int, int | None]] = field(default_factory=list)

    def bytes(self, done: int, total: int | None) -> None:
        self.seen.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving(PACKAGE) as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Installation:
    return Installation(release_of(PACKAGE, PLATFORM), PLATFORM, tmp_path / "cache")


def run(target: Installation, registry: Registry, **options: Any) -> tuple[bool, Notes]:
    notes = Notes()
    return install(target, notes, registry=registry.url, retries=AT_ONCE, **options), notes


def everything_in(target: Installation) -> list[str]:
    """Every file of the cache but the lock."""
    files = (path for path in target.cache.rglob("*") if path.is_file() and path != target.lock)
    return sorted(str(path.relative_to(target.cache)) for path in files)


INSTALLED = [f"cli/{VERSION}/{PLATFORM}/{name}" for name in ("LICENSE.md", "copilot", "manifest.json", "package.json")]


def test_an_installation_is_whole_executable_and_alone(target: Installation, registry: Registry) -> None:
    installed, notes = run(target, registry)
    assert installed
    assert target.is_complete()
    assert target.binary.read_bytes() == BINARY
    assert os.access(target.binary, os.X_OK)
    assert everything_in(target) == INSTALLED
    assert registry.requests == [(f"/@github/copilot-{PLATFORM}/-/copilot-{PLATFORM}-{VERSION}.tgz", None)]
    assert notes.seen[0] == (0, len(PACKAGE))
    assert notes.seen[-1] == (len(PACKAGE), len(PACKAGE))
    assert notes.notes == []


def test_a_second_installation_does_nothing(target: Installation, registry: Registry) -> None:
    run(target, registry)
    before = target.binary.stat()
    assert run(target, registry)[0] is False
    assert len(registry.requests) == 1
    assert target.binary.stat() == before


def test_force_installs_again(target: Installation, registry: Registry) -> None:
    run(target, registry)
    before = target.binary.stat().st_ino
    assert run(target, registry, force=True)[0] is True
    assert target.binary.stat().st_ino != before
    assert everything_in(target) == INSTALLED


@pytest.mark.parametrize("damage", ["binary", "manifest", "mode", "shorter", "other release"])
def test_a_damaged_installation_is_seen_and_mended(target: Installation, registry: Registry, damage: str) -> None:
    run(target, registry)
    match damage:
        case "binary":
            target.binary.unlink()
        case "manifest":
            target.manifest.write_text("[]")
        case "mode":
            target.binary.chmod(0o600)
        case "shorter":
            target.binary.write_bytes(BINARY[:-1])
        case "other release":
            target.manifest.write_text(target.manifest.read_text().replace("sha512-", "sha512-x"))
    assert not target.is_complete()
    assert run(target, registry)[0] is True
    assert target.is_complete()


def test_a_cut_connection_is_resumed_where_it_broke(target: Installation, registry: Registry) -> None:
    registry.cut = [600_000, 300_000]
    installed, notes = run(target, registry)
    assert installed
    assert target.binary.read_bytes() == BINARY
    first, second, third = ranges_asked(registry)
    assert (first, second, third) == (0, 600_000, 900_000)
    assert ["trying again from byte 600000" in note for note in notes.notes] == [True, False]


def test_a_download_goes_on_in_a_later_run(target: Installation, registry: Registry) -> None:
    registry.cut = [700_000, 0, 0, 0]
    with pytest.raises(RuntimeUnavailable, match=r"goes on where it stopped.*--from FILE\.tgz"):
        run(target, registry)
    assert not target.is_complete()
    assert target.part.stat().st_size == 700_000
    registry.requests.clear()
    assert run(target, registry)[0] is True
    assert ranges_asked(registry) == [700_000]
    assert everything_in(target) == INSTALLED


def test_a_complete_download_that_was_not_unpacked_is_not_fetched_again(
    target: Installation, registry: Registry
) -> None:
    target.part.parent.mkdir(parents=True)
    target.part.write_bytes(PACKAGE)
    assert run(target, registry)[0] is True
    assert ranges_asked(registry) == [len(PACKAGE)]


@pytest.mark.parametrize("extra", [b"", b"too long"])
def test_a_partial_download_of_something_else_is_started_again(
    target: Installation, registry: Registry, extra: bytes
) -> None:
    target.part.parent.mkdir(parents=True)
    target.part.write_bytes((b"x" * len(PACKAGE) + extra) if extra else b"x" * 1000)
    assert run(target, registry)[0] is True
    assert target.binary.read_bytes() == BINARY


def test_a_server_without_ranges_is_read_from_the_start(target: Installation, registry: Registry) -> None:
    registry.ranges = False
    registry.cut = [600_000]
    assert run(target, registry)[0] is True
    assert ranges_asked(registry) == [0, 600_000]
    assert target.binary.read_bytes() == BINARY


def test_a_server_without_ranges_that_always_breaks_at_one_place_is_given_up(
    target: Installation, registry: Registry
) -> None:
    registry.ranges = False
    registry.cut = [500_000] * 100
    with pytest.raises(RuntimeUnavailable, match="can not be downloaded"):
        run(target, registry)
    assert len(registry.requests) == 2 + AT_ONCE.limit - 1


def test_faults_of_the_server_that_may_pass_are_waited_out(target: Installation, registry: Registry) -> None:
    registry.statuses = [503, 429, 500]
    installed, notes = run(target, registry)
    assert installed
    assert len(notes.notes) == 3
    assert "the server answered 503" in notes.notes[0]


def test_waiting_grows_and_is_bounded(target: Installation, registry: Registry) -> None:
    registry.statuses = [500] * 6
    waited: list[float] = []
    retries = Retries(limit=6, first_delay=1, longest_delay=5, sleep=waited.append)
    install(target, Notes(), registry=registry.url, retries=retries)
    assert waited == [1, 2, 4, 5, 5, 5]


@pytest.mark.parametrize(("status", "mend"), [(404, r"--registry URL"), (401, "npm pack"), (403, "npm pack")])
def test_a_refusal_of_the_server_is_told_at_once(
    target: Installation, registry: Registry, status: int, mend: str
) -> None:
    registry.statuses = [status]
    with pytest.raises(RuntimeUnavailable, match=f"answered {status}.*{mend}"):
        run(target, registry)
    assert len(registry.requests) == 1
    assert everything_in(target) in ([], [str(target.part.relative_to(target.cache))])


def test_a_server_that_is_not_there_is_told(target: Installation) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can get the port meanwhile
        gone = Registry(PACKAGE, url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(RuntimeUnavailable, match=r"can not be downloaded: .*refused.*HTTPS_PROXY"):
            run(target, gone)


def test_a_proxy_is_used(target: Installation, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", registry.url)
    assert install(target, Notes(), registry="http://packages.invalid", retries=AT_ONCE) is True
    assert registry.requests[0][0].startswith("http://packages.invalid/@github/")


def test_proxy_settings_that_can_not_be_used_are_told(target: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(RuntimeUnavailable, match="proxy settings of the environment"):
        install(target, Notes(), registry="http://packages.invalid", retries=AT_ONCE)


def test_a_certificate_bundle_that_is_none_is_told(
    target: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text("rubbish")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with pytest.raises(RuntimeUnavailable, match="certificates that REQUESTS_CA_BUNDLE names can not be read"):
        install(target, Notes(), registry="https://packages.invalid", retries=AT_ONCE)


def test_a_changed_package_is_refused_and_leaves_nothing(target: Installation, registry: Registry) -> None:
    registry.package = tarball({**MEMBERS, "package/copilot": b"something else"})
    with pytest.raises(RuntimeUnavailable, match=r"checksum is wrong.*does not serve the original"):
        run(target, registry)
    assert everything_in(target) == []


def test_a_package_corrupted_on_the_way_can_be_fetched_again(target: Installation, registry: Registry) -> None:
    registry.package = PACKAGE[:1000] + bytes([PACKAGE[1000] ^ 1]) + PACKAGE[1001:]
    with pytest.raises(RuntimeUnavailable, match="checksum is wrong"):
        run(target, registry)
    registry.package = PACKAGE
    assert run(target, registry)[0] is True


def test_a_failed_installation_leaves_the_earlier_one(target: Installation, registry: Registry) -> None:
    run(target, registry)
    registry.package = b"rubbish"
    with pytest.raises(RuntimeUnavailable):
        run(target, registry, force=True)
    assert target.is_complete()
    assert target.binary.read_bytes() == BINARY


def test_two_installations_at_once_download_once(target: Installation, registry: Registry) -> None:
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(run(target, registry)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]
    assert len(registry.requests) == 1
    assert everything_in(target) == INSTALLED


def test_an_installation_waits_for_another_process(target: Installation, registry: Registry) -> None:
    """The lock is held by a real process; that it dies without a word frees it."""
    target.lock.parent.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD_LOCK, str(target.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin
    assert holder.stdout
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        waiting = threading.Event()

        class Waiting(Notes):
            def note(self, text: str) -> None:
                assert "another process" in text
                waiting.set()

        thread = threading.Thread(target=install, args=(target, Waiting()), kwargs={"registry": registry.url})
        thread.start()
        assert waiting.wait(60)
        assert not target.is_complete()
        holder.kill()
    thread.join(60)
    assert target.is_complete()


_HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "wb")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_installation_left_is_cleared(target: Installation, registry: Registry) -> None:
    stale = target.directory.parent / f".installing-{PLATFORM}-abc"
    stale.mkdir(parents=True)
    (stale / "copilot").write_bytes(b"half")
    run(target, registry)
    assert everything_in(target) == INSTALLED


def test_a_package_can_come_from_a_file(target: Installation, tmp_path: Path) -> None:
    archive = tmp_path / "package.tgz"
    archive.write_bytes(PACKAGE)
    assert install(target, Notes(), archive=archive) is True
    assert everything_in(target) == INSTALLED
    assert archive.read_bytes() == PACKAGE


def test_a_wrong_file_is_refused(target: Installation, tmp_path: Path) -> None:
    archive = tmp_path / "package.tgz"
    archive.write_bytes(PACKAGE[:-1])
    with pytest.raises(RuntimeUnavailable, match=rf"checksum is wrong: it must be copilot-{PLATFORM}-{VERSION}\.tgz"):
        install(target, Notes(), archive=archive)
    assert everything_in(target) == []
    assert archive.exists()


HOSTILE = tarball(
    {**MEMBERS, "../escape": b"x", "package/../../escape": b"x", "/abs/escape": b"x", "package/sub/copilot": b"x"},
    links={"package/LICENSE.md": "/etc/passwd", "package": "/tmp"},
)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (tarball({"package/README.md": b"x"}), "has no package/copilot"),
        (tarball({}, links={"package/copilot": "/bin/sh"}), "has no package/copilot"),
        (PACKAGE[: len(PACKAGE) // 2], "is no package"),
        (b"not an archive", "is no package"),
    ],
)
def test_what_is_no_package_is_refused(tmp_path: Path, package: bytes, message: str) -> None:
    """Also with the right checksum: the one of a release may be wrong in the source."""
    target = Installation(release_of(package, PLATFORM), PLATFORM, tmp_path / "cache")
    archive = tmp_path / "package.tgz"
    archive.write_bytes(package)
    with pytest.raises(RuntimeUnavailable, match=message):
        install(target, Notes(), archive=archive)
    assert everything_in(target) == []


def test_no_path_in_a_package_leads_outside(tmp_path: Path) -> None:
    target = Installation(release_of(HOSTILE, PLATFORM), PLATFORM, tmp_path / "a" / "b" / "cache")
    archive = tmp_path / "package.tgz"
    archive.write_bytes(HOSTILE)
    assert install(target, Notes(), archive=archive)
    assert everything_in(target) == INSTALLED
    assert (target.directory / "LICENSE.md").read_bytes() == b"licence"
    assert not list(tmp_path.rglob("*escape*"))


@pytest.mark.parametrize("while_", ["downloading", "unpacking"])
def test_a_full_disk_is_told_and_leaves_nothing(
    target: Installation, registry: Registry, tmp_path: Path, while_: str
) -> None:
    """A real failing write: files of that process may not grow past half the package."""
    archive = tmp_path / "package.tgz"
    archive.write_bytes(PACKAGE)
    arguments = {
        "version": VERSION,
        "integrity": dict(target.release.integrity),
        "platform": PLATFORM,
        "cache": str(target.cache),
        "limit": len(PACKAGE) // 2,
        "registry": registry.url,
        "archive": str(archive) if while_ == "unpacking" else None,
    }
    done = subprocess.run(
        [sys.executable, "-c", _INSTALL_WITH_LITTLE_ROOM],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.startswith(f"no room left in {target.cache}: free some, or set AERODROME_CACHE_DIR")
    assert everything_in(target) == []


_INSTALL_WITH_LITTLE_ROOM = """
import json, resource, sys
from pathlib import Path
from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime.install import Installation, install
from aerodrome.runtime.release import Release

class Quiet:
    def bytes(self, done, total): pass
    def note(self, text): pass

given = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_FSIZE, (given["limit"], resource.RLIM_INFINITY))
target = Installation(Release(given["version"], given["integrity"]), given["platform"], Path(given["cache"]))
archive = given["archive"] and Path(given["archive"])
try:
    install(target, Quiet(), registry=given["registry"], archive=archive)
except RuntimeUnavailable as error:
    print(error.detail)
"""


def test_a_cache_that_can_not_be_written_is_told(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    target = Installation(release_of(PACKAGE, PLATFORM), PLATFORM, tmp_path / "file" / "cache")
    with pytest.raises(RuntimeUnavailable, match=r"can not be used: .*AERODROME_CACHE_DIR"):
        run(target, registry)


def test_a_platform_without_a_package_is_told(tmp_path: Path) -> None:
    target = Installation(release_of(PACKAGE, PLATFORM), "plan9-mips", tmp_path)
    with pytest.raises(RuntimeUnavailable, match="not made for plan9-mips, only for linux-x64"):
        install(target, Notes())


def npm_that_says(path: Path, text: str) -> dict[str, str]:
    path.mkdir(exist_ok=True)
    (path / "npm").write_text(f"#!/bin/sh\n{text}\n")
    (path / "npm").chmod(0o755)
    return {"PATH": f"{path}:/usr/bin:/bin"}


def test_the_registry_is_the_flag_then_the_variable_then_npms(tmp_path: Path) -> None:
    env = npm_that_says(tmp_path, 'echo "npm warn x" >&2; [ "$3" = registry ] && echo http://npm/ || echo undefined')
    assert find_registry(None, env) == "http://npm"
    assert find_registry(None, {**env, "NPM_CONFIG_REGISTRY": "http://variable/x/"}) == "http://variable/x"
    assert find_registry("https://flag", {**env, "NPM_CONFIG_REGISTRY": "http://variable"}) == "https://flag"


def test_a_registry_for_the_packages_scope_comes_first(tmp_path: Path) -> None:
    env = npm_that_says(tmp_path, '[ "$3" = registry ] && echo http://npm || echo http://scope')
    assert find_registry(None, env) == "http://scope"


@pytest.mark.parametrize("npm", ["exit 1", "echo undefined", ""])
def test_no_registry_is_told_with_the_ways_out(tmp_path: Path, npm: str) -> None:
    env = npm_that_says(tmp_path, npm) if npm else {"PATH": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"install npm.*--registry URL.*--from FILE\.tgz"):
        find_registry(None, env)


@pytest.mark.parametrize("url", ["ftp://host", "registry.example", "http://", "http://host:x", "file:///x"])
def test_a_registry_that_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--registry is .*expected the address of an npm registry"):
        find_registry(url, {})


def test_credentials_in_a_registrys_address_are_not_shown(target: Installation, registry: Registry) -> None:
    assert without_credentials("https://user:secret@host/x") == "https://host/x"
    registry.statuses = [404]
    registry.url = registry.url.replace("http://", "http://user:secret@")
    with pytest.raises(RuntimeUnavailable) as caught:
        run(target, registry)
    assert "secret" not in caught.value.detail
