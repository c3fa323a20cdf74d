"""Working on the text of a history without holding up everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Characters of history from which on it is read in a thread: parsing takes about 10 ms a megabyte.
LONG = 256 * 1024


async def parse(function: Callable[[str], T], text: str) -> T:
    """Apply a function to a history, in a thread when it is long."""
    return function(text) if len(text) < LONG else await asyncio.to_thread(function, text)
