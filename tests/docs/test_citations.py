"""What comments cite can be found: pages and their headings, traps by their numbers, tests by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py")), ROOT / "pyproject.toml"]
#: `docs/facts.md, "Wire"`, also across the lines of a comment; the heading may be left out.
CITATION = re.compile(r'\b(docs/[\w./-]+\.md)(?:, "([^"]+)")?')
#: "trap 8", "traps 1, 11", "traps 6-8".
TRAPS = re.compile(r"\btraps? (\d+(?:(?:-|, | and )\d+)*)", re.IGNORECASE)


def prose(path: Path) -> str:
    """The text of a file with the line breaks of comments and docstrings taken out."""
    return re.sub(r"\s*\n\s*(?:#:? )?", " ", path.read_text(encoding="utf-8"))


def citations() -> set[tuple[str, str, str]]:
    """(source, page, heading), the heading empty when a page is cited as a whole."""
    return {
        (source.relative_to(ROOT).as_posix(), page, heading)
        for source in SOURCES
        if source != Path(__file__)
        for page, heading in CITATION.findall(prose(source))
    }


def headings(page: Path) -> set[str]:
    return set(re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE))


def trap_numbers(text: str) -> set[int]:
    numbers: set[int] = set()
    for cited in TRAPS.findall(text):
        for part in re.split(r", | and ", cited):
            first, _, last = part.partition("-")
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def rows_of_traps() -> dict[int, set[str]]:
    """Number of a trap -> the tests that its row names."""
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", (DOCS / "traps.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {int(number): set(re.findall(r"`(test_\w+)`", tests)) for number, tests in rows}


def names_of_tests() -> set[str]:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return {name for source in sources for name in re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE)}


def test_every_page_and_heading_that_is_cited_exists() -> None:
    cited = citations()
    assert any(heading for _, _, heading in cited)
    for source, page, heading in sorted(cited):
        assert (ROOT / page).is_file(), f"{source} cites {page}"
        assert not heading or heading in headings(ROOT / page), f'{source} cites {page}, "{heading}"'


def test_every_trap_that_is_cited_is_in_the_table() -> None:
    rows = rows_of_traps()
    assert rows
    for source in SOURCES:
        if source != Path(__file__):
            assert trap_numbers(prose(source)) <= set(rows), source


def test_every_trap_with_tests_is_in_the_table_and_names_some_of_them() -> None:
    tests = defaultdict(set)
    for name in names_of_tests():
        if match := re.match(r"test_trap_(\d+)_", name):
            tests[int(match[1])].add(name)
    rows = rows_of_traps()
    assert set(rows) == set(tests)
    for number, named in rows.items():
        assert named, f"trap {number} names no test"
        assert named <= tests[number]


def test_every_test_that_guards_a_fact_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "facts.md").read_text(encoding="utf-8")))
    assert named
    assert named <= names_of_tests()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("(trap 8)", {8}), ("Traps 1, 11", {1, 11}), ("traps 6-8 and 10", {6, 7, 8, 10}), ("trap_14, a trap", set())],
)
def test_traps_are_found_however_they_are_cited(text: str, numbers: set[int]) -> None:
    assert trap_numbers(text) == numbers


def test_a_citation_is_found_across_the_lines_of_a_comment(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        '    #: It waits (docs/facts.md, "Sessions\n    #: and connections").\n# docs/facts.md,\n# "Wire"\n'
    )
    assert CITATION.findall(prose(source)) == [("docs/facts.md", "Sessions and connections"), ("docs/facts.md", "Wire")]
