"""Logs: structlog to standard error, JSON lines or for people. No prompts, answers, keys or file contents."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from aerodrome.telemetry.trace import current

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(level: str, log_format: str) -> None:
    """Set up the process's logging.

    Args:
        level: `telemetry.log_level`.
        log_format: `telemetry.log_format`; `auto` is for people on a terminal and JSON elsewhere.
    """
    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    prepare: list[Any] = [
        structlog.contextvars.merge_contextvars,
        add_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Any]
    if for_people:
        # Not the default formatter, which prints local variables: prompts and keys are among them.
        render = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*prepare, *render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        # The loggers of imported modules are made before this is called; a cached one would keep the defaults.
        cache_logger_on_first_use=False,
    )
    # What libraries and the event loop say, in the same form: whoever reads JSON lines reads every line.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*prepare, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def log_to_the_application() -> None:
    """Hand what is logged to the standard library's `logging`, by the names of the modules (`aerodrome.sessions...`).

    For a process that is somebody else's, who decides there what becomes of it. Left alone, structlog would print
    everything to standard output. Nothing is changed when that somebody has set up structlog.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.contextvars.merge_contextvars, add_trace, _as_log_call],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def add_trace(_: Any, __: str, event: Any) -> Any:
    """Where in a trace the line was written, by which a trace and its log lines are found from each other."""
    if (context := current()) is not None:
        event.setdefault("trace_id", context.trace_id)
        event.setdefault("span_id", context.span_id)
    return event


def _as_log_call(_: Any, __: str, event: Any) -> tuple[tuple[str], dict[str, Any]]:
    """The arguments for a method of `logging.Logger`. The text is formatted here: it may contain per cent signs."""
    kept = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    text = str(event.pop("event", ""))
    return (" ".join([text, *(f"{name}={value!r}" for name, value in event.items())]),), kept
