"""Whether the models of a configuration can be reached with its keys. It asks for their list, which costs nothing."""

from __future__ import annotations

import asyncio

import httpx

from aerodrome.config.provider_settings import ProviderSettings, reveal
from aerodrome.config.settings import Settings

_PATIENCE = 5.0


async def examine_models(settings: Settings) -> list[str]:
    """What is wrong, each with the name of its setting. GitHub's models are not asked: they have no such list."""
    problems = [
        f"{name}.github_token is missing: set it, for example to env:GITHUB_TOKEN"
        for name in settings.provider.without_token()
    ]
    if any(name.upper().endswith(("_PROXY", "CA_CERTS")) for name in settings.runtime.env):
        return problems  # Runtimes have another way to the others than this process.
    asked = [
        _problem(name, provider, provider.base_url)
        for name, provider in settings.provider.sections().items()
        if provider.base_url is not None
    ]
    return problems + [problem for problem in await asyncio.gather(*asked) if problem is not None]


async def _problem(name: str, provider: ProviderSettings, url: str) -> str | None:
    """Whatever it answers but a refusal, it is there: not every endpoint has a list, and not every key may see it."""
    try:
        async with httpx.AsyncClient(timeout=_PATIENCE) as client:
            answer = await client.get(f"{url.rstrip('/')}/models", headers=_log_in(provider))
    except httpx.LocalProtocolError:
        # Its text would quote the key.
        return f"{name}.api_key has a character that a request cannot carry, such as a line break"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{name}.base_url = {url} does not answer ({str(error) or type(error).__name__})"
    if answer.status_code != httpx.codes.UNAUTHORIZED:
        return None
    return f"{name}.base_url = {url} answers 401: {name}.api_key is {'refused' if provider.api_key else 'missing'}"


def _log_in(provider: ProviderSettings) -> dict[bytes, bytes]:
    key = (reveal(provider.api_key) or "").encode()
    if not key:
        return {}
    if provider.type == "azure":
        return {b"api-key": key}
    if provider.type == "anthropic":
        return {b"x-api-key": key, b"anthropic-version": b"2023-06-01"}
    return {b"authorization": b"Bearer " + key}
