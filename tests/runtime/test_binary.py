"""Finding the CLI binary, and refusing the wrong one with a message that says what to do."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from aerodrome._util.xdg import aerodrome_cache
from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime import binary as binary_module
from aerodrome.runtime.binary import Source, read_version, resolve
from aerodrome.runtime.executable import check_executable, read_target, this_machine
from aerodrome.runtime.install import Installation, install
from aerodrome.runtime.release import PINNED, SDK_VERSION, Release, host_platform, sdk_pair_problem
from support.npm_registry import release_of, tarball

VERSION = "9.8.7"
PACKAGE = tarball({"package/copilot": b"#!/bin/sh\necho never started\n"})
RELEASE = release_of(PACKAGE, host_platform())

MakeCopilot = Callable[..., Path]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def copilot(tmp_path: Path) -> MakeCopilot:
    """Writes an executable that answers `--version` as the CLI does, and counts how often it was asked."""

    def make(path: Path, version: str = VERSION, body: str = "") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        line = (
            f"echo asked >> {tmp_path / 'asked'}\necho 'GitHub Copilot CLI {version}.'\necho \"Run 'copilot update'\""
        )
        path.write_text(f"#!/bin/sh\n{body or line}\n")
        path.chmod(0o755)
        return path

    return make


def times_asked(tmp_path: Path) -> int:
    asked = tmp_path / "asked"
    return len(asked.read_text().splitlines()) if asked.exists() else 0


def sdk_path(tmp_path: Path) -> Path:
    return tmp_path / f"cache/github-copilot-sdk/cli/{VERSION}/prebuilds/{host_platform()}/copilot"


class Quiet:
    def bytes(self, done: int, total: int | None) -> None: ...

    def note(self, text: str) -> None: ...


def install_in_cache(tmp_path: Path, env: dict[str, str]) -> Installation:
    target = Installation(RELEASE, host_platform(), aerodrome_cache(env))
    archive = tmp_path / "package.tgz"
    archive.write_bytes(PACKAGE)
    install(target, Quiet(), archive=archive)
    return target


def test_the_order_of_search(tmp_path: Path, env: dict[str, str], copilot: MakeCopilot) -> None:
    """Each place is added below the last one found, and wins over those before."""

    def found(command: str = "auto") -> tuple[Path, Source]:
        result = resolve(command, release=RELEASE, env=env)
        assert result.version == VERSION
        return result.path, result.source

    on_path = copilot(tmp_path / "bin" / "copilot")
    assert found() == (on_path, Source.PATH)
    sdk = copilot(sdk_path(tmp_path))
    assert found() == (sdk, Source.SDK)
    cached = install_in_cache(tmp_path, env).binary
    assert found() == (cached, Source.CACHE)
    env["COPILOT_CLI_PATH"] = str(copilot(tmp_path / "variable"))
    assert found() == (tmp_path / "variable", Source.VARIABLE)
    setting = copilot(tmp_path / "setting")
    assert found(str(setting)) == (setting, Source.SETTING)


def test_nothing_found_is_told_with_the_mend(env: dict[str, str]) -> None:
    with pytest.raises(RuntimeUnavailable, match=rf"no Copilot CLI found: run `aerodrome runtime install`.*{VERSION}"):
        resolve(release=RELEASE, env={**env, "PATH": ""})


def test_half_an_installation_is_not_found(tmp_path: Path, env: dict[str, str]) -> None:
    target = install_in_cache(tmp_path, env)
    target.manifest.unlink()
    with pytest.raises(RuntimeUnavailable, match="no Copilot CLI found"):
        resolve(release=RELEASE, env={**env, "PATH": ""})


def test_the_installed_binary_is_not_run_to_learn_its_version(tmp_path: Path, env: dict[str, str]) -> None:
    install_in_cache(tmp_path, env)
    assert resolve(release=RELEASE, env=env).version == VERSION


def test_what_was_asked_for_is_never_passed_over(tmp_path: Path, env: dict[str, str], copilot: MakeCopilot) -> None:
    copilot(tmp_path / "bin" / "copilot")
    with pytest.raises(RuntimeUnavailable, match=r"no such file .*runtime\.command.*to \"auto\""):
        resolve("/nonexistent/copilot", release=RELEASE, env=env)
    env["COPILOT_CLI_PATH"] = "/nonexistent/copilot"
    with pytest.raises(RuntimeUnavailable, match=r"no such file .*unset COPILOT_CLI_PATH"):
        resolve(release=RELEASE, env=env)


def test_another_version_is_refused_unless_accepted(tmp_path: Path, env: dict[str, str], copilot: MakeCopilot) -> None:
    copilot(tmp_path / "bin" / "copilot", version="9.9.0-1")
    with pytest.raises(RuntimeUnavailable) as caught:
        resolve(release=RELEASE, env=env)
    for part in ("9.9.0-1", VERSION, "aerodrome runtime install", "runtime.allow_version_mismatch = true"):
        assert part in caught.value.detail
    assert resolve(release=RELEASE, env=env, allow_version_mismatch=True).version == "9.9.0-1"


def test_the_version_is_asked_once_for_each_file(tmp_path: Path, env: dict[str, str], copilot: MakeCopilot) -> None:
    path = copilot(tmp_path / "copilot")
    assert [read_version(path, env) for _ in range(3)] == [VERSION] * 3
    assert times_asked(tmp_path) == 1
    copilot(path, version="10.0.0")
    assert read_version(path, env) == "10.0.0"
    other = copilot(tmp_path / "other")
    assert read_version(other, env) == VERSION
    assert read_version(path, env) == "10.0.0"
    assert times_asked(tmp_path) == 3


@pytest.mark.parametrize("content", ["not json", "[]", '{"x": 1}'])
def test_a_damaged_memory_of_versions_is_replaced(
    tmp_path: Path, env: dict[str, str], copilot: MakeCopilot, content: str
) -> None:
    path = copilot(tmp_path / "copilot")
    memory = aerodrome_cache(env) / "versions.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(content)
    assert [read_version(path, env) for _ in range(2)] == [VERSION] * 2
    assert times_asked(tmp_path) == 1


def test_a_cache_that_can_not_be_written_only_costs_time(
    tmp_path: Path, env: dict[str, str], copilot: MakeCopilot
) -> None:
    (tmp_path / "in-the-way").write_text("")
    env["AERODROME_CACHE_DIR"] = str(tmp_path / "in-the-way")
    path = copilot(tmp_path / "copilot")
    assert [read_version(path, env) for _ in range(2)] == [VERSION] * 2
    assert times_asked(tmp_path) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 3", "ended with 3 and told no version; it said: nothing"),
        ("echo hello; echo trouble >&2", r"(?s)ended with 0 and told no version; it said: hello\ntrouble"),
        ("echo 1.2.3; exit 1", "ended with 1"),
    ],
)
def test_what_does_not_answer_as_the_cli_is_refused(
    tmp_path: Path, env: dict[str, str], copilot: MakeCopilot, body: str, message: str
) -> None:
    with pytest.raises(RuntimeUnavailable, match=message):
        read_version(copilot(tmp_path / "copilot", body=body), env)


def test_a_binary_that_hangs_is_given_up(
    tmp_path: Path, env: dict[str, str], copilot: MakeCopilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary_module, "VERSION_TIMEOUT", 0.2)
    with pytest.raises(RuntimeUnavailable, match=r"did not end in 0\.2 s"):
        read_version(copilot(tmp_path / "copilot", body="exec sleep 60"), env)


@pytest.mark.parametrize("writable", [True, False])
def test_the_question_reaches_no_secret_and_only_directories_that_can_be_written(
    tmp_path: Path, env: dict[str, str], copilot: MakeCopilot, writable: bool
) -> None:
    body = f'env > {tmp_path / "env"}; touch "$HOME/x" "$COPILOT_HOME/x" "$COPILOT_PKG_CACHE_HOME/x" && echo 1.2.3'
    path = copilot(tmp_path / "copilot", body=body)
    env |= {"GITHUB_TOKEN": "secret", "HOME": "/proc/nowhere"}
    if not writable:
        (tmp_path / "in-the-way").write_text("")
        env["AERODROME_CACHE_DIR"] = str(tmp_path / "in-the-way")
    assert read_version(path, env) == "1.2.3"
    seen = (tmp_path / "env").read_text()
    assert "secret" not in seen
    assert "COPILOT_OFFLINE=true" in seen
    assert (f"COPILOT_PKG_CACHE_HOME={aerodrome_cache(env)}" in seen) is writable


def elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, machine) + bytes(44)


OTHER_MACHINE, OTHER_NAME = (183, "aarch64") if this_machine() == "x86_64" else (62, "x86_64")


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (elf(OTHER_MACHINE), 0o755, f"this binary is for {OTHER_NAME}, this machine is {this_machine()}"),
        (elf(9999), 0o755, "this binary is for ELF machine 9999"),
        (b"MZ" + bytes(60), 0o755, "this binary is for win32"),
        (b"hello", 0o755, "is no program"),
        (b"", 0o755, "is no program"),
        (b"\x7fELF", 0o755, "is no program"),
        (b"#!/bin/sh\n", 0o644, r"is not executable; run: chmod \+x"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the messages are those of Linux")
def test_a_file_that_can_not_run_here_is_told(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    path = tmp_path / "copilot"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(RuntimeUnavailable, match=message):
        check_executable(path)


def test_a_directory_is_no_binary(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="name the `copilot` binary itself"):
        check_executable(tmp_path)


def test_our_own_interpreter_can_run_here() -> None:
    check_executable(Path(sys.executable))


@pytest.mark.parametrize(
    ("header", "target"),
    [
        (elf(62), ("linux", "x86_64")),
        (b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HH", 2, 183), ("linux", "aarch64")),
        (b"\xcf\xfa\xed\xfe" + struct.pack("<I", 0x0100000C), ("darwin", "aarch64")),
        (b"\xcf\xfa\xed\xfe" + struct.pack("<I", 0x01000007), ("darwin", "x86_64")),
        (b"\xca\xfe\xba\xbe\x00\x00\x00\x02", ("darwin", "any")),
        (b"#!/usr/bin/env node\n", ("any", "any")),
        (b"PK\x03\x04", None),
    ],
)
def test_the_target_of_a_program_is_read_from_its_header(header: bytes, target: tuple[str, str] | None) -> None:
    assert read_target(header) == target


def test_every_platform_has_a_checksum_of_its_own() -> None:
    assert len(PINNED.integrity) == 6
    assert len(set(PINNED.integrity.values())) == 6
    for platform, integrity in PINNED.integrity.items():
        assert PINNED.integrity_of(platform) == integrity
        assert len(integrity) == len("sha512-") + 88
    assert host_platform() in PINNED.integrity


def test_the_address_of_a_package() -> None:
    assert (
        PINNED.url("http://registry/npm/", "linux-x64")
        == "http://registry/npm/@github/copilot-linux-x64/-/copilot-linux-x64-1.0.102.tgz"
    )


def test_the_installed_sdk_pairs_with_the_cli(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metadata.version("github-copilot-sdk") == SDK_VERSION
    assert sdk_pair_problem() is None
    monkeypatch.setattr("aerodrome.runtime.release.SDK_VERSION", "0.0.1")
    problem = sdk_pair_problem()
    assert problem is not None
    assert f"github-copilot-sdk {SDK_VERSION} is installed" in problem
    assert "pip install github-copilot-sdk==0.0.1" in problem


def test_the_pair_is_the_one_the_sdk_names() -> None:
    version = pytest.importorskip("copilot._cli_version").CLI_VERSION
    assert version == PINNED.version


@pytest.mark.cli
def test_the_real_binary_is_found_and_reports_the_pinned_version(tmp_path: Path) -> None:
    binary = resolve(env=os.environ)
    assert binary.version == PINNED.version
    assert read_version(binary.path, {**os.environ, "AERODROME_CACHE_DIR": str(tmp_path)}) == PINNED.version
    other = Release("0.0.1", PINNED.integrity)
    with pytest.raises(RuntimeUnavailable, match=r"this release needs 0\.0\.1"):
        resolve(str(binary.path), release=other)
