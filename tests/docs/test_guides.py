"""What the pages say to put into the configuration is understood, with its references looked up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aerodrome.config import load_settings
from support.console_page import ROOT, blocks, pages
from support.vault import VaultServer

BLOCKS = [
    pytest.param("\n".join(block.lines), id=f"{page}-{block.line}")
    for page in pages()
    for block in blocks((ROOT / page).read_text(encoding="utf-8"))
    if block.language == "toml"
]
#: Variables that hold an address; any other holds a key.
ADDRESSES = {
    "DATABASE_URL": "postgresql://aerodrome@db.example/aerodrome",
    "REDIS_URL": "redis://:password@redis.example:6379",
}


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[VaultServer]:
    with VaultServer() as server:
        server.secret["aerodrome"] = {"model_key": "a-key"}
        monkeypatch.setenv("VAULT_ADDR", server.url)
        monkeypatch.setenv("VAULT_TOKEN", "root-token")
        yield server


@pytest.mark.parametrize("block", BLOCKS)
def test_the_configuration_of_a_page_is_valid(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vault: VaultServer
) -> None:
    """The variables, files and programs that it names are made, Vault is a server that speaks its protocol."""
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"env:(\w+)", block):
        monkeypatch.setenv(name, ADDRESSES.get(name, "a-key"))
    for path in re.findall(r"file:([\w./-]+)", block):
        _file(tmp_path, path).write_text("a-key\n", encoding="utf-8")
    for program in re.findall(r"command:([\w./-]+)", block):
        made = _file(tmp_path, program)
        made.write_text('#!/bin/sh\n[ $# = 2 ] && echo "a-key"\n', encoding="utf-8")
        made.chmod(0o700)
    text = re.sub(r"(file|command):/", rf"\1:{tmp_path}/", block)
    file = tmp_path / "aerodrome.toml"
    file.write_text(text, encoding="utf-8")
    load_settings(file)


def _file(root: Path, path: str) -> Path:
    made = root / path.lstrip("/")
    made.parent.mkdir(parents=True, exist_ok=True)
    return made


def test_there_is_such_a_block_with_each_kind_of_reference() -> None:
    text = "\n".join(str(block.values[0]) for block in BLOCKS)
    assert all(f"{kind}:" in text for kind in ("env", "file", "vault", "command"))


@pytest.mark.parametrize("page", pages())
def test_no_variable_for_a_secret_would_be_taken_for_a_setting(page: str) -> None:
    """`AERODROME_TOKEN` would be refused: there is no such section."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {name: "a-key" for name in re.findall(r"env:([A-Z_]+)", text) if name != "NAME"}
    load_settings(None, env=named)
