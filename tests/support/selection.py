"""Which cases of a long list run in the suite; the others run with `make soak`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def cases(everything: Iterable[Any], *, suite: Iterable[Any]) -> list[Any]:
    """Values for `parametrize`: those that are not of the suite are marked `soak`."""
    kept = list(suite)
    found = [case if isinstance(case, tuple) else (case,) for case in everything]
    chosen = [case if isinstance(case, tuple) else (case,) for case in kept]
    assert all(case in found for case in chosen), "the suite has a case that is none"
    return [pytest.param(*case, marks=() if case in chosen else pytest.mark.soak) for case in found]
