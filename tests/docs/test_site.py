"""The site is made without a warning and without a network, has every page, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md"))

#: Attributes by which a page has the browser fetch something. `href` does so in `link` only; in `a` it asks the reader.
FETCHED = {"src", "srcset", "poster", "data", "action"}
REMOTE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
REMOTE_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*(?:https?:)?//", re.IGNORECASE)
#: A namespace is a name and is not fetched.
REMOTE_SCRIPT = re.compile(r"[\"'`](?:https?:)?//(?!www\.w3\.org/)[\w-]+\.[\w.-]+", re.IGNORECASE)


class Fetches(HTMLParser):
    """What a page has the browser fetch, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.links: set[str] = set()
        self.language = ""
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in FETCHED or (name == "href" and tag in ("link", "image", "use")):
                self.addresses.append(value)
            elif name == "href" and tag == "a":
                self.links.add(value)
            elif name == "lang" and tag == "html":
                self.language = value
            elif name == "style" and REMOTE_STYLE.search(value):
                self.addresses.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: Path) -> Fetches:
    parser = Fetches()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made as `make docs` makes it, by a Sphinx that could not use a network."""
    out = tmp_path_factory.mktemp("site")
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(out)]
    made = subprocess.run(command, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    return out


@pytest.mark.timeout(360)
def test_every_page_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    front = read(site / "index.html").links
    for page in PAGES:
        assert (site / page.with_suffix(".html")).is_file()
        if page.name not in ("index", "README") and page.parent.name != "adr":
            assert page.with_suffix(".html").as_posix() in front, page
    records = read(site / "adr" / "README.html").links
    assert {record.with_suffix(".html").name for record in PAGES if re.match(r"adr/\d", record.as_posix())} <= records


@pytest.mark.timeout(360)
def test_what_pages_tell_their_tests_is_not_shown(site: Path) -> None:
    assert "<!-- test: quickstart" in (DOCS / "quickstart.md").read_text(encoding="utf-8")
    for page in PAGES:
        shown = read(site / page.with_suffix(".html")).text
        assert len(shown) > 100
        assert "test: " not in shown, page
        assert "not run: " not in shown, page


@pytest.mark.timeout(360)
def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    found: list[str] = []
    for file in site.rglob("*"):
        if file.suffix == ".html":
            found += [f"{file.name}: {address}" for address in read(file).addresses if REMOTE.search(address)]
        if file.suffix in (".html", ".css", ".svg"):
            found += [f"{file.name}: {match}" for match in REMOTE_STYLE.findall(file.read_text(encoding="utf-8"))]
        if file.suffix in (".js", ".svg"):
            found += [f"{file.name}: {match}" for match in scripts(file)]
    assert not found


def scripts(file: Path) -> Iterator[str]:
    """Addresses in a script or a drawing, other than in its comments."""
    text = re.sub(r"/\*.*?\*/|<!--.*?-->", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    yield from REMOTE_SCRIPT.findall(text)


@pytest.mark.timeout(360)
def test_a_page_says_in_which_language_it_is(site: Path) -> None:
    assert read(site / "concepts.html").language == "en"
    assert read(site / "zh" / "concepts.html").language == "zh-CN"


@pytest.mark.parametrize(
    ("page", "remote"),
    [
        ('<script src="https://cdn.example/x.js">', True),
        ('<link rel="stylesheet" href="//fonts.example/css">', True),
        ('<img src="_images/roles.svg"><a href="https://elsewhere.example">', False),
        ('<p style="background: url(https://elsewhere.example/x.png)">', True),
    ],
)
def test_what_a_browser_would_fetch_is_found(page: str, remote: bool) -> None:
    parser = Fetches()
    parser.feed(page)
    assert any(REMOTE.search(address) or REMOTE_STYLE.search(address) for address in parser.addresses) is remote
