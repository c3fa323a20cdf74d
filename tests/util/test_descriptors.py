from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from aerodrome._util.descriptors import WANTED, allow_many


@pytest.fixture(autouse=True)
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_a_login_shell_gives_is_raised(limits: tuple[int, int]) -> None:
    hard = limits[1]
    most = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, most), hard))
    assert allow_many() == most
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)


def test_what_is_more_is_left(limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome._util.descriptors.WANTED", 100)
    assert allow_many() == limits[0]
