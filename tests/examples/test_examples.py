"""Each example runs as its reader runs it, and prints what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.console_page import shown, without_the_end_of_clients

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py") if path.name != "common.py")

#: What is printed, as the pages show output: `...` is any text.
PRINTED = {
    "one_cli_per_user.py": """\
alice: Nice to meet you, Ada.
bob: Nice to meet you, Bob.
processes: alice has ..., bob has ...
alice was away for a while: her process has ended
alice: Your name is Ada.
in another process: True""",
    "shared_cli.py": """\
alice: Your name is Ada.
bob: Your name is Bob.
carol: Your name is Cleo.
acme has one process with 3 sessions
alice sees ['alice-chat']
bob sees ['bob-chat']
carol sees ['carol-chat']""",
    "resume_with_access_control.py": """\
alice-bob: Nice to meet you, Ada.
alice resumes alice-bob-1: ...Session not found: alice-bob-1
alice resumes no-such-session: ...Session not found: no-such-session
alice creates alice-bob-1: ...Session not found: alice-bob-1
alice sees []
alice-bob of another tenant resumes alice-bob-1: ...Session not found: alice-bob-1
alice-bob resumes alice-bob-1: Your name is Ada.""",
    "http_endpoints.py": """\
ephemeral: Titan
what remains: []
persistent: opened with [201, 200]
My name is Ada -> Nice to meet you, Ada.
What is my name? -> Your name is Ada.
what remains: ['My name is Ada', 'Nice to meet you, Ada.', 'What is my name?', 'Your name is Ada.']
deleted: 204""",
    "session_cap.py": """\
two sessions fit: first resident, second resident
a third one came: first resident, second hibernated, third resident
second: Your name is Bob.
the second one was needed again: first hibernated, second resident, third resident""",
    "concurrent_access.py": """\
the program has asked for a novel, and the model is at work
reject: 409 session_busy
interrupt: Stopped.
enqueue: Nice to meet you, Ada.
in order: [...'Stopped.', 'My name is Ada', 'Nice to meet you, Ada.']""",
    "team_chat.py": """\
alice, by SDK: Nice to meet you, Ada.
bob, by HTTP: Your name is Ada.
carol has seen: ['My name is Ada', 'What is my name?']
carol may not write: ...you may read this session, not write to it...
bob, who cannot wait: session_busy, a turn of alice is running
bob, who can: Thank you.
carol sees []
  alice: My name is Ada
  copilot: Nice to meet you, Ada.
  bob: What is my name?
  copilot: Your name is Ada.
  alice: [[delay: 10m]] Write a novel
  bob: [[say: Thank you.]] I can wait
  copilot: Thank you.""",
    "clean_up.py": """\
stored: ['daily', 'forgotten']
stored: ['daily']
daily, older than that: Your name is Ada.
forgotten, anew: I don't know your name yet.""",
}


@pytest.mark.cli
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_shows_what_it_is_there_for(name: str, tmp_path: Path) -> None:
    # Of somebody's own settings none may be needed, and a provider among them would be used.
    env = {key: value for key, value in os.environ.items() if not key.startswith("AERODROME_") or "CACHE" in key}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert shown(PRINTED[name].splitlines(), done.stdout.splitlines()), done.stdout
    assert without_the_end_of_clients(done.stderr) == ""


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_is_short_says_how_to_run_it_and_is_in_the_documentation(name: str) -> None:
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    assert 30 <= len(text.splitlines()) <= 80
    assert f"\n    python examples/{name}\n" in text
    assert "`common.py` says how to use a real one" in text
    first_sentence = re.match(r'"""(.+?)[.:]', text)
    assert first_sentence
    assert f"(../examples/{name})" in (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
