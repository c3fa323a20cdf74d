"""The chart, and what stands around it: Prometheus, KEDA, Vault."""

from __future__ import annotations

import json

import pytest
import yaml

from deploy.test_chart import FLEET, NAME, VAULT, container, node, rendered
from support.chart import ROOT, Manifest, only, over, pods, render, selects

ALERTS = yaml.safe_load((ROOT / "deploy" / "observability" / "prometheus" / "alerts.rules.yml").read_text())


def job_of(manifests: list[Manifest]) -> str:
    """The label `job` of what a Prometheus operator reads by the ServiceMonitor: that of the Service which it names."""
    (monitor,) = [each["spec"] for each in manifests if each["kind"] == "ServiceMonitor"]
    labels = [each["metadata"]["labels"] for each in manifests if each["kind"] == "Service"]
    (found,) = [each for each in labels if selects(monitor["selector"], each)]
    return str(found[monitor["jobLabel"]])


@pytest.mark.parametrize("release", ["aerodrome", "air", "something-else"])
def test_the_fleet_has_the_name_by_which_the_alert_looks_for_lost_nodes(release: str) -> None:
    (down,) = [rule for group in ALERTS["groups"] for rule in group["rules"] if rule["alert"] == "AerodromeNodeDown"]
    for values in (FLEET, over(FLEET, {"fullnameOverride": "copilot"})):
        assert f'up{{job="{job_of(render(values, name=release))}"}} == 0' in down["expr"]
    # Fleets of one Prometheus are told apart by it.
    assert job_of(render(over(FLEET, {"metrics": {"fleet": "copilot-eu"}}))) == "copilot-eu"


def test_rules_and_dashboards_are_those_of_the_repository() -> None:
    files = ROOT / "deploy" / "observability"
    rules = {m["metadata"]["name"]: m["spec"] for m in rendered("fleet") if m["kind"] == "PrometheusRule"}
    assert rules == {
        f"{NAME}-{part}": yaml.safe_load((files / "prometheus" / f"{part}.rules.yml").read_text())
        for part in ("alerts", "recording")
    }
    for path in (files / "grafana").glob("*.json"):
        board = only(rendered("fleet"), "ConfigMap", f"{NAME}-dashboard-{path.stem}")
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(board["data"][f"aerodrome-{path.name}"]) == json.loads(path.read_text())


def test_rules_look_for_lost_nodes_of_the_fleet_by_its_name() -> None:
    rules = only(render(over(FLEET, {"metrics": {"fleet": "copilot-eu"}})), "PrometheusRule", f"{NAME}-alerts")
    (down,) = [r for group in rules["spec"]["groups"] for r in group["rules"] if r["alert"] == "AerodromeNodeDown"]
    assert 'up{job="copilot-eu"} == 0' in down["expr"]
    assert 'job="aerodrome"' not in down["expr"]


def test_without_the_metric_keda_ends_no_node() -> None:
    (scaled,) = [each["spec"] for each in rendered("keda") if each["kind"] == "ScaledObject"]
    assert scaled["fallback"]["behavior"] == "currentReplicas"
    # What KEDA before 2.17 does, which passes `behavior` over: it must not be fewer.
    assert scaled["fallback"]["replicas"] == scaled["maxReplicaCount"]


def test_a_token_of_the_service_account_is_given_to_who_looks_secrets_up() -> None:
    """docs/secrets.md: log-in at Vault of a Kubernetes pod."""
    manifests = rendered("vault")
    accounts = {m["metadata"]["name"]: m for m in manifests if m["kind"] == "ServiceAccount"}
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())
    given = {pod.owner: pod for pod in pods(manifests) if not pod.owner.startswith("Pod/")}
    for owner, pod in given.items():
        (volume,) = [each for each in pod.spec["volumes"] if each["name"] == "service-account"]
        (source,) = volume["projected"]["sources"]
        assert source["serviceAccountToken"] == {"path": "token", "audience": "vault", "expirationSeconds": 3600}
        (mount,) = [each for each in container(pod)["volumeMounts"] if each["name"] == "service-account"]
        env = {entry["name"]: entry.get("value") for entry in container(pod)["env"]}
        assert env["VAULT_SERVICE_ACCOUNT_TOKEN"] == f"{mount['mountPath']}/token", owner
        assert env["VAULT_ROLE"] == "aerodrome"
        assert mount["readOnly"]
    # A hook runs before everything else, so that its account has to be there before it.
    job = given[f"Job/{NAME}-migrate"].spec["serviceAccountName"]
    assert int(accounts[job]["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
    assert given[f"CronJob/{NAME}-migrate-post"].spec["serviceAccountName"] == NAME
    assert node(manifests).spec["serviceAccountName"] == NAME
    settings = only(render(over(FLEET, VAULT)), "ConfigMap", NAME)["data"]["aerodrome.toml"]
    assert 'api_key = "vault:secret/aerodrome#model_key"' in settings
    for pod in pods(rendered("fleet")):
        assert not any(volume["name"] == "service-account" for volume in pod.spec.get("volumes", []))
