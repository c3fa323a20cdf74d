"""Whether the servers of `runtime.attach` can be used by a node on this machine."""

from __future__ import annotations

import asyncio
from functools import partial

from aerodrome.app.options import attach_entries, attached_options
from aerodrome.app.stores import open_stores
from aerodrome.config.settings import Settings
from aerodrome.errors import AerodromeError
from aerodrome.runtime.attached.entry import AttachEntry, plan
from aerodrome.runtime.attached.ports import Resolver
from aerodrome.runtime.attached.resolver import SystemResolver
from aerodrome.runtime.attached.runtime import AttachedRuntime
from aerodrome.statestore.ports import SharedVolume


async def examine_attached(settings: Settings, resolver: Resolver | None = None) -> dict[str, str | None]:
    """Connect to each server once, as a node does.

    Returns:
        Server, by its name in the settings or, where that leads to several, its address -> what is wrong with it, or
        ``None``.

    Raises:
        AerodromeError: The stores cannot be opened.
    """
    entries = attach_entries(settings)
    found: dict[str, str | None] = {}
    addresses: dict[str, list[str]] = {}
    for host in {entry.host for entry in entries}:
        try:
            addresses[host] = list(await (resolver or SystemResolver()).resolve(host))
        except OSError as error:
            addresses[host] = []
            found |= {
                entry.address: f"the name cannot be looked up: {error}" for entry in entries if entry.host == host
            }
    async with open_stores(settings) as stores:
        bindings = (await stores.attached.bindings()).items()
        owners = {endpoint: binding.key for endpoint, binding in bindings if binding.release is None}
        planned = plan(entries, addresses, owners)
        found |= {
            f"{entry.address} ({endpoint})": "another entry leads to the same server, and counts"
            for endpoint, unused in planned.unused.items()
            for entry in unused
        }
        asked = (_problem(endpoint, entry, settings, stores.volume) for endpoint, entry in planned.servers.items())
        problems = await asyncio.gather(*asked)
    for (endpoint, entry), problem in zip(planned.servers.items(), problems, strict=True):
        found[entry.address if entry.address == endpoint else f"{entry.address} ({endpoint})"] = problem
    return found


async def _problem(endpoint: str, entry: AttachEntry, settings: Settings, volume: SharedVolume | None) -> str | None:
    host, _, port = endpoint.rpartition(":")
    options = attached_options(settings).server
    runtime = AttachedRuntime((host.strip("[]"), int(port)), entry, options, lambda _answered, _seconds: None)
    try:
        async with asyncio.timeout(options.ping_timeout):
            await runtime.open()
        if entry.tenant is None or volume is None:  # whose it will be is not known yet
            return None
        if not await runtime.sees(partial(volume.check_sight, entry.tenant)):
            return f"its session-state is not the directory of {entry.tenant} on the volume"
        return None
    except TimeoutError:
        return f"it does not answer within {options.ping_timeout:g} s"
    except AerodromeError as error:
        return error.detail
    finally:
        await runtime.aclose()
