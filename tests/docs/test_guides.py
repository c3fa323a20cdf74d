"""What the guides say to put into the configuration is understood."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aerodrome.config import load_settings

ROOT = Path(__file__).parents[2]
GUIDES = [*sorted((ROOT / "docs" / "howto").glob("*.md")), ROOT / "docs" / "tutorial.md"]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in GUIDES
    for number, block in enumerate(
        re.findall(r"^```toml\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_configuration_of_a_guide_is_valid(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://aerodrome@db.example/aerodrome")
    file = tmp_path / "aerodrome.toml"
    file.write_text(block, encoding="utf-8")
    load_settings(file)
