"""The diagrams are those that `scripts/diagrams.py` draws, and every one is shown, with words for who cannot see it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
SHOWN = re.compile(r"!\[([^\]]*)\]\((?:\.\./)?images/([\w-]+\.svg)\)")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images")
    subprocess.run([sys.executable, ROOT / "scripts" / "diagrams.py", out], check=True, timeout=60)
    return out


def test_the_diagrams_are_current(drawn: Path) -> None:
    checked_in = {image.name: image.read_text(encoding="utf-8") for image in IMAGES.iterdir()}
    assert checked_in == {image.name: image.read_text(encoding="utf-8") for image in drawn.iterdir()}, (
        "run: python scripts/diagrams.py docs/images"
    )


def test_every_diagram_is_shown_with_a_description() -> None:
    shown = [found for page in (ROOT / "docs").rglob("*.md") for found in SHOWN.findall(page.read_text("utf-8"))]
    assert {name for _, name in shown} == {image.name for image in IMAGES.iterdir()}
    assert all(len(words) > 20 for words, _ in shown)


def test_nothing_is_drawn_outside_the_page(drawn: Path) -> None:
    for image in drawn.iterdir():
        root = ET.parse(image).getroot()
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for part in root.iter("{http://www.w3.org/2000/svg}rect"):
            assert float(part.attrib["x"]) + float(part.attrib["width"]) <= width
            assert float(part.attrib["y"]) + float(part.attrib["height"]) <= height
