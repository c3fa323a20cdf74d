from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.model import RuntimeKey
from aerodrome.runtime.workspaces import Workspaces

ALICE = RuntimeKey("acme", "alice")


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    return Workspaces(tmp_path / "workspaces")


@given(st.tuples(st.text(max_size=300), st.text(max_size=300)))
def test_no_name_leads_out_of_the_root_or_is_hidden(name: tuple[str, str]) -> None:
    root = Path("/root-of-workspaces")
    path = Workspaces(root).directory(RuntimeKey(*name))
    assert path.parent == root
    assert len(path.name) < 200
    assert path.name.isascii()
    assert not path.name.startswith(".")
    assert "/" not in path.name
    assert "\0" not in path.name


@pytest.mark.parametrize(
    "others",
    [
        ("acme", "Alice"),
        ("acme-alice", ""),
        ("acm", "e-alice"),
        ("acme", "alice/"),
        ("acme/alice", ""),
        ("acme", "älice"),
    ],
)
def test_names_that_look_alike_are_two(workspaces: Workspaces, others: tuple[str, str]) -> None:
    first, second = workspaces.directory(ALICE), workspaces.directory(RuntimeKey(*others))
    assert first.name.casefold() != second.name.casefold()


def test_one_in_use_stays_and_one_that_is_not_goes(workspaces: Workspaces) -> None:
    first, second = workspaces.open(ALICE), workspaces.open(ALICE)
    assert first.files == second.files
    (first.files / "x").write_text("x")
    assert list(workspaces.owners()) == [ALICE]
    assert not workspaces.remove(ALICE)
    first.release()
    assert not workspaces.remove(ALICE)
    second.release()
    assert workspaces.remove(ALICE)
    assert workspaces.remove(ALICE)
    assert list(workspaces.root.iterdir()) == []
    third = workspaces.open(ALICE)
    assert list(third.files.iterdir()) == []
    third.release()


def test_a_link_in_place_of_a_workspace_is_not_followed(workspaces: Workspaces, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "files").mkdir()
    workspaces.root.mkdir()
    workspaces.directory(ALICE).symlink_to(elsewhere)
    with pytest.raises(OSError):
        workspaces.open(ALICE)
    assert workspaces.remove(ALICE)
    assert elsewhere.exists()
    assert list(workspaces.owners()) == []


def test_what_was_begun_and_not_finished_is_cleared_away(workspaces: Workspaces) -> None:
    for name in (".gone-1", ".new-old", ".new-young"):
        (workspaces.root / name / "files").mkdir(parents=True)
    os.utime(workspaces.root / ".new-old", (0, 0))
    workspaces.tidy()
    assert [path.name for path in workspaces.root.iterdir()] == [".new-young"]


def test_descriptors_do_not_pile_up(workspaces: Workspaces) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        workspaces.open(ALICE).release()
        workspaces.remove(ALICE)
    assert len(os.listdir("/proc/self/fd")) == before
