"""The values of the chart: file, schema and page say the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from support.chart import CHART, ROOT, Manifest, example, over, render


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_values", ROOT / "scripts" / "chart_values.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(reference: ModuleType) -> None:
    page = (ROOT / "docs" / "kubernetes-values.md").read_text()
    assert page == reference.render(), "run: python scripts/chart_values.py > docs/kubernetes-values.md"


def test_every_value_of_the_schema_is_in_the_file_and_says_what_it_does(reference: ModuleType) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    documented = {value.name for value in reference.values()}
    assert documented == set(reference.leaves(schema)) - {"global"}


def test_a_value_without_a_word_is_found(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (CHART / "values.yaml").read_text()
    (tmp_path / "values.yaml").write_text(text.replace("  # Most nodes.\n", ""))
    (tmp_path / "values.schema.json").write_bytes((CHART / "values.schema.json").read_bytes())
    monkeypatch.setattr(reference, "CHART", tmp_path)
    with pytest.raises(ValueError, match=r"autoscaling\.max"):
        list(reference.values())


#: For each of these a value that is not its default must change what is rendered: none is there for nothing.
_OTHER: dict[str, object] = {
    "image.tag": "1.2.3",
    "image.pullPolicy": "Always",
    "drain.preStopSeconds": 3,
    "drain.marginSeconds": 60,
    "http.service.type": "LoadBalancer",
    "http.service.port": 8080,
    "gateway.service.port": 14321,
    "ingress.className": "other",
    "resources.requests.cpu": "2",
    "resources.limits.memory": "16Gi",
    "data.sizeLimit": "1Gi",
    "tmpSizeLimit": "2Gi",
    "autoscaling.metric": "other_metric",
    "autoscaling.turnsPerNode": 7,
    "autoscaling.scaleDownSeconds": 60,
    "autoscaling.max": 20,
    "podDisruptionBudget.maxUnavailable": 2,
    "topologySpread.whenUnsatisfiable": "DoNotSchedule",
    "podSecurity.runAsUser": 20000,
    "migrations.deadlineSeconds": 60,
    "metrics.serviceMonitor.interval": "60s",
    "metrics.prometheusRule.labels": {"release": "prometheus"},
    "metrics.dashboards.labels": {"grafana_dashboard": "yes"},
}


@pytest.mark.parametrize("name", _OTHER)
def test_a_value_does_something(name: str) -> None:
    fleet = example("fleet")
    value = _OTHER[name]
    for key in reversed(name.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    before: list[Manifest] = render(fleet)
    assert render(over(fleet, value)) != before
