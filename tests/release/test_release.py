"""What a release is made of, and what stops one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import aerodrome

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel of this source."""
    target = tmp_path_factory.mktemp("dist")
    hatchling = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(hatchling, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    (made,) = target.iterdir()
    with zipfile.ZipFile(made) as archive:
        return archive.namelist()


def test_the_wheel_has_all_of_the_source_and_nothing_else(release: ModuleType, wheel: list[str]) -> None:
    assert list(release.wheel_problems(wheel, aerodrome.__version__)) == []
    # What code reads as files: without them it would be found out at a customer's.
    for suffix in (".sql", ".lua", "py.typed"):
        assert any(name.endswith(suffix) for name in wheel), suffix
    assert not [name for name in wheel if "test" in name.split("/")[0]]


def test_what_is_missing_and_what_is_too_much_in_a_wheel_is_found(release: ModuleType, wheel: list[str]) -> None:
    sql = next(name for name in wheel if name.endswith(".sql"))
    wrong = [*(set(wheel) - {sql}), "tests/test_x.py"]
    assert list(release.wheel_problems(wrong, aerodrome.__version__)) == [
        f"the wheel lacks {sql}",
        "the wheel has tests/test_x.py",
    ]


def test_everything_that_names_the_version_names_the_same(release: ModuleType) -> None:
    assert release.version() == aerodrome.__version__
    assert list(release.problems(aerodrome.__version__, rehearsal=True)) == []
    told = list(release.problems("9.9.9", rehearsal=True))
    assert len(told) == 5
    assert "CHANGELOG.md: has no heading for 9.9.9" in told


@pytest.mark.parametrize(
    ("changelog", "problem"),
    [
        ("## [1.0.0] - 2026-01-31\n\n- A change.\n", None),
        ("## [1.0.0], not released yet\n\n- A change.\n", "no date"),
        ("## [1.0.0] - 2026-01-31\n\n## [0.9.0]\n\n- A change.\n", "says nothing"),
        ("## [1.0.01] - 2026-01-31\n\n- A change.\n", "no heading"),
    ],
)
def test_what_the_changelog_must_say(release: ModuleType, changelog: str, problem: str | None) -> None:
    found = " ".join(release.changelog_problems("# Changelog\n\n" + changelog, "1.0.0", rehearsal=False))
    assert (problem or "") in found
    assert bool(found) is (problem is not None)


def test_a_rehearsal_needs_no_date(release: ModuleType) -> None:
    text = "## [1.0.0], not released yet\n\n- A change.\n"
    assert list(release.changelog_problems(text, "1.0.0", rehearsal=True)) == []
