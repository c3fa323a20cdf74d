"""The command line as a whole: exit codes, messages, help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import aerodrome
from support.command_line import Run


def test_the_version(run: Run) -> None:
    result = run("--version")
    assert (result.code, result.out) == (0, f"aerodrome {aerodrome.__version__} (Copilot CLI 1.0.102)\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("--nonsense",),
        ("keys", "nonsense"),
        ("keys", "create", "--user", "alice"),
        ("keys", "create", "--tenant", "a b", "--user", "alice"),
        ("keys", "create", "--tenant", "acme", "--user", "../x"),
        ("keys", "create", "--tenant", "acme", "--user", "alice", "--role", "admn"),
        ("runtime", "install", "--from", "missing.tgz"),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Usage: aerodrome" in result.err


def test_a_failure_is_one_message_and_ends_with_1(run: Run) -> None:
    result = run("runtime", "path", "--config", "missing.toml")
    assert result.code == 1
    assert result.out == ""
    assert result.err == "error: missing.toml: there is no such file; `aerodrome init missing.toml` writes one\n"


def test_a_message_is_printed_as_it_is(run: Run) -> None:
    """Brackets are markup for the console; paths and settings have them, too."""
    Path("t.toml").write_text('[policy]\nhost_tools = ["[bold]"]\n')
    result = run("runtime", "path", "-c", "t.toml")
    assert result.err.startswith(
        'error: t.toml:2: policy.host_tools[0] = "[bold]": expected the name of a built-in tool'
    )


def test_every_problem_of_the_configuration_is_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("aerodrome.toml").write_text('[server]\nhtpp = "x"\n')
    monkeypatch.setenv("AERODROME_RUNTIME__WARM", "x")
    result = run("runtime", "path")
    assert result.code == 1
    assert result.err.splitlines() == [
        "error: 2 problems in the configuration:",
        '  aerodrome.toml:2: there is no setting "htpp" in server; did you mean "http"?',
        '  AERODROME_RUNTIME__WARM: runtime.warm = "x": expected a whole number',
    ]


def test_debug_shows_where_a_failure_comes_from(run: Run) -> None:
    result = run("--debug", "runtime", "path", "--config", "missing.toml")
    assert result.code == 1
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("error: missing.toml")


@pytest.mark.parametrize(
    "arguments", [(), ("keys",), ("runtime",), ("init",), ("keys", "create"), ("runtime", "install")]
)
def test_every_command_explains_itself(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--help")
    assert result.code == 0
    assert "Usage: aerodrome" in result.out


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "aerodrome", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("aerodrome ")


def test_what_the_machine_refuses_is_a_message_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory has been deleted, which is a `FileNotFoundError` that nobody expects."""
    config = Path("t.toml").absolute()
    config.write_text("")
    gone = Path("gone")
    gone.mkdir()
    monkeypatch.chdir(gone)
    Path("../gone").rmdir()
    monkeypatch.setenv("AERODROME_SERVER__DATA_DIR", "data")
    result = run("keys", "ls", "-c", config)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "Traceback" in run("--debug", "keys", "ls", "-c", config).err


def test_a_listing_is_whole_on_a_narrow_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that is cut off cannot be given to the next command."""
    key = run("keys", "create", "--tenant", "acme", "--user", "a-user-with-a-name-that-is-long", "--json").json["id"]
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    listed = run("keys", "ls").out
    assert key in listed
    assert "a-user-with-a-name-that-is-long" in listed


def test_a_machine_on_which_no_runtime_fits_is_no_plan(run: Run) -> None:
    result = run("plan", "--users", "10", "--memory", "200MB")
    assert (result.code, result.out) == (2, "")
    assert "a node with one runtime takes" in result.err
    assert run("plan", "--users", "10", "--memory", "300MB").code == 0
