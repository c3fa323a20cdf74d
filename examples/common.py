"""What the examples have in common: settings that leave nothing behind, a model, and a question.

Without anything set, models are played by Aerodrome's scripted model server on this machine: no network, no keys. For a
real one, set a provider as you would for `aerodrome serve`, for instance

    export AERODROME_PROVIDER__TYPE=github AERODROME_PROVIDER__GITHUB_TOKEN=env:GITHUB_TOKEN
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aerodrome.config import load_settings
from aerodrome.demo.model import ModelServer


@contextmanager
def example_settings(**sections: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings for `aerodrome.Fleet`: these sections, a data directory that is removed afterwards, and a provider."""
    # Your own program has a directory that stays, or none in its settings: then it is the one of `aerodrome serve`.
    with tempfile.TemporaryDirectory(prefix="aerodrome-example-") as directory, _provider() as provider:
        server = {"data_dir": directory, "http": "127.0.0.1:0", "drain_timeout": "5s"}
        # No process is kept warm for whoever comes next: an example ends before that.
        runtime = {"warm": 0, **sections.pop("runtime", {})}
        yield {"server": server, "provider": provider, "runtime": runtime, **sections}


@contextmanager
def _provider() -> Iterator[Any]:
    if any(name.startswith("AERODROME_PROVIDER__") for name in os.environ):
        yield load_settings().provider
        return
    with ModelServer.in_thread() as model:
        yield {"type": "openai", "base_url": model.base_url, "model": "gpt-4.1"}


async def ask(session: Any, prompt: str) -> str:
    """One turn in a session of the SDK; the text of its answer."""
    answer = await session.send_and_wait(prompt, timeout=300)
    return str(answer.data.content)
