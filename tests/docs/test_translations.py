"""A page in another language shows the same commands, programs and diagrams as the original, in the same order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TRANSLATIONS = sorted((DOCS / "zh").glob("*.md"))
#: Blocks with what the tests know them by, and drawings by their names.
SAME = re.compile(r"^<!-- test: .*? -->$|^```.*?^```$|(?<=images/)[\w-]+\.svg", re.MULTILINE | re.DOTALL)


def same(page: Path) -> list[str]:
    return SAME.findall(page.read_text(encoding="utf-8"))


def outline(page: Path) -> list[int]:
    """The levels of its headings, and the number of columns of its tables' rows."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    marks = re.findall(r"^(#+) |^\|(.+)\|$", text, re.MULTILINE)
    return [len(heading) if heading else 10 + len(re.findall(r"(?<!\\)\|", row)) for heading, row in marks]


def test_there_are_translations() -> None:
    assert {page.name for page in TRANSLATIONS} >= {"tutorial.md", "concepts.md"}


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_a_translation_shows_what_the_original_shows(page: Path) -> None:
    assert same(page)
    assert same(page) == same(DOCS / page.name)


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_a_translation_has_the_sections_and_tables_of_the_original(page: Path) -> None:
    assert outline(page) == outline(DOCS / page.name)


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_a_translation_names_the_settings_and_codes_of_the_original(page: Path) -> None:
    def named(of: Path) -> set[str]:
        text = re.sub(r"^```.*?^```$", "", of.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        return set(re.findall(r"`([^`\n]+)`", re.sub(r"\n", " ", text)))

    assert named(page) == named(DOCS / page.name)
