"""The dashboards, rules and runbooks are about metrics that exist, and about each other."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from aerodrome.observability.catalogue import CATALOGUE, Metric
from aerodrome.observability.prometheus import Exposition, PrometheusMeter, new_registry
from aerodrome.observability.reference import render
from support.promtool import promtool
from support.scrape import parse

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "observability"
RULES = FILES / "prometheus"
DASHBOARDS = sorted((FILES / "grafana").glob("*.json"))
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")

#: Series by name, and what Prometheus itself says of a target.
SERIES: dict[str, Metric] = {series: m for metrics in CATALOGUE.values() for m in metrics for series in m.exposed}
OF_PROMETHEUS = {"up"}
OF_TARGETS = {"job", "instance"}
#: Of every process, as Prometheus' clients expose them.
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"}


def groups(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load((RULES / name).read_text(encoding="utf-8"))["groups"])


RECORDED = [rule for group in groups("recording.rules.yml") for rule in group["rules"]]
ALERTS = [rule for group in groups("alerts.rules.yml") for rule in group["rules"]]
RECORD_NAMES = {rule["record"] for rule in RECORDED}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def dashboard_queries() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        for panel in panels(json.loads(path.read_text(encoding="utf-8"))):
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "5m")


QUERIES = [
    *((rule["record"], rule["expr"]) for rule in RECORDED),
    *((rule["alert"], rule["expr"]) for rule in ALERTS),
    *dashboard_queries(),
]


def selectors(query: promql.Expr) -> list[promql.VectorSelector]:
    """Every selector of a parsed query."""
    found: list[promql.VectorSelector] = []

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        return True

    promql.walk(query, visit)
    return found


def groupings(query: promql.Expr) -> set[str]:
    """Labels by which something is aggregated or matched."""
    found: set[str] = set()

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
        if isinstance(node, promql.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            found.update(node.modifier.matching.labels)
        return True

    promql.walk(query, visit)
    return found


def labels_of(series: str) -> set[str]:
    metric = SERIES.get(series)
    own = set(metric.labels) if metric is not None else set()
    return own | OF_TARGETS | ({"le"} if series.endswith("_bucket") else set())


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_every_query_asks_for_what_there_is(where: str, query: str) -> None:
    parsed = promql.parse(query)
    found = selectors(parsed)
    assert found, f"{where} selects nothing"
    known = SERIES.keys() | RECORD_NAMES | OF_PROMETHEUS | PROCESS
    for selector in found:
        assert selector.name in known, f"{where}: no metric {selector.name}"
        for matcher in selector.matchers.matchers:
            assert selector.name is not None
            if selector.name in SERIES:
                assert matcher.name in labels_of(selector.name), f"{where}: {selector.name} has no label {matcher.name}"
            if matcher.name == "le":
                bounds = {str(float(bound)) for bound in SERIES[selector.name].buckets}
                assert matcher.value in bounds, f"{where}: {selector.name} has no bucket {matcher.value}"
    everything = {label for series in SERIES for label in labels_of(series)}
    assert groupings(parsed) <= everything, where


def test_the_finder_finds() -> None:
    parsed = promql.parse('histogram_quantile(0.9, sum by (le, job) (rate(a_bucket{le="5.0"}[5m]))) > on (x) b / c')
    assert {selector.name for selector in selectors(parsed)} == {"a_bucket", "b", "c"}
    assert groupings(parsed) == {"le", "job", "x"}


def matches(matcher: promql.Matcher, value: str) -> bool:
    if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual):
        return bool((value == matcher.value) == (matcher.op == promql.MatchOp.Equal))
    return bool((re.fullmatch(matcher.value, value) is not None) == (matcher.op == promql.MatchOp.Re))


def test_what_alerts_count_is_there_before_it_happens() -> None:
    """Prometheus does not see the first increase of a series that begins with it."""
    registry = new_registry()
    meter = PrometheusMeter(registry)
    fresh = parse(Exposition(registry).exposition("")[0].decode())
    counters = [
        selector
        for rule in [*RECORDED, *ALERTS]
        for selector in selectors(promql.parse(rule["expr"]))
        if str(selector.name).startswith("aerodrome_") and str(selector.name).endswith("_total")
    ]
    assert meter.on
    assert counters
    for selector in counters:
        found = [
            sample
            for sample in fresh.samples
            if sample.name == selector.name
            and all(matches(each, sample.labels.get(each.name, "")) for each in selector.matchers.matchers)
        ]
        assert found, selector.prettify()


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {selector.name for _, query in dashboard_queries() for selector in selectors(promql.parse(query))}
    recorded = {rule["record"]: promql.parse(rule["expr"]) for rule in RECORDED}
    shown |= {selector.name for name in shown & recorded.keys() for selector in selectors(recorded[str(name)])}
    unseen = [m.name for metrics in CATALOGUE.values() for m in metrics if not shown & set(m.exposed)]
    assert unseen == ["aerodrome_build_info"]  # the variables of the dashboards ask for it


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_portable(path: Path) -> None:
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    assert dashboard["uid"] == f"aerodrome-{path.stem}"
    ids = [panel["id"] for panel in panels(dashboard)]
    assert len(set(ids)) == len(ids)
    for panel in panels(dashboard):
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'job="$job"' in target["expr"], panel["title"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$(?:\{)?(\w+)", json.dumps(dashboard["panels"])))
    assert used - {"__rate_interval"} <= variables


# --- alerts and their runbooks ---


def section(title: str) -> str:
    _, _, rest = RUNBOOKS.partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{rule['alert'].lower()}"
    text = section(rule["alert"])
    for part in ("**It means**", "**Look at**", "**Do**"):
        assert part in text, f"the runbook of {rule['alert']} does not say {part}"


def test_every_runbook_is_of_an_alert() -> None:
    titles = re.findall(r"^## (Aerodrome\w+)$", RUNBOOKS, re.MULTILINE)
    assert titles == [rule["alert"] for rule in ALERTS]


@pytest.mark.parametrize("indicator", ["turn_errors", "late_answers"])
def test_each_objective_is_watched_over_a_long_and_a_short_window(indicator: str) -> None:
    burning = [rule for rule in ALERTS if f"aerodrome:{indicator}:ratio" in rule["expr"]]
    found = [re.findall(rf"aerodrome:{indicator}:ratio_rate(\w+) > ([\d.]+) \* ([\d.]+)", r["expr"]) for r in burning]
    budget = {"turn_errors": "0.005", "late_answers": "0.05"}[indicator]
    assert found == [
        [("1h", "14.4", budget), ("5m", "14.4", budget)],
        [("6h", "6", budget), ("30m", "6", budget)],
        [("3d", "1", budget), ("6h", "1", budget)],
    ]


# --- with Prometheus' own tool ---


def run_promtool(*arguments: str) -> None:
    if (tool := promtool()) is None:
        pytest.skip("promtool (of Prometheus) is not installed, and Debian's package cannot be downloaded")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules() -> None:
    run_promtool("check", "rules", str(RULES / "recording.rules.yml"), str(RULES / "alerts.rules.yml"))
    run_promtool("check", "config", str(RULES / "prometheus.yml"))


def test_the_alerts_are_raised_by_what_they_are_about(tmp_path: Path) -> None:
    text = (Path(__file__).parent / "rules_test.yml").read_text(encoding="utf-8")
    text = text.replace("RECORDING", str(RULES / "recording.rules.yml")).replace(
        "ALERTS", str(RULES / "alerts.rules.yml")
    )
    cases = tmp_path / "rules_test.yml"
    cases.write_text(text, encoding="utf-8")
    run_promtool("test", "rules", str(cases))


# --- the page ---


def test_the_page_of_metrics_is_current() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == render(), "run: python -m aerodrome.observability.reference > docs/metrics.md"


def test_every_metric_is_in_the_catalogue_once() -> None:
    from aerodrome.observability import catalogue

    defined = [value for value in vars(catalogue).values() if isinstance(value, Metric)]
    listed = [metric for metrics in CATALOGUE.values() for metric in metrics]
    assert sorted(metric.name for metric in listed) == sorted({metric.name for metric in defined})
    assert all(metric.help.endswith(".") or metric.help.endswith(")") for metric in listed)
    assert all(metric.buckets for metric in listed if metric.kind == "histogram")
