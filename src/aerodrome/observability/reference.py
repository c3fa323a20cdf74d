"""The reference page of the metrics.

python -m aerodrome.observability.reference > docs/metrics.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from aerodrome.observability.catalogue import CATALOGUE, Metric

_INTRODUCTION = """\
# Metrics

<!-- Made from the catalogue by `python -m aerodrome.observability.reference > docs/metrics.md`; edit that. -->

What a node tells Prometheus at `/metrics`, if `telemetry.metrics_address` or `telemetry.metrics_token` is set
([observability](observability.md)). Counters are exposed with `_total`, histograms as `_bucket`, `_sum` and `_count`.
Times are seconds, sizes bytes. Every series is of one node: sum over nodes for the fleet.

No label has the id of anything. `tenant` is empty unless `telemetry.tenant_labels` says how many tenants may be told
apart; `gen_ai_request_model` and `gen_ai_provider_name` have at most 20 values each, the rest is `other`. Beside these
there are `process_*` of the node's own process, as Prometheus' clients have them.
"""


def render() -> str:
    return "\n".join([_INTRODUCTION.rstrip("\n"), *_groups()]) + "\n"


def _groups() -> Iterator[str]:
    for title, metrics in CATALOGUE.items():
        yield f"\n## {title}\n"
        yield "| metric | type | labels | meaning |"
        yield "|---|---|---|---|"
        for metric in metrics:
            yield _row(metric)


def _row(metric: Metric) -> str:
    name = metric.exposed[0] if metric.kind == "counter" else metric.name
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{name}` | {metric.kind} | {labels} | {metric.help} |"


if __name__ == "__main__":
    sys.stdout.write(render())
