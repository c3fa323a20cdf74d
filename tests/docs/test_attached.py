"""Copilot CLI servers that are started as the page of attached servers says, with a node that uses them.

Paths begin in a directory of the test, names of machines and ports are of this one, and the tables are in SQLite. What
the last commands are about is made: a history in which half a line is left.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.cli import OFFLINE, cli
from support.console_page import ROOT, Command, File, Shell, pages, parse, scripts
from support.place import Place
from support.ports import free_port

__all__ = ["cli"]

pytestmark = [pytest.mark.cli, pytest.mark.timeout(300)]

MACHINES = ("cli-1", "cli-2", "cli-3")


@pytest.mark.parametrize("page", pages("attached"))
def test_servers_are_started_and_attached_as_the_page_says(page: str, cli: Path, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    # Of all machines alike.
    text = re.sub(r"(?<=[ :\"])/(mnt|run)/", rf"{tmp_path}/\1/", text)
    ports = {machine: str(free_port()) for machine in MACHINES}
    (token := tmp_path / "run" / "secrets" / "copilot-connection-token").parent.mkdir(parents=True)
    token.write_text("the-token")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "copilot").symlink_to(cli)
    (script,) = scripts(text, "attached")
    steps = parse(text, "attached")
    with ModelServer.in_thread() as model:
        place = Place(tmp_path, model.base_url)
        place.env |= OFFLINE | {"PATH": f"{tmp_path}/bin:{place.env['PATH']}", "TOKEN": "the-token"}
        with Shell(tmp_path, place.env, timeout=120) as shell:
            for machine, port in ports.items():
                here = script.text.replace("/srv/", f"{tmp_path}/{machine}/srv/").replace(
                    "--port 4321", f"--port {port}"
                )
                assert f"--port {port}" in here
                place.write(f"{machine}.sh", here)
                shell.play(Command(script.line, f"bash -e {machine}.sh &", ["...", "...listening on port ...", "..."]))
            for step in steps:
                if isinstance(step, File):
                    place.write(step.name, configuration(step.text, ports, place))
                    shell.play(Command(step.line, "aerodrome serve &", ["ready http=... gateway=..."]))
                    damage(place, shell, tmp_path / "mnt" / "copilot" / "acme")
                elif "sessions check" in step.text:
                    shell.play(Command(step.line, f"{step.text}\n[ $? = 1 ]", step.output))
                else:
                    shell.play(step)
        assert len(steps) == 3


def configuration(block: str, ports: dict[str, str], place: Place) -> str:
    for machine, port in ports.items():
        assert f'"{machine}:4321"' in block
        block = block.replace(f'"{machine}:4321"', f'"127.0.0.1:{port}"')
    block, changed = re.subn(r'tables = "postgresql:.*', 'tables = "sqlite"', block)
    assert changed == 1
    return f'{place.server}[sessions]\nidle_timeout = "1s"\n{block}{place.provider}'


def damage(place: Place, shell: Shell, volume: Path) -> None:
    """A session takes a turn in one of the servers, is hibernated, and half a line is written behind its history."""
    place.runtimes(lambda each: "server" in each and each["state"] == "warm", len(MACHINES))
    with place.client("alice") as alice:
        alice.post("/sessions", json={"id": "support-42"}).raise_for_status()
        alice.post("/sessions/support-42/messages", json={"prompt": "Hello."}).raise_for_status()
    # The turn ran in one of them, which the node has told of a moment later. Of the others those have become the
    # tenant's that had said by then that they see its directory.
    place.runtimes(lambda each: "server" in each and each["state"] == "claimed" and each["turns"] == 1)
    place.runtimes(lambda each: "server" in each and each["turns"] == 0, len(MACHINES) - 1)
    shell.play(Command(0, "until aerodrome sessions ls | grep hibernated; do sleep 0.1; done", ["...hibernated..."]))
    with (volume / "support-42" / "events.jsonl").open("a") as history:
        history.write('{"type": "assistant.mess')
