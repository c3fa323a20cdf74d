"""Clients that break the rules of the wire harm themselves and nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from support import misbehaving
from support.misbehaving import BAD_BODIES, BAD_HEADERS, UNFINISHED, Fate, Misdeed, RawClient, raw
from support.sdk_clients import Endpoint

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bystander(endpoint: Endpoint) -> AsyncIterator[RawClient]:
    """Somebody who was connected before, and behaves."""
    async with raw(endpoint.address, endpoint.token) as client:
        yield client


async def unharmed(endpoint: Endpoint, bystander: RawClient) -> bool:
    """Whether those who are connected are answered, and new ones as well."""
    async with raw(endpoint.address, endpoint.token) as newcomer:
        return await bystander.fate() is await newcomer.fate() is Fate.ALIVE


@pytest.mark.parametrize("misdeed", BAD_BODIES)
async def test_a_bad_body(endpoint: Endpoint, bystander: RawClient, misdeed: Misdeed) -> None:
    async with raw(endpoint.address, endpoint.token) as client:
        await misdeed(client)
        fate = await client.fate()
        assert fate is Fate.ALIVE if endpoint.kind == "direct" else fate is not Fate.SILENT
        assert await unharmed(endpoint, bystander)


def said(answer: dict[str, Any]) -> tuple[int, str]:
    """Number and text of an error. The gateway has `data` beside them."""
    return answer["error"]["code"], answer["error"]["message"]


@pytest.mark.parametrize("misdeed", BAD_HEADERS)
async def test_a_bad_header(endpoint: Endpoint, bystander: RawClient, misdeed: Misdeed) -> None:
    async with raw(endpoint.address, endpoint.token) as client:
        await misdeed(client)
        assert await client.fate() is Fate.CLOSED
        assert await unharmed(endpoint, bystander)


@pytest.mark.parametrize("misdeed", UNFINISHED)
async def test_an_unfinished_frame(endpoint: Endpoint, bystander: RawClient, misdeed: Misdeed) -> None:
    async with raw(endpoint.address, endpoint.token) as client:
        await misdeed(client)
        assert await unharmed(endpoint, bystander)


@pytest.mark.parametrize("misdeed", [*BAD_BODIES, *BAD_HEADERS, *UNFINISHED])
async def test_a_stranger_may_do_no_more(endpoint: Endpoint, bystander: RawClient, misdeed: Misdeed) -> None:
    async with raw(endpoint.address) as client:
        await misdeed(client)
        assert await unharmed(endpoint, bystander)


@pytest.mark.parametrize("method", ["session.list", "session.create", "models.list", "no.such.method"])
async def test_nothing_is_answered_before_connect(endpoint: Endpoint, method: str) -> None:
    async with raw(endpoint.address) as client:
        answer = await misbehaving.request_before_connect(client, method)
        assert said(answer) == (-32001, "AUTHENTICATION_REQUIRED")


async def test_a_second_try_with_the_right_token(endpoint: Endpoint) -> None:
    async with raw(endpoint.address) as client:
        wrong, right = await misbehaving.wrong_token_then_right(client, endpoint.token)
        assert said(wrong) == (-32002, "AUTHENTICATION_FAILED")
        assert right["result"]["protocolVersion"] == 3


async def test_one_id_for_two_requests_in_flight(endpoint: Endpoint) -> None:
    async with raw(endpoint.address, endpoint.token) as client:
        answers = await misbehaving.same_id_twice(client)
        # In whatever order: requests are served at the same time.
        assert {answer["result"]["message"] for answer in answers} == {"pong: first", "pong: second"}


async def test_ten_thousand_pings_without_reading(endpoint: Endpoint, bystander: RawClient) -> None:
    async with raw(endpoint.address, endpoint.token) as client:
        assert await misbehaving.pings_without_reading(client) == 10_000
        assert await unharmed(endpoint, bystander)


async def test_a_half_closed_connection_is_closed(endpoint: Endpoint, bystander: RawClient) -> None:
    async with raw(endpoint.address, endpoint.token) as client:
        # The CLI does not always answer any more.
        answers = await misbehaving.half_close(client)
        assert [answer["result"]["message"] for answer in answers] in ([], ["pong"])
        assert await unharmed(endpoint, bystander)


async def test_a_reset(endpoint: Endpoint, bystander: RawClient) -> None:
    async with raw(endpoint.address, endpoint.token) as client:
        client.reset()
    assert await unharmed(endpoint, bystander)
