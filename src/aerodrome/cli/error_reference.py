"""`python -m aerodrome.cli.error_reference > docs/errors.md`: every error code, with what to do about it.

Meaning and `retryable` are those of `aerodrome.errors`, the numbers those of the front doors. What to look at is told
here, because it is about settings and commands, which the errors do not know.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import NamedTuple

from aerodrome.errors import AerodromeError, all_codes
from aerodrome.gateway.problems import GATEWAY_ERROR, NUMBERS
from aerodrome.http.problems import PROBLEMS


class Advice(NamedTuple):
    when: str
    do: str


#: For each code that a front door answers, in the order of the page. Links are relative to docs/.
ADVICE: dict[str, Advice] = {
    "invalid": Advice(
        "A field is missing, unknown or wrong; over HTTP `errors` names each. Or a tool is not allowed.",
        "Correct the request. A tool that should be allowed: `policy.tools`, `policy.host_tools`.",
    ),
    "unauthenticated": Advice(
        "No key was sent, or one that was not issued here or has been revoked.",
        "`aerodrome keys ls`; is the node's `server.data_dir` the one the key was made in?",
    ),
    "forbidden": Advice(
        "The role in a [shared session](concepts.md#shared-sessions) is not enough; the key has not the role `admin`; "
        "a native client asked for what [policy](policy.md) does not allow.",
        "The session's owner changes roles; `aerodrome keys create --role admin`. For native clients, the message "
        "names what was refused and why.",
    ),
    "not_found": Advice(
        "There is no such thing, or it is not the caller's. A permission request or a question was answered already.",
        "Tenant and user of the key with `aerodrome keys ls`, the owner with `aerodrome sessions show`.",
    ),
    "session_busy": Advice(
        "A turn is running and `on_busy` is `reject`: `turn` and `author` say which and whose. Or the session is "
        "moving between nodes, its node was killed less than `coordination.ttl` ago, drains while a turn of the "
        "session goes on, or cannot be reached by this one.",
        "Wait for `retry_after`. With several nodes, is `server.advertise` right (`aerodrome nodes ls`)?",
    ),
    "conflict": Advice(
        "An idempotency key was used for two prompts; a server is attached already, or serves another organisation; an "
        "attached server was to be recycled; on a volume, the session's id belongs to files that others have made, or "
        "there is a link, a pipe or a directory in the place of one of its files, or one that the node may not use.",
        "A key names one prompt; `aerodrome runtimes detach`; `aerodrome runtimes drain`; another id; look at the "
        "tenant's directory.",
    ),
    "too_large": Advice(
        "A body, prompt, frame, file or history is over its limit.",
        "`limits.max_body`, `limits.max_prompt`, `limits.max_frame`, `state.max_file`, `state.max_session`, "
        "`sessions.max_history`; or a new session.",
    ),
    "quarantined": Advice(
        "Loading the session has made runtimes end. Its history can be read.",
        "[See why, then release it](operations.md#a-session-is-quarantined).",
    ),
    "rate_limited": Advice(
        "A rate or a ceiling of the user, the tenant, the session or the connection itself is reached; others are "
        "served.",
        "Come again after `retry_after`. Rates: `limits.turns_per_minute`, `limits.turns_per_minute_per_tenant`. What "
        "runs: `limits.max_turns_per_user`, `limits.max_turns_per_tenant`, `limits.max_sessions_per_user`, "
        "`limits.max_sessions_per_tenant`. What waits: `limits.max_waiting_per_user`, "
        "`limits.max_waiting_per_tenant`, `limits.max_waiting_text_per_user`, `limits.max_waiting_text_per_tenant`, "
        "`sessions.max_queued`. What is connected: `limits.max_clients_per_user`, `limits.max_readers_per_user`, "
        "`limits.max_requests`.",
    ),
    "internal": Advice(
        "A bug of Aerodrome.",
        "The log has the traceback under the `X-Request-Id` of the response; please report it.",
    ),
    "turn_failed": Advice(
        "The model or the runtime reported an error, or the turn took longer than `sessions.turn_timeout`.",
        "Read `detail`: it is what the model's address answered. Wrong key: [change it](secrets.md).",
    ),
    "capacity": Advice(
        "The node is full, or the tenant's share of its runtimes in use, for as long as a request waits. A reader of "
        "events was too slow.",
        "Wait for `retry_after`. `aerodrome top` shows who waits. If the machine has room: `runtime.max_runtimes`, "
        "`limits.max_runtimes_per_tenant`, `runtime.max_sessions`, `limits.max_turns`, "
        "`limits.max_turns_per_runtime`, `limits.max_sessions`, `limits.max_clients`, `limits.max_readers`; else more "
        "nodes. A reader comes back with `Last-Event-ID`.",
    ),
    "draining": Advice(
        "The node is being stopped.",
        "Repeat it at another node, or when this one is back. Load balancers ask `/ready` and send nothing here.",
    ),
    "runtime_unavailable": Advice(
        "The Copilot CLI is missing, does not start, or did not answer; no attached server can be used.",
        "`aerodrome doctor`, `aerodrome runtimes ls`; `detail` and `logs/rt-.../output.log` have its last words.",
    ),
    "store_unavailable": Advice(
        "A store is away, or a database locked, full, read-only or damaged, for longer than `coordination.patience` or "
        "`state.patience`; or the node has lost its heartbeat.",
        "Free space; check mode and owner. `sqlite.unavailable` in the log names the file, `postgresql.unavailable` "
        "and `redis.unavailable` what the server said.",
    ),
    "turn_interrupted": Advice(
        "The runtime or the node was lost in mid-turn, and the turn was not repeated because a tool had begun; or the "
        "runtime was ended because it had passed a limit of its [sandbox](sandbox.md), which `detail` names.",
        "Look at the history. If it is safe, send the prompt again with a new idempotency key.",
    ),
}

_HEAD = """\
# Errors

<!-- Written by `python -m aerodrome.cli.error_reference > docs/errors.md`; change that, not this page. -->

Every error has a stable `code`. Over HTTP it is a problem document (RFC 9457), at the native gateway a JSON-RPC error
with the code in `data`; `detail` says what is wrong in this case, and `retry_after` is in seconds. Program against the
code: numbers group several codes, and texts change.

**Retryable** means that the same request may succeed later without anybody changing anything. A prompt is best repeated
with the `Idempotency-Key` that it had the first time: it is then never asked twice
([ledger](concepts.md#turns-and-the-ledger)). The exception is `turn_interrupted`: that is the outcome of its key.

Two errors have no row, because nobody is answered with them: a wrong setting stops the start, and a write that was
fenced ends the activation that made it.
"""


def render() -> str:
    """The page in Markdown."""
    lines = [_HEAD, "| code | HTTP | JSON-RPC | retryable |", "|---|---|---|---|", *map(_row, ADVICE)]
    for code, advice in ADVICE.items():
        lines += ["", f"## {code}", "", *_section(code, advice)]
    return "\n".join(lines) + "\n"


def _row(code: str) -> str:
    return f"| [`{code}`](#{code}) | {PROBLEMS[code].status} | {_number(code)} | {_retryable(code)} |"


def _section(code: str, advice: Advice) -> Iterator[str]:
    meaning, _, _ = inspect.cleandoc(_class_of(code).__doc__ or "").partition("\n\n")
    if code != AerodromeError.code:
        yield meaning.replace("\n", " ")
        yield ""
    yield f"**When:** {advice.when}"
    yield ""
    yield f"**What to do:** {advice.do}"


def _class_of(code: str) -> type[AerodromeError]:
    return all_codes().get(code, AerodromeError)


def _number(code: str) -> int:
    return NUMBERS.get(code, GATEWAY_ERROR)


def _retryable(code: str) -> str:
    return "yes" if _class_of(code).retryable else "no"


if __name__ == "__main__":
    sys.stdout.write(render())
