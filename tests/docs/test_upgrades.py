"""The commands of the page about upgrades are run in its order, beside a node; its message is the one that is given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.peers.versions import refusal
from support.console_page import ROOT, Command, Shell, blocks
from support.place import Place
from support.postgres import fresh_schema, shared_server

PAGE = (ROOT / "docs" / "upgrades.md").read_text(encoding="utf-8")
SERVE = Command(0, "aerodrome serve &", ["ready http=... gateway=..."])


@pytest.mark.cli
@pytest.mark.timeout(300)
def test_the_commands_of_an_upgrade_work_in_this_order(tmp_path: Path) -> None:
    _, _, section = PAGE.partition("\n## In order\n")
    steps = re.findall(r"`(aerodrome .+?)`", section.partition("\n## ")[0].replace("\n", " "))
    verbs = [step.split()[1] for step in steps]
    assert verbs == ["doctor", "runtime", "doctor", "migrate", "migrate", "nodes", "doctor", "migrate"]
    with ModelServer.in_thread() as model:
        place = Place(tmp_path, model.base_url)
        # For coordination, with which the part about the node ends, and for the state.
        store = f'url = "{shared_server().url}"\ndatabase_schema = "{fresh_schema()}"\n'
        place.write("aerodrome.toml", f"{place.server}{store}[state]\n{store}{place.provider}")
        with Shell(tmp_path, place.env, timeout=120) as shell:
            shell.play(SERVE)
            for step, verb in zip(steps, verbs, strict=True):
                if verb == "runtime" or step == "aerodrome doctor":
                    continue  # as in the quick start, which runs them
                # The node of the page is any; this one is `a`.
                shell.play(Command(0, step.replace("NAME", "a"), ["..."]))
                if " drain " in step:
                    shell.play(SERVE)


def test_the_message_to_a_node_that_is_too_far_away_is_the_one_that_is_shown() -> None:
    (shown,) = [block.lines for block in blocks(PAGE) if block.language == "text"]
    assert " ".join(shown) == refusal("0.4.0", {"a": "0.2.0"})
