"""How Sphinx makes the site: `make docs` (docs/adr/0038-the-documentation-site.md).

The pages are plain Markdown, read in the repository as well. So the navigation is not written a second time, in
Sphinx's own markup, but taken from the lists of links in `index.md` and `adr/README.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

project = "Aerodrome"
extensions = ["myst_parser"]
root_doc = "index"
exclude_patterns = ["_*"]
# Every reference must lead somewhere; `make docs` makes errors of warnings.
nitpicky = True
myst_heading_anchors = 4

html_theme = "furo"
html_title = "Aerodrome"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_copyright = False
html_copy_source = False
html_use_index = False

#: Pages whose lists of links are the navigation below them.
_LISTS = {"index", "adr/README", "howto/README"}
_HEADING = re.compile(r"^## (.+)$")
#: `- [Title](page.md): what it is`, and the first cell of a row in a table.
_ENTRY = re.compile(r"^(?:- |\| )\[")
_PAGE = re.compile(r"\]\((?P<page>[\w-][\w/.-]*)\.md\)")
#: A link that may lead out of the site.
_UPWARDS = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<path>(?:\.\./)+[\w/.-]+)(?:#[\w-]+)?\)")


def navigation(text: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, pages) for each section of a page that lists others. Pages outside the site are left out."""
    heading, pages, seen = "", list[str](), set[str]()
    for line in text.splitlines():
        if match := _HEADING.match(line):
            yield heading, pages
            heading, pages = match[1], []
        elif _ENTRY.match(line):
            pages += [page for page in _PAGE.findall(line) if page not in seen]
            seen.update(pages)
    yield heading, pages


def _link_out(app: Sphinx, name: str, source: list[str]) -> None:
    """Outside the site Markdown is a file to read as it is, where MyST would look for a page; and a directory is no
    more than its name.
    """
    site = Path(app.srcdir)

    def link(match: re.Match[str]) -> str:
        target = (site / name).parent.joinpath(match["path"]).resolve()
        if target.is_relative_to(site):
            return match[0]
        if target.is_dir():
            return match["text"]
        return f"[{match['text']}](path:{match['path']})" if target.suffix == ".md" else match[0]

    source[0] = _UPWARDS.sub(link, source[0])


def _add_navigation(_: Sphinx, name: str, source: list[str]) -> None:
    if name not in _LISTS:
        return
    for heading, pages in navigation(source[0]):
        if pages:
            caption = [f":caption: {heading}"] if heading else []
            source[0] += "\n".join(["\n\n```{toctree}", ":hidden:", *caption, "", *pages, "```\n"])


def _say_the_language(_: Sphinx, name: str, __: str, context: dict[str, Any], ___: object) -> None:
    if name.startswith("zh/"):
        context["language"] = "zh-CN"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _link_out)
    app.connect("source-read", _add_navigation)
    app.connect("html-page-context", _say_the_language)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
