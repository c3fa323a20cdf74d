"""The commands of the deployment pages: the shell reads them, and what they name is there."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest
import typer.core
import typer.main
import yaml

from aerodrome.cli import reference
from aerodrome.cli.main import app
from support.chart import ROOT, render

PAGES = ("docs/deployment.md", "docs/kubernetes.md", "docs/operations.md")


def blocks() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            yield page, block


def commands() -> Iterator[list[str]]:
    """Each as words, also those that another program runs."""
    for _, block in blocks():
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)


BLOCKS = list(blocks())


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=[page for page, _ in BLOCKS])
def test_the_shell_reads_it(block: str) -> None:
    done = subprocess.run(["sh", "-n"], input=block, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_that_are_named_are_there() -> None:
    words = [word.lstrip("@") for words in commands() if words[:1] != ["kubectl"] for word in words]
    named = {word for word in words if word.startswith("deploy/")}
    assert len(named) > 8
    for name in named:
        assert list(ROOT.glob(name)), name


def test_aerodrome_takes_its_arguments() -> None:
    found = 0
    for words in commands():
        for words_behind in _behind(words):
            found += 1
            _parse(words_behind)
    assert found >= 6
    with pytest.raises(Exception, match="No such option"):
        _parse(["migrate", "--pots"])


def _behind(words: list[str]) -> Iterator[list[str]]:
    for number, word in enumerate(words):
        # What `az container exec` runs is one word.
        if word.startswith("aerodrome "):
            yield word.split()[1:]
        elif re.fullmatch(r"(\S*/)?aerodrome", word) and words[number + 1 : number + 2]:
            arguments = [each.rstrip(";") for each in words[number + 1 :]]
            if arguments[0] in _commands() or arguments[0] == "--version":
                yield arguments


def _commands() -> set[str]:
    return {context.command_path.split()[1] for _, context in reference.commands() if " " in context.command_path}


def _parse(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        return
    name, command = "aerodrome", typer.main.get_command(app)
    while isinstance(command, typer.core.TyperGroup):
        name, *arguments = arguments
        command = command.commands[name]
    with command.make_context(name, list(arguments)):
        pass


def test_what_kubectl_is_asked_for_is_in_the_release() -> None:
    values = yaml.safe_load((ROOT / "deploy/helm/examples/fleet.yaml").read_text())
    # The pages call the release `aerodrome`.
    names = {
        f"{manifest['kind'].lower()}/{manifest['metadata']['name']}".replace("air-aerodrome", "aerodrome")
        for manifest in render(values)
    }
    asked = {
        word.removeprefix("--from=").replace("deploy/", "deployment/")
        for words in commands()
        if words[:1] == ["kubectl"]
        for word in words
        if re.fullmatch(r"(--from=)?(deploy|cronjob)/[\w-]+", word)
    }
    assert asked
    assert asked <= names
