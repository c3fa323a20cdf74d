"""`aerodrome runtime`."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aerodrome.cli import runtime
from aerodrome.runtime.release import host_platform
from support.command_line import Run
from support.npm_registry import VERSION, Registry, release_of, serving, tarball

PACKAGE = tarball({"package/copilot": b"#!/bin/sh\n" + os.urandom(300_000)})
RELEASE = release_of(PACKAGE, host_platform())


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setattr(runtime, "PINNED", RELEASE)
    with serving(PACKAGE) as server:
        yield server


def test_it_installs_once_and_says_where(run: Run, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "xdg_cache_home" / "aerodrome" / "cli" / VERSION / host_platform() / "copilot"
    first = run("runtime", "install", "--registry", registry.url)
    assert first.code == 0
    assert first.out == f"Copilot CLI {VERSION} for {host_platform()} is installed: {path}\n"
    assert path.is_file()
    lines = first.err.splitlines()
    assert lines[0] == f"Copilot CLI: 0B of {len(PACKAGE) / 1024:.0f}KiB" or lines[0].startswith("Copilot CLI: 0B of ")
    assert 2 <= len(lines) <= 11
    second = run("runtime", "install")
    assert second.out == f"Copilot CLI {VERSION} for {host_platform()} is already installed: {path}\n"
    assert second.err == ""
    assert len(registry.requests) == 1
    assert run("runtime", "install", "--force", "--registry", registry.url).code == 0
    assert len(registry.requests) == 2


def test_it_installs_from_a_file(run: Run, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "package.tgz").write_bytes(PACKAGE)
    assert run("runtime", "install", "--from", tmp_path / "package.tgz").code == 0
    assert registry.requests == []


def test_the_registry_may_come_from_the_environment(
    run: Run, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry.url)
    assert run("runtime", "install").code == 0


def test_a_failure_ends_with_1(run: Run, registry: Registry) -> None:
    registry.package = b"changed"
    result = run("runtime", "install", "--registry", registry.url)
    assert result.code == 1
    assert "error: " in result.err
    assert "the checksum is wrong" in result.err
    assert "Traceback" not in result.err


def test_on_a_terminal_there_is_a_bar(registry: Registry, tmp_path: Path) -> None:
    """A real terminal: the child's standard error is a pseudo-terminal."""
    script = f"""
import sys
from aerodrome.cli import main, runtime
from aerodrome.runtime.release import Release
runtime.PINNED = Release({VERSION!r}, {dict(RELEASE.integrity)!r})
main.main(sys.argv[1:])
"""
    ours, theirs = pty.openpty()
    env = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "AERODROME_CACHE_DIR": str(tmp_path), "COLUMNS": "100"}
    command = [sys.executable, "-c", script, "runtime", "install", "--registry", registry.url]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=env, timeout=60, check=False)
    os.close(theirs)
    shown = b""
    # Linux ends a terminal without writers with EIO instead of an end of file.
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass
    os.close(ours)
    assert done.returncode == 0, shown
    assert "━".encode() in shown
    assert b"is installed" in done.stdout


def test_path_prints_what_serve_would_start(run: Run, tmp_path: Path) -> None:
    copilot = tmp_path / "copilot"
    copilot.write_text("#!/bin/sh\necho 'GitHub Copilot CLI 1.0.102.'\n")
    copilot.chmod(0o755)
    Path("aerodrome.toml").write_text(f'[runtime]\ncommand = "{copilot}"\n')
    assert run("runtime", "path").out == f"{copilot}\n"
    assert run("runtime", "path", "--json").json == {
        "path": str(copilot),
        "source": "runtime.command",
        "version": "1.0.102",
    }
    copilot.write_text("#!/bin/sh\necho 'GitHub Copilot CLI 1.0.200.'\n")
    result = run("runtime", "path")
    assert result.code == 1
    assert "this release needs 1.0.102" in result.err
    Path("aerodrome.toml").write_text(f'[runtime]\ncommand = "{copilot}"\nallow_version_mismatch = true\n')
    assert run("runtime", "path", "--json").json["version"] == "1.0.200"
