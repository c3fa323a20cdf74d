"""The documentation is complete and its links lead somewhere; no file tells of the machine it was written on."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.core
import typer.main

from aerodrome.cli import error_reference as errors
from aerodrome.cli import reference as command_line
from aerodrome.cli.main import app as command_line_app
from aerodrome.config.reference import entries
from aerodrome.config.settings import Settings
from aerodrome.errors import AerodromeError, ConfigError, Fenced, all_codes
from aerodrome.gateway.problems import GATEWAY_ERROR, METHOD_NOT_FOUND, NUMBERS
from aerodrome.http.api import routes_only
from aerodrome.http.problems import PROBLEMS
from aerodrome.policy import reference as policy
from aerodrome.policy.method_table import GROUPS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
RECORDS = sorted((DOCS / "adr").glob("[0-9]*.md"))
#: Never answered by a front door: the first closes an activation, the second stops a start.
INTERNAL = {Fenced.code, ConfigError.code}
CODES = sorted({AerodromeError.code, *all_codes()} - INTERNAL)
APP = typer.main.get_command(command_line_app)
COMMANDS = [context.command_path for _, context in command_line.commands()]


def read(path: Path | str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- everything that there is has its place ---


@pytest.mark.parametrize("section", Settings.model_fields)
def test_every_setting_is_documented(section: str) -> None:
    _, _, rest = read("docs/settings.md").partition(f"\n## [{section}]\n")
    table, _, _ = rest.partition("\n## ")
    for entry in entries(section):
        assert f"\n| `{entry.key}`<br>`AERODROME_{section.upper()}__{entry.key.upper()}` |" in table


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_is_documented_with_what_to_do(code: str) -> None:
    assert f"\n| `{code}` | " in read("docs/http.md")
    assert all(errors.ADVICE[code])


def test_only_error_codes_that_are_answered_are_documented() -> None:
    assert set(errors.ADVICE) == set(PROBLEMS) == set(CODES)


def test_the_page_of_errors_is_current() -> None:
    assert read("docs/errors.md") == errors.render(), "run: python -m aerodrome.cli.error_reference > docs/errors.md"


def test_every_error_of_the_gateway_is_documented_with_its_number() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (-\d+) \|", read("docs/gateway.md"), re.MULTILINE))
    numbers = {code: str(NUMBERS.get(code, GATEWAY_ERROR)) for code in CODES}
    assert rows == {**numbers, "forbidden": str(METHOD_NOT_FOUND)}


def test_every_route_is_documented() -> None:
    page = read("docs/http.md")
    paths = routes_only().openapi()["paths"]
    assert paths
    for path, operations in paths.items():
        for method in operations:
            assert f"\n## {method.upper()} {path}\n" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"\n## {command}\n" in read("docs/cli.md")


def test_the_page_of_commands_is_current() -> None:
    assert read("docs/cli.md") == command_line.render(), "run: python -m aerodrome.cli.reference > docs/cli.md"


def test_the_page_of_the_policy_is_current() -> None:
    assert read("docs/policy.md") == policy.render(), "run: python -m aerodrome.policy.reference > docs/policy.md"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_only_commands_and_options_that_exist_are_written_of(page: Path) -> None:
    """What stands in the text, as far as it is written out; the blocks are run."""
    for words in re.findall(r"`aerodrome ((?:[^`])+)`", without_blocks(page)):
        arguments = shlex.split(words.replace("\n", " ").replace("...", ""))
        assert understood(arguments), f"aerodrome {words}"


def understood(arguments: list[str]) -> bool:
    """Whether there is such a command with such options. Values and names may be left out."""
    name, command = "aerodrome", APP
    while isinstance(command, typer.core.TyperGroup) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in command.commands:
            return name.isupper()
        command = command.commands[name]
    if isinstance(command, typer.core.TyperGroup):
        # A group of commands, or an option of all.
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        return all(word in known or word.isupper() for word in arguments)
    try:
        command.make_context(name, arguments).close()
    except Exception as error:  # those of click, of which typer may have a copy
        return type(error).__name__ in ("MissingParameter", "BadOptionUsage")
    return True


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("keys create --tenant acme", True),
        ("keys", True),
        ("--debug VERB", True),
        ("keys craete", False),
        ("keys create --role owner --tenat acme", False),
        ("nodes drain NAME OTHER", False),
    ],
)
def test_a_command_that_does_not_exist_is_found(words: str, known: bool) -> None:
    assert understood(words.split()) is known


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_only_settings_that_exist_are_written_of(page: Path) -> None:
    known = {f"{section}.{entry.key}" for section in Settings.model_fields for entry in entries(section)}
    dotted = rf"`((?:{'|'.join(Settings.model_fields)})\.[a-z_]+)[` ]"
    others = log_events() | methods() | values_of_the_chart()
    assert set(re.findall(dotted, page.read_text(encoding="utf-8"))) <= known | others


def test_only_log_events_that_exist_are_explained() -> None:
    _, _, rest = read("docs/operations.md").partition("\n| event | meaning |\n")
    table, _, _ = rest.partition("\n\n")
    first_cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    explained = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    assert explained
    assert explained <= log_events()


def methods() -> set[str]:
    """Of the runtime's protocol: some begin like sections of the settings."""
    return {rule.method for _, lines in GROUPS for line in lines for rule in line}


def values_of_the_chart() -> set[str]:
    """As far as their first two words go; some begin like sections of the settings."""
    names = re.findall(r"^\| `([A-Za-z.]+)` \|", read("docs/kubernetes-values.md"), re.MULTILINE)
    assert names
    return {".".join(name.split(".")[:2]) for name in names}


def log_events() -> set[str]:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    return {event for source in sources for event in re.findall(r'\blog\.\w+\(\s*"([a-z_.]+)"', source)}


def test_every_page_is_in_the_index() -> None:
    index = read("docs/index.md")
    for page in PAGES:
        if page.parent in (DOCS, DOCS / "zh") and page.name != "index.md":
            assert f"]({page.relative_to(DOCS).as_posix()})" in index, page.name
    guides = read("docs/howto/README.md")
    for page in (DOCS / "howto").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in guides, page.name


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_every_decision_is_listed_and_has_its_parts(record: Path) -> None:
    text = record.read_text(encoding="utf-8")
    title = re.match(r"# (\d{4}): (.+)\n", text)
    assert title
    assert record.name.startswith(f"{title[1]}-")
    assert f"| [{title[1]}]({record.name}) | {title[2]} |" in read("docs/adr/README.md")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_no_two_decisions_have_one_number() -> None:
    numbers = [int(record.name[:4]) for record in RECORDS]
    assert sorted(set(numbers)) == numbers


# --- links ---


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert target.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)} links to {link}"


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^()\s]+)\)", without_blocks(page))


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


# --- what no file may tell ---

#: Directories of somebody's machine. A colon before the path is one of a URL or of a drive.
MACHINE_PATH = re.compile(r"(?<![\w.:@~}*/-])/(?:root|work|Users|home/[a-z]\w*|tmp/lab)/")
#: Hosts that serve packages: well-known ones, and whatever calls itself so. `.example` and `.test` belong to nobody.
PACKAGE_HOST = re.compile(
    r"\b(?:npmjs\.(?:org|com)|pypi\.org|pythonhosted\.org|npmmirror\.com|yarnpkg\.com)\b"
    r"|https?://(?=[\w.-]*(?:registry|mirror|artifactory|nexus|pypi|npm))(?![\w.-]*\.(?:example|test|invalid)\b)"
    r"[\w.-]+\.[a-z]+\b",
    re.IGNORECASE,
)


def tracked_text() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue  # deleted and not yet committed
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="lists the files that git tracks")
@pytest.mark.parametrize("pattern", [MACHINE_PATH, PACKAGE_HOST], ids=["path", "package host"])
def test_no_file_tells_where_it_was_written(pattern: re.Pattern[str]) -> None:
    found = [
        f"{name}:{number}: {match[0]}"
        for name, text in tracked_text()
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := pattern.search(line))
    ]
    assert not found


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (MACHINE_PATH, "see /ro" + "ot/.cache/x", True),
        (MACHINE_PATH, '"/ho' + 'me/jane/x"', True),
        (MACHINE_PATH, "/api/v1/wo" + "rk/x and https://x.example/ro" + "ot/y", False),
        (PACKAGE_HOST, "https:" + "//registry.np" + "mjs.org/", True),
        (PACKAGE_HOST, "http:" + "//nexus.corp.internal/npm", True),
        (PACKAGE_HOST, "https://registry.corp.example/npm", False),
    ],
    ids=str,
)
def test_the_patterns_find_what_they_are_for(pattern: re.Pattern[str], text: str, found: bool) -> None:
    assert (pattern.search(text) is not None) is found
