"""The documentation of the settings, and the file that `aerodrome init` writes, agree with the models."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from aerodrome.config.reference import Entry, entries, markdown, template
from aerodrome.config.settings import Settings
from aerodrome.config.types import Address

ROOT = Path(__file__).parents[2]
ENTRIES = [entry for section in Settings.model_fields for entry in entries(section)]


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m aerodrome.config.reference > docs/settings.md"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.section}.{entry.key}")
def test_every_setting_is_described_and_its_default_can_be_pasted(entry: Entry) -> None:
    assert re.fullmatch(r"\S.*\.", entry.description)
    if entry.default is not None:
        values = tomllib.loads(f"{entry.key} = {entry.default}")
        table = getattr(Settings.model_validate({entry.section: values}), entry.section)
        assert getattr(table, entry.key) == getattr(getattr(Settings(), entry.section), entry.key)


def test_the_template_changes_nothing() -> None:
    assert Settings.model_validate(tomllib.loads(template())) == Settings()


def test_every_setting_is_in_the_template_and_works_when_uncommented() -> None:
    names = re.findall(r"^#(\w+) = ", template(), re.MULTILINE)
    assert names == [entry.key for entry in ENTRIES]
    # The defaults of these two contradict the examples of others: `base_url` is not for the type "github".
    text = re.sub(r"^#(\w+ = )", r"\1", template(), flags=re.MULTILINE)
    text = text.replace('type = "github"', 'type = "azure"').replace(
        "allow_unsandboxed = false", "allow_unsandboxed = true"
    )
    settings = Settings.model_validate(tomllib.loads(text), context={"resolve_secrets": False})
    assert settings.server.http == Address("127.0.0.1", 8080)
    assert settings.policy.host_tools == ["bash"]
