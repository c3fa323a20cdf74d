"""What is logged, and what never is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import structlog
from aerodrome.observability.logging import configure_logging

log = structlog.get_logger("early")  # loggers of modules are made before logging is configured
configure_logging({level!r}, {format!r})

def fail(prompt):
    raise ValueError("broken")

secret = " ".join(("a", "private", "matter"))

log.debug("quiet")
log.info("session.awake", session="acme/s1")
try:
    fail(secret)
except ValueError:
    log.exception("turn.crashed")
"""

#: What libraries and the event loop say.
OTHERS = """
import logging

logging.getLogger("library").info("quiet library")
logging.getLogger("library").warning("%d retries\\nare left", 3)
try:
    fail(secret)
except ValueError:
    logging.getLogger("asyncio").exception("Task exception was never retrieved")
"""


def run(level: str, log_format: str) -> str:
    program = PROGRAM.format(level=level, format=log_format) + OTHERS
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "", "standard output belongs to the `ready` line"
    return done.stderr


def test_json_lines_are_json_with_level_and_time() -> None:
    lines = [json.loads(line) for line in run("info", "json").splitlines()]
    assert [line["event"] for line in lines[:2]] == ["session.awake", "turn.crashed"]
    assert lines[0]["session"] == "acme/s1"
    assert lines[0]["level"] == "info"
    assert lines[0]["timestamp"].endswith("Z")
    assert "ValueError: broken" in lines[1]["exception"]


def test_what_libraries_say_is_json_lines_as_well() -> None:
    warning, error = (json.loads(line) for line in run("info", "json").splitlines()[2:])
    assert (warning["level"], warning["logger"], warning["event"]) == ("warning", "library", "3 retries\nare left")
    assert (error["level"], error["logger"]) == ("error", "asyncio")
    assert error["exception"].endswith("ValueError: broken")
    assert warning["timestamp"].endswith("Z")


def test_auto_is_json_where_no_terminal_is() -> None:
    assert json.loads(run("info", "auto").splitlines()[0])["event"] == "session.awake"


def test_the_level_is_kept() -> None:
    assert "quiet" in run("debug", "json")
    assert "session.awake" not in run("error", "json")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_show_no_values_of_variables(log_format: str) -> None:
    said = run("info", log_format)
    assert "ValueError" in said
    # Lines of the source may be there, not what they worked with.
    assert "a private matter" not in said


EMBEDDED = """
import logging, sys
import structlog
from aerodrome.observability.logging import log_to_the_application

log = structlog.get_logger("aerodrome.sessions.wake")
{setup}
log_to_the_application()
log.info("session.awake", session="acme/s1", share="100%")
log.debug("quiet")
try:
    raise ValueError("broken")
except ValueError:
    log.exception("turn.crashed", turn="t1")
"""


def embedded(setup: str) -> tuple[str, str]:
    program = EMBEDDED.format(setup=setup)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr


def test_inside_a_program_its_logging_decides() -> None:
    out, err = embedded('logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")')
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "INFO aerodrome.sessions.wake session.awake session='acme/s1' share='100%'"
    assert lines[1] == "ERROR aerodrome.sessions.wake turn.crashed turn='t1'"
    assert lines[-1] == "ValueError: broken"


def test_inside_a_program_that_has_set_up_nothing_only_what_is_wrong_is_told() -> None:
    out, err = embedded("")
    assert out == ""
    assert "session.awake" not in err
    assert "turn.crashed" in err


def test_a_program_that_has_set_up_structlog_keeps_its_own() -> None:
    setup = "structlog.configure(processors=[structlog.processors.JSONRenderer()])"
    out, _ = embedded(setup)
    assert json.loads(out.splitlines()[0])["event"] == "session.awake"
