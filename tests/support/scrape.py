"""What a node exposes, read with Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True)
class Scrape:
    samples: list[Sample]
    #: Type by the name of the family.
    types: dict[str, str]

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}

    def value(self, name: str, **labels: str) -> float:
        """The sum of all series that have these labels."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert found, f"no series {name}{labels}"
        return sum(found)


def parse(text: str, *, open_metrics: bool = False) -> Scrape:
    read: Callable[[str], Iterable[Any]] = (
        openmetrics.text_string_to_metric_families if open_metrics else text_string_to_metric_families
    )
    families = list(read(text))
    samples = [sample for family in families for sample in family.samples]
    return Scrape(samples, {family.name: family.type for family in families})


async def scrape(url: str, token: str | None = None) -> Scrape:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.get(f"{url}/metrics", headers=headers)
    assert response.status_code == 200, response.text
    return parse(response.text)
