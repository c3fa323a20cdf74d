"""Names for the stores in messages to operators. Callers of the API are told of no address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aerodrome.errors import StoreUnavailable


@contextmanager
def said_of(where: str) -> Iterator[None]:
    """What is wrong with a store when it is opened is said with the setting that names it.

    Args:
        where: Such as ``state.url = postgresql://me:***@db.example/aerodrome``, without its password.

    Raises:
        StoreUnavailable: In place of itself, and of every `OSError`.
    """
    try:
        yield
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{where}: {error.detail}", retry_after=error.retry_after, **error.extra) from error
    except PermissionError as error:
        raise StoreUnavailable(
            f"{where}: this user may not use it; run the command as the user that the node runs as"
        ) from error
    except OSError as error:
        raise StoreUnavailable(f"{where}: {error.strerror or error}") from error
