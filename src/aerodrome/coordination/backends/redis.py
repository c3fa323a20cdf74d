"""Coordination of a fleet through Redis or Valkey.

Whatever decides a race is one script on the primary, which asks the server's own clock: nodes need not agree on the
time. A step of that clock ends lives early or late, which costs a rebirth or a wait; the epoch at the state store
keeps histories whole all the same. The server may be restarted or emptied: nodes are then told that they are dead, and
join again; epochs begin above the floor that each caller brings.

What is stored is small: the living nodes, the leases that are held (a lease given back leaves nothing but one common
floor for the epochs that follow), and the rates and places in use. All keys carry one hash tag, ``{prefix}``, so that
in a cluster they are in one slot, where scripts can be atomic; several fleets in one cluster take a prefix each.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from aerodrome._util.redis_url import RedisUrl
from aerodrome.coordination.backends.names import ascii_name
from aerodrome.coordination.backends.redis_client import RedisClient, Script, load_script
from aerodrome.coordination.backends.redis_events import RedisEvents
from aerodrome.coordination.ports import Admission, Beat, Cap, ClusterEvent, Lease, Node, Rate
from aerodrome.model import SessionKey

_JOIN = load_script("join")
_HEARTBEAT = load_script("heartbeat")
_LEAVE = load_script("leave")
_NODES = load_script("nodes")
_ASK_TO_DRAIN = load_script("ask_to_drain")
_ACQUIRE = load_script("acquire")
_RELEASE = load_script("release")
_HOLDERS = load_script("holders")
_ADMIT = load_script("admit")
_VACATE = load_script("vacate")
_CLEAR_LEASES = load_script("clear_leases")
_CLEAR_PLACES = load_script("clear_places")

_BEATS = (Beat.DEAD, Beat.ALIVE, Beat.DRAIN)
#: In the order in which `common.lua` names them.
_KEYS = ("nodes", "node", "ttl", "load", "drain", "leases", "floor", "places")


class RedisCoordination:
    """Implements `coordination.ports.Coordination`.

    Args:
        current: What gives the address for a new connection, of which user and password count.
        prefix: Of all keys and of the channel; fleets that share a server have one each.
        timeout: Seconds to wait for an answer. Well below the nodes' time to live.
        patience: Seconds to go on trying while the server cannot be reached; a heartbeat tries once.
        offset: Seconds by which the server's clock is taken to be ahead, for tests.
    """

    def __init__(
        self,
        url: RedisUrl,
        *,
        current: Callable[[], RedisUrl] | None = None,
        prefix: str = "aerodrome",
        timeout: float = 2.5,
        patience: float = 4.0,
        offset: Callable[[], float] | None = None,
    ) -> None:
        self._client = RedisClient(url, current=current, timeout=timeout, patience=patience)
        self._prefix = f"{{{prefix}}}:"
        self._keys = [self._prefix + name for name in _KEYS]
        self._offset = offset
        self._events = RedisEvents(self._client, f"{self._prefix}events")

    async def open(self) -> None:
        """Raises `StoreUnavailable`."""
        await self._client.open()

    async def aclose(self) -> None:
        await self._events.aclose()
        await self._client.aclose()

    async def about(self) -> tuple[dict[str, str], float]:
        """What the server says of itself (`INFO`), and by how many seconds its clock is ahead of this machine's.

        `refused` when the user of `coordination.url` may not ask.
        """
        return await self._client.about()

    # Membership

    async def join(self, node: Node, ttl: float) -> None:
        about = json.dumps({"name": node.name, "address": node.address, "peer_token": node.peer_token})
        await self._run(_JOIN, node.incarnation, about, json.dumps(node.load), _micro(ttl), urgent=True)

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> Beat:
        text = "" if load is None else json.dumps(load)
        return _BEATS[await self._run(_HEARTBEAT, incarnation, text, urgent=True)]

    async def leave(self, incarnation: str) -> None:
        await self._run(_LEAVE, incarnation)

    async def nodes(self) -> list[Node]:
        found = []
        for incarnation, about, load in await self._run(_NODES):
            known = json.loads(about)
            found.append(
                Node(known["name"], incarnation.decode(), known["address"], json.loads(load), known["peer_token"])
            )
        return sorted(found, key=lambda node: (node.name, node.incarnation))

    async def ask_to_drain(self, incarnation: str) -> bool:
        return bool(await self._run(_ASK_TO_DRAIN, incarnation))

    # Leases

    async def acquire(self, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease | None:
        epoch = int(await self._run(_ACQUIRE, _field(key), incarnation, floor))
        return Lease(key, incarnation, epoch) if epoch else None

    async def release(self, lease: Lease) -> bool:
        return bool(await self._run(_RELEASE, _field(lease.key), lease.incarnation, lease.epoch))

    async def holder(self, key: SessionKey) -> Lease | None:
        return (await self.holders([key])).get(key)

    async def holders(self, keys: Sequence[SessionKey]) -> dict[SessionKey, Lease]:
        if not keys:
            return {}
        leases = {}
        for field, incarnation, epoch in await self._run(_HOLDERS, *(_field(key) for key in keys)):
            key = SessionKey(*json.loads(field))
            leases[key] = Lease(key, incarnation.decode(), int(epoch))
        return leases

    async def forget(self, lease: Lease) -> bool:
        # A lease that was given back leaves nothing either.
        return await self.release(lease)

    async def clear_dead(self) -> int:
        cleared = await self._clear(_CLEAR_LEASES)
        await self._clear(_CLEAR_PLACES)
        return cleared

    async def _clear(self, script: Script) -> int:
        cursor, cleared = "0", 0
        while True:
            # Page by page: a script holds up everybody else.
            behind, found = await self._run(script, cursor)
            cursor, cleared = behind.decode(), cleared + int(found)
            if cursor == "0":
                return cleared

    # Events

    async def publish(self, event: ClusterEvent) -> None:
        await self._events.publish(event)

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        return self._events.listen(callback)

    # Limits

    async def admit(
        self, place: str, incarnation: str, *, rates: Sequence[Rate] = (), caps: Sequence[Cap] = ()
    ) -> Admission:
        # By its number a repetition is known: the rates are counted once.
        keys = [f"{self._prefix}admission:{secrets.token_hex(8)}"]
        keys += [f"{self._prefix}rate:{ascii_name(rate.name)}" for rate in rates]
        keys += [f"{self._prefix}cap:{ascii_name(cap.name)}" for cap in caps]
        numbers: list[int] = [number for rate in rates for number in (rate.limit, _micro(rate.period))]
        numbers += [cap.limit for cap in caps]
        kind, *rest = await self._run(_ADMIT, ascii_name(place), incarnation, len(rates), *numbers, keys=keys)
        if kind == 1:
            number, wait = rest
            return Admission(exceeded=rates[number - 1], retry_after=int(wait) / 1e6)
        if kind == 2:
            return Admission(full=caps[rest[0] - 1])
        return Admission()

    async def vacate(self, place: str, incarnation: str) -> None:
        await self._run(_VACATE, ascii_name(place), incarnation)

    async def _run(self, script: Script, *arguments: str | int, keys: Sequence[str] = (), urgent: bool = False) -> Any:
        ahead = 0 if self._offset is None else _micro(self._offset())
        return await self._client.run(script, [*self._keys, *keys], [ahead, *arguments], urgent=urgent)


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)


def _field(key: SessionKey) -> str:
    return json.dumps(key)
