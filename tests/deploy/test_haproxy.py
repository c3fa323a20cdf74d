"""What the load balancer does when a node refuses: between two that are scripted."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from support.haproxy import CONFIGURATION, Balancer, haproxy
from support.nodes import eventually


class Scripted:
    """Answers `/ready` as it is told, and everything else with one status; counts what it was asked."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.ready = True
        self.asked = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /ready"):
            status = 200 if self.ready else 503
        else:
            status = self.status
            self.asked += 1
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Balancer, Scripted, Scripted]]:
    """A node that takes everything, one that refuses everything, and what is in front."""
    takes, refuses = Scripted(200), Scripted(503)
    servers = []
    for each in (takes, refuses):
        server = await asyncio.start_server(each.serve, "127.0.0.1", 0)
        each.port = server.sockets[0].getsockname()[1]
        servers.append(server)
    ports = {"1": (takes.port, takes.port), "2": (refuses.port, refuses.port)}
    async with haproxy(ports, tmp_path / "log") as balancer:
        yield balancer, takes, refuses
    for server in servers:
        server.close()


async def test_what_one_node_refuses_another_does_if_it_counts_once(
    pair: tuple[Balancer, Scripted, Scripted],
) -> None:
    balancer, _, refuses = pair
    async with httpx.AsyncClient(base_url=balancer.url, timeout=60) as client:
        for number in range(6):
            headers = {"Idempotency-Key": str(number)}
            assert (await client.post("/x", json={"prompt": "p"}, headers=headers)).status_code == 200
            assert (await client.get("/x")).status_code == 200
        assert refuses.asked > 0
        # What nobody can tell from its repetition is not repeated.
        plain = {(await client.post("/x", json={"prompt": "p"})).status_code for _ in range(20)}
        assert plain == {200, 503}


async def test_a_node_that_is_not_ready_is_passed_over(pair: tuple[Balancer, Scripted, Scripted]) -> None:
    balancer, _, refuses = pair
    async with httpx.AsyncClient(base_url=balancer.url, timeout=60) as client:
        refuses.ready = False

        async def passed_over() -> bool:
            before = refuses.asked
            statuses = {(await client.post("/x")).status_code for _ in range(4)}
            return statuses == {200} and refuses.asked == before

        await eventually(passed_over, 60)
        refuses.ready = True
        await eventually(lambda: _asked_again(client, refuses), 60)


def test_a_node_that_leaves_goes_on_working_until_it_is_passed_over() -> None:
    (checks,) = re.findall(
        r"check inter (\d+)s fastinter (\d+)ms fall (\d+) ", CONFIGURATION.read_text(encoding="utf-8")
    )
    between, when_one_has_failed, fall = (int(each) for each in checks)
    settings = tomllib.loads(CONFIGURATION.with_name("aerodrome.toml").read_text(encoding="utf-8"))
    delay = float(settings["server"]["drain_delay"].removesuffix("s"))
    # And as long again for the answers to the checks.
    assert 2 * (between + (fall - 1) * when_one_has_failed / 1000) <= delay


async def _asked_again(client: httpx.AsyncClient, node: Scripted) -> bool:
    before = node.asked
    await client.post("/x")
    return node.asked > before
