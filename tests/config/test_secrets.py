"""Secrets that settings refer to: where they are read from, and what becomes of those that change or go away."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from aerodrome.config import Settings, load_settings, secret_sources
from aerodrome.config.provider_settings import reveal
from aerodrome.config.secret_cells import Cell
from aerodrome.config.secret_listing import cells_of
from aerodrome.config.secret_references import Reference
from aerodrome.config.secret_resolver import Known, Resolver
from aerodrome.config.secret_sources import FileSource, Unresolved
from aerodrome.errors import ConfigError


def settings_with(tmp_path: Path, reference: str, env: dict[str, str] | None = None, more: str = "") -> Settings:
    file = tmp_path / "aerodrome.toml"
    file.write_text(f"[provider]\ngithub_token = '{reference}'\n{more}", encoding="utf-8")
    return load_settings(file, env=env or {})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("env:MODEL_KEY", "env:MODEL_KEY"),
        ("file:/run/secrets/key", "file:/run/secrets/key"),
        ("vault:secret/aerodrome#key", "vault:secret/aerodrome#key"),
        # Its arguments may be, or hold, another secret.
        ("command:/usr/bin/pass show 'the key'", "command:/usr/bin/pass ..."),
        ("command: /usr/bin/key", "command:/usr/bin/key"),
        ("sk-hidden", "the configuration itself"),
        ("sk:hidden", "the configuration itself"),
    ],
)
def test_a_reference_is_shown_without_what_is_secret(text: str, shown: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == shown
    assert "hidden" not in repr(reference)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vault:secret/aerodrome", "expected vault:PATH#KEY"),
        ("vault:#key", "expected vault:PATH#KEY"),
        ("command:", "expected something after command:"),
        ("command:key 'open", "the command can not be understood: No closing quotation"),
        ("env:", "expected something after env:"),
    ],
)
def test_a_reference_that_is_none_is_told_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "t.toml").write_text(f'[provider]\ngithub_token = "{text}"\n')
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "t.toml", env={})
    (problem,) = caught.value.extra["problems"]
    assert problem.startswith(f"{tmp_path}/t.toml:2: provider.github_token: {expected}")


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("one\n")
    settings = settings_with(tmp_path, f"file:{path}")
    assert reveal(settings.provider.github_token) == "one"
    path.write_text("two\n")
    assert reveal(settings.provider.github_token) == "two"


def test_a_file_that_changes_twice_within_a_tick_of_the_kernel_s_clock_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before Linux 6.13, and on file systems that know no fractions of a second: it looks as it did before."""
    as_it_is = FileSource._stamp

    def coarse(self: FileSource) -> tuple[int, ...]:
        device, inode, modified, changed, size = as_it_is(self)
        return device, inode, modified // 10**9 * 10**9, changed // 10**9 * 10**9, size

    monkeypatch.setattr(FileSource, "_stamp", coarse)
    path = tmp_path / "key"
    path.write_text("one")
    source = FileSource(Reference.parse(f"file:{path}"), {})
    assert source.read() == "one"
    path.write_text("two")
    assert source.changed()
    assert source.reread() == "two"
    # When that is over it is not read for nothing.
    monkeypatch.setattr(secret_sources, "time", lambda: time.time() + 10.0)
    assert source.reread() == "two"
    assert not source.changed()


def test_a_swap_of_a_kubernetes_volume_is_noticed(tmp_path: Path) -> None:
    """All files change at once, by the renaming of a symbolic link two levels above."""
    for name, value in (("..v1", "one"), ("..v2", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_text(value)
        # The same size, and the same time: what tells them apart is that they are two files.
        os.utime(tmp_path / name / "key", (1, 1))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "key").symlink_to("..data/key")
    settings = settings_with(tmp_path, f"file:{tmp_path}/key")
    assert reveal(settings.provider.github_token) == "one"
    (tmp_path / "..data_tmp").symlink_to("..v2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert reveal(settings.provider.github_token) == "two"


def test_what_does_not_resolve_any_more_keeps_its_last_good_value_and_says_so_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("one")
    settings = settings_with(tmp_path, f"file:{path}")
    ((name, cell),) = [(n, c) for n, c in cells_of(settings) if n.startswith("provider")]
    assert name == "provider.github_token"
    with capture_logs() as logs:
        path.unlink()
        assert [reveal(settings.provider.github_token) for _ in range(3)] == ["one"] * 3
        assert cell.problem == f"the file {path} can not be read: No such file or directory"
        path.write_text("")
        assert reveal(settings.provider.github_token) == "one"
        assert cell.problem == f"the file {path} is empty"
        path.write_text("two")
        assert reveal(settings.provider.github_token) == "two"
        assert cell.problem is None
    told = [line["event"] for line in logs]
    assert told == ["secret.kept", "secret.kept", "secret.recovered", "secret.changed"]
    assert not {"one", "two"} & {str(value) for line in logs for value in line.values()}


def test_a_file_that_could_not_be_opened_for_a_moment_is_read_later(tmp_path: Path) -> None:
    """Such as in a node that has no descriptor left."""
    path = tmp_path / "key"
    path.write_text("one")
    cell = Resolver({}).secret(f"file:{path}")
    path.write_text("number two")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert cell.current() == "one"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert cell.problem == f"the file {path} can not be read: Too many open files"
    assert cell.current() == "number two"
    assert cell.problem is None


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """Such as the one that a shell makes of `<(pass show key)`."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("from a pipe\n",))
    writer.start()
    settings = settings_with(tmp_path, f"file:{tmp_path}/pipe")
    writer.join()
    assert [reveal(settings.provider.github_token) for _ in range(2)] == ["from a pipe"] * 2


def test_a_pipe_in_an_address_with_what_is_asked_for_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "value").write_text("one")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("from a pipe\n",))
    writer.start()
    address = f"postgresql://{{command:cat {tmp_path}/value}}:{{file:{tmp_path}/pipe}}@db.example/a"
    cell = Resolver(dict(os.environ)).address(address)
    writer.join()
    (tmp_path / "value").write_text("two")
    refreshing = threading.Thread(target=cell.refresh, daemon=True)
    refreshing.start()
    refreshing.join(30)
    assert not refreshing.is_alive()
    assert cell.current() == "postgresql://two:from%20a%20pipe@db.example/a"


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """It is looked at in the event loop, and nobody may ever write to the pipe."""
    path = tmp_path / "key"
    path.write_text("one")
    cell = Resolver({}).secret(f"file:{path}")
    path.unlink()
    os.mkfifo(path)
    asking = threading.Thread(target=cell.current, daemon=True)
    asking.start()
    asking.join(30)
    assert not asking.is_alive()
    assert cell.current() == "one"
    assert cell.problem == f"the file {path} is no file any more"
    path.unlink()
    path.write_text("two")
    assert cell.current() == "two"
    assert cell.problem is None


def test_settings_that_are_read_again_ask_for_nothing_that_is_known(tmp_path: Path) -> None:
    """Else a key that is away for the moment would make them wrong, and a pipe has been read once."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("from a pipe\n",))
    writer.start()
    (tmp_path / "key").write_text("one")
    file = tmp_path / "aerodrome.toml"
    text = f"""
[provider]
github_token = "file:{tmp_path}/key"
[provider.tenants.acme]
github_token = "file:{tmp_path}/pipe"
"""
    file.write_text(text)
    known = Known()
    first = load_settings(file, env={}, known=known)
    writer.join()
    (tmp_path / "key").unlink()
    (tmp_path / "token").write_text("token")
    more = text + f'[runtime]\nattach_tokens = {{ default = "file:{tmp_path}/token", other = "TOKEN" }}\n'
    file.write_text(more.replace("TOKEN", f"file:{tmp_path}/nothing"))
    with pytest.raises(ConfigError, match=r"runtime\.attach_tokens.*nothing can not be read"):
        load_settings(file, env={}, known=known)
    file.write_text(more.replace("TOKEN", "literal"))
    second = load_settings(file, env={}, known=known)
    assert [reveal(s.provider.github_token) for s in (first, second)] == ["one", "one"]
    assert [reveal(s.provider.of("acme").github_token) for s in (first, second)] == ["from a pipe"] * 2
    assert [reveal(token) for token in second.runtime.attach_tokens.values()] == ["token", "literal"]
    # It is the same secret, for whoever looks after it.
    before, after = dict(cells_of(first.provider)), dict(cells_of(second.provider))
    assert after == before
    assert len(before) == 2
    # What was not in the latest settings is not known any more.
    file.write_text(text)
    load_settings(file, env={}, known=known)
    (tmp_path / "token").unlink()
    file.write_text(more)
    with pytest.raises(ConfigError, match="token can not be read"):
        load_settings(file, env={}, known=known)


def test_systemd_credentials(tmp_path: Path) -> None:
    (tmp_path / "model-key").write_text("from systemd")
    for reference in ("file:$CREDENTIALS_DIRECTORY/model-key", "file:${CREDENTIALS_DIRECTORY}/model-key"):
        settings = settings_with(tmp_path, reference, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
        assert reveal(settings.provider.github_token) == "from systemd"
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY is not set: systemd sets it"):
        settings_with(tmp_path, "file:$CREDENTIALS_DIRECTORY/model-key")


def test_what_is_no_secret_is_told(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for reference, reason in {
        f"file:{tmp_path}/binary": "it is not UTF-8 text",
        "file:/dev/zero": "is too long for a secret",
        f"file:{tmp_path}": "Is a directory",
    }.items():
        with pytest.raises(ConfigError, match=reason):
            settings_with(tmp_path, reference)


# --- commands ---


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program that prints its arguments, and a variable."""
    path = tmp_path / "program"
    path.write_text(f"#!{sys.executable}\nimport os, sys\nprint(sys.argv[1:], os.environ.get('NAME'))\n")
    path.chmod(0o700)
    return path


def test_a_command_gets_words_and_no_shell(tmp_path: Path, script: Path) -> None:
    cell = Resolver({"NAME": "value"}).secret(f"command:{script} 'two words' $HOME ; echo `id`")
    assert cell.current() == "['two words', '$HOME', ';', 'echo', '`id`'] value"
    assert cell.polled


def test_a_command_is_asked_anew_by_a_refresh(tmp_path: Path) -> None:
    value = tmp_path / "value"
    value.write_text("one")
    cell = Resolver(dict(os.environ)).secret(f"command:cat {value}")
    assert cell.current() == "one"
    value.write_text("two")
    assert cell.current() == "one"
    assert cell.refresh()
    assert cell.current() == "two"
    assert not cell.refresh()
    value.unlink()
    assert not cell.refresh()
    assert cell.current() == "two"
    assert cell.problem == "the program cat failed (exit code 1); run it by hand to see why"


def test_a_command_that_takes_too_long_is_ended_with_all_it_has_started(tmp_path: Path) -> None:
    script = tmp_path / "program"
    # A grandchild that holds the pipe open, as a pager or an agent would.
    script.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {tmp_path}/pid\nsleep 300\n")
    script.chmod(0o700)
    began = time.monotonic()
    pid = 0
    # It may have been ended before it had begun.
    for timeout in (1, 5, 25):
        with pytest.raises(Unresolved, match=rf"took longer than secrets.timeout \({timeout} s\)"):
            Resolver(dict(os.environ), timeout=timeout).secret(f"command:{script}")
        if pid := int((tmp_path / "pid").read_text() or 0) if (tmp_path / "pid").exists() else 0:
            break
    assert pid
    assert time.monotonic() - began < 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - began < 60
        time.sleep(0.01)


def test_a_command_that_prints_without_end_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "program"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec yes\n")
    script.chmod(0o700)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unresolved, match=f"the output of {script} is too long for a secret"):
        Resolver(dict(os.environ), timeout=60.0).secret(f"command:{script}")
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (64 << 10)


def test_a_command_that_closes_its_output_has_to_end_all_the_same(tmp_path: Path) -> None:
    script = tmp_path / "program"
    script.write_text("#!/bin/sh\necho key\nexec >&-\nsleep 300\n")
    script.chmod(0o700)
    with pytest.raises(Unresolved, match=r"took longer than secrets.timeout \(1 s\)"):
        Resolver(dict(os.environ), timeout=1.0).secret(f"command:{script}")


def test_a_command_that_is_not_there_is_told() -> None:
    with pytest.raises(Unresolved, match="the program /nowhere/pass can not be run: No such file"):
        Resolver().secret("command:/nowhere/pass show key")


# --- addresses of stores ---


def test_an_address_may_have_references_within_it(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p@ss/word:1\n")
    file = tmp_path / "aerodrome.toml"
    file.write_text(
        f'[state]\nurl = "postgresql://{{env:DB_USER}}:{{file:{tmp_path}/password}}@db.example/aerodrome"\n'
    )
    settings = load_settings(file, env={"DB_USER": "aero"})
    assert settings.state.url.current() == "postgresql://aero:p%40ss%2Fword%3A1@db.example/aerodrome"
    assert settings.state.url.masked == "postgresql://aero:***@db.example/aerodrome"
    assert settings.state.url.cell is not None
    assert settings.state.url.cell.where == f"env:DB_USER, file:{tmp_path}/password"
    (tmp_path / "password").write_text("other")
    assert settings.state.url.current() == "postgresql://aero:other@db.example/aerodrome"


def test_an_address_that_leads_elsewhere_is_not_taken_while_connections_stand(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("redis://:one@a:6379/0")
    file = tmp_path / "aerodrome.toml"
    file.write_text(f'[coordination]\nurl = "file:{path}"\n')
    url = load_settings(file, env={}).coordination.url
    path.write_text("redis://user:two@a:6379/0")
    cell = url.cell
    assert cell is not None
    assert url.current() == "redis://user:two@a:6379/0"
    for elsewhere in ("redis://user:two@b:6379/0", "redis://user:two@a:6379/1", "sqlite"):
        path.write_text(elsewhere)
        assert url.current() == "redis://user:two@a:6379/0"
        assert cell.problem == "the address names another place than at the start: restart the node for that"
    # What has a meaning has to be written as % and two digits: nobody could connect with these.
    for password, problem in {"thr/ee": "expected HOST or HOST:PORT", "th?ree=3": "a ? in user or password"}.items():
        path.write_text(f"redis://user:{password}@a:6379/0")
        assert url.current() == "redis://user:two@a:6379/0"
        assert str(cell.problem).startswith(problem)
        assert "ree" not in str(cell.problem)


def test_a_copy_of_settings_knows_of_changes(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("one")
    settings = settings_with(tmp_path, f"file:{path}")
    copies = [settings.model_copy(deep=True), Settings.model_validate(settings.model_copy())]
    path.write_text("two")
    assert [reveal(copy.provider.github_token) for copy in copies] == ["two", "two"]
    assert settings.provider == copies[0].provider


def test_neither_repr_nor_str_nor_json_of_settings_has_a_secret(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, "canary", more='[coordination]\nurl = "redis://u:canary@h"\n')
    assert isinstance(next(cell for _, cell in cells_of(settings)), Cell)
    seen = [repr(settings), str(settings), repr(settings.coordination), *(repr(cell) for _, cell in cells_of(settings))]
    seen += [repr(settings.provider.github_token), str(settings.provider.github_token), f"{settings.provider}"]
    assert "canary" not in "".join(seen)
