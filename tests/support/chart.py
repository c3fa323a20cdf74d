"""The Helm chart, rendered by Helm's own library, and what Kubernetes would make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "aerodrome"
EXAMPLES = ROOT / "deploy" / "helm" / "examples"
#: Kinds that hold pods, with the way to the pod's template.
_TEMPLATES = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "Pod": (),
}

Manifest = dict[str, Any]


class Selected(NamedTuple):
    """A pod, as rules see it."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def ports(self) -> dict[str, int]:
        return {
            port["name"]: port["containerPort"]
            for container in self.spec["containers"]
            for port in container.get("ports", [])
        }


def example(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return values


def over(values: Mapping[str, Any], *more: Mapping[str, Any]) -> dict[str, Any]:
    """The values with others over them, key by key, as Helm merges files of values."""
    merged = dict(values)
    for layer in more:
        for key, value in layer.items():
            present = merged.get(key)
            merged[key] = over(present, value) if isinstance(present, dict) and isinstance(value, dict) else value
    return merged


def render(
    values: Mapping[str, Any] | None = None, *, upgrade: bool = False, name: str = "air", namespace: str = "prod"
) -> list[Manifest]:
    """All manifests of a release.

    Raises:
        helm_python.HelmError: The values do not fit the schema, or are refused.
    """
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(dict(values or {}))
        files = chart.render(dict(values or {}), name=name, namespace=namespace, is_upgrade=upgrade)
    manifests: list[Manifest] = []
    for name, text in files.items():
        if name.endswith(".yaml"):
            manifests += [document for document in yaml.load_all(text, Loader=_Strict) if document]
    return manifests


def only(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pods(manifests: list[Manifest]) -> Iterator[Selected]:
    for manifest in manifests:
        if (way := _TEMPLATES.get(manifest["kind"])) is None:
            continue
        template = manifest
        for key in way:
            template = template[key]
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        yield Selected(name, template["metadata"].get("labels", {}), template["spec"])


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector (`matchLabels`, `matchExpressions` with `In`) takes these labels; `{}` takes all."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def admits(manifests: list[Manifest], source: Mapping[str, str], target: Selected, port: str) -> bool:
    """Whether network policies let a pod of the same namespace with the labels `source` come to a port."""
    policies = [
        manifest
        for manifest in manifests
        if manifest["kind"] == "NetworkPolicy"
        and "Ingress" in manifest["spec"]["policyTypes"]
        and selects(manifest["spec"]["podSelector"], target.labels)
    ]
    if not policies:
        return True
    for rule in (rule for policy in policies for rule in policy["spec"].get("ingress", [])):
        if not any(entry["port"] in (port, target.ports[port]) for entry in rule["ports"]):
            continue
        peers = rule.get("from")
        if peers is None or any(
            "podSelector" in peer and "namespaceSelector" not in peer and selects(peer["podSelector"], source)
            for peer in peers
        ):
            return True
    return False


class _Strict(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML takes the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice: {keys}"
        return super().construct_mapping(node, deep)
