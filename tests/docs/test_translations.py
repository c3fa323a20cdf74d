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


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def outline(page: Path) -> list[str]:
    """The marks of its headings."""
    return re.findall(r"^(#+) ", without_blocks(page), re.MULTILINE)


def named(page: Path) -> set[str]:
    """What stands in the text as code: settings, error codes, routes."""
    return set(re.findall(r"`([^`]+)`", without_blocks(page).replace("\n", " ")))


def test_there_are_translations() -> None:
    assert {page.name for page in TRANSLATIONS} >= {"tutorial.md", "concepts.md"}


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_a_translation_shows_what_the_original_shows(page: Path) -> None:
    assert same(page)
    assert same(page) == same(DOCS / page.name)


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_a_translation_has_the_sections_of_the_original_and_names_nothing_else(page: Path) -> None:
    """It may be behind the original, and must not tell of what is no longer there."""
    assert outline(page) == outline(DOCS / page.name)
    assert named(page) <= named(DOCS / page.name)
