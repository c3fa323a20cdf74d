"""Every command and example of the documentation is executed, or says beside it what stands in for that."""

from __future__ import annotations

import re

import pytest

from support.console_page import ROOT, Block, blocks, pages

#: Drawings, output, messages, files of other programs.
SHOWN = {"text"}
#: Validated wherever they are (test_guides.py).
VALIDATED = {"toml"}
#: Examples out of the OpenAPI document, which tests/http/test_openapi.py holds against its schemas.
GENERATED = {("docs/http.md", "json")}


def fault(page: str, block: Block) -> str | None:
    """Why nothing executes it."""
    if block.language in SHOWN | VALIDATED or (page, block.language) in GENERATED:
        return None
    if block.language not in ("console", "sh", "python", "js", "yaml", "json"):
        return "in a language that no test knows"
    if block.reason is not None:
        return None
    if block.session is None:
        return "no <!-- test: NAME --> or <!-- not run: REASON --> before it"
    if block.language == "console" and not block.lines[0].startswith("$ "):
        return "it does not begin with a command"
    if block.language not in ("console", "sh") and block.file is None:
        return f"the session {block.session} does nothing with it: name a file"
    return None if _plays(block) else f"tests/docs/test_{block.session}.py does not play it"


def _plays(block: Block) -> bool:
    test = ROOT / "tests" / "docs" / f"test_{block.session}.py"
    text = test.read_text(encoding="utf-8") if test.is_file() else ""
    by = "scripts" if block.language == "sh" else "parse"
    return f'pages("{block.session}")' in text and re.search(rf'\b{by}\(.*"{block.session}"\)', text) is not None


@pytest.mark.parametrize("page", pages())
def test_every_block_is_executed_or_says_why_not(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [f"{page}:{block.line}: {why}" for block in blocks(text) if (why := fault(page, block))]
    assert not found
    # Other kinds of blocks would not be seen.
    assert not re.findall(r"^(?:[ >]+```|~~~).*$", text, re.MULTILINE)


@pytest.mark.parametrize("page", pages())
def test_what_is_not_run_names_what_stands_in_for_it(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    reasons = [block.reason for block in blocks(text) if block.reason is not None]
    assert len(reasons) == len(re.findall("^<!-- not run:", text, re.MULTILINE)), "it stands before a block"
    for reason in reasons:
        named = re.findall(r"tests/[\w/.]+\w", reason)
        assert named, reason
        assert all((ROOT / name).exists() for name in named), reason


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```sh\nls\n```\n", "no <!-- test"),
        ("<!-- test: quickstart -->\n```sh\nls\n```\n", "does not play it"),
        ("<!-- test: nowhere -->\n```console\n$ ls\n```\n", "does not play it"),
        ("<!-- test: quickstart -->\n```console\nls\n```\n", "does not begin"),
        ("<!-- test: quickstart -->\n```python\n1\n```\n", "name a file"),
        ("```cobol\n```\n", "no test knows"),
        ("```\n```\n", "no test knows"),
        ("<!-- not run: once -->\n```sh\nls\n```\n```sh\nls\n```\n", "no <!-- test"),
    ],
)
def test_a_block_that_nothing_executes_is_found(text: str, why: str) -> None:
    *_, last = blocks(text)
    assert why in str(fault("README.md", last))
    assert fault("README.md", Block(1, "console", ["$ ls"], "quickstart")) is None
