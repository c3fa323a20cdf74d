"""All files of a session, however somebody has laid them out: the walk keeps a list and does not recurse."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator

from aerodrome.errors import Conflict
from aerodrome.model import SessionKey
from aerodrome.statestore.ports import SessionFileStore


async def walk(
    files: SessionFileStore, key: SessionKey, directory: str
) -> AsyncIterator[tuple[str, OSError | Conflict | None]]:
    """The path of each file in and below a directory. A directory that cannot be looked into comes with the reason.

    Raises:
        StoreUnavailable: Not all have been looked at.
    """
    left = [directory]
    while left:
        directory = left.pop()
        try:
            entries = await files.listdir(key, directory)
        except FileNotFoundError:
            continue
        except (OSError, Conflict) as error:
            yield directory, error
            continue
        for name, info in entries:
            path = posixpath.join(directory, name)
            if info.is_directory:
                left.append(path)
            else:
                yield path, None
