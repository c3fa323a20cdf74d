"""What the pages for operators show is run beside a node that works, on its real stores and processes.

What the pages have invented is put right: ids of runtimes, the directory of the backup, ports. A number that a page
shows stands for any number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.console_page import ROOT, Command, File, Shell, pages, parse
from support.place import Place
from support.ports import free_port

pytestmark = [pytest.mark.cli, pytest.mark.timeout(300)]

_NUMBER = re.compile(r"(rt-\w+|/var/\S+(?=:))|\d[\d.:T+-]*\d|\d")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ModelServer.in_thread() as model:
        place = Place(tmp_path, model.base_url)
        place.write("aerodrome.toml", f"{place.server}[runtime]\nwarm = 0\n{place.provider}")
        yield place


def runtime(place: Place, gone: set[str]) -> str:
    """The id of the one that acme has, other than those that were ended."""
    (found,) = place.runtimes(lambda each: each["tenant"] == "acme" and each["id"] not in gone)
    return str(found["id"])


def talk(place: Place) -> None:
    """Alice has a session, and is a writer in one of Bob's."""
    with place.client("alice") as alice, place.client("bob") as bob:
        for client, session in ((alice, "support-42"), (bob, "review")):
            client.post("/sessions", json={"id": session}).raise_for_status()
            client.post(f"/sessions/{session}/messages", json={"prompt": "Hello."}).raise_for_status()
        bob.put("/sessions/review/members/alice", json={"role": "writer"}).raise_for_status()


def put_right(command: Command, names: Mapping[str, str]) -> Command:
    output = [_NUMBER.sub(lambda match: match[1] or "...", line) for line in command.output]

    def named(text: str) -> str:
        # All at once: what stands for a name may have another of them in it.
        return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], text)

    return Command(command.line, named(command.text), [named(line) for line in output])


@pytest.mark.parametrize("page", pages("operations"))
def test_the_commands_of_operators_work_as_they_are_shown(page: str, place: Place) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    names = {"/var/backups": str(place.directory / "backups"), "/var/tmp": str(place.directory / "tmp")}
    ports = {":18080": f":{free_port()}", ":14321": f":{free_port()}"}
    with Shell(place.directory, place.env, timeout=120) as shell:
        shell.play(Command(0, "aerodrome serve &", ["ready http=... gateway=..."]))
        talk(place)
        for step in parse(text, "operations"):
            if isinstance(step, File):
                written = put_right(Command(step.line, step.text), names | ports).text
                # The page shows what is changed in a copy.
                place.write(step.name, written + place.provider)
                continue
            for name in re.findall(r"rt-\w+", step.text):
                names[name] = runtime(place, set(names.values()))
            shell.play(put_right(step, names))
