"""What the chart renders is what Kubernetes takes, and what a node can be started with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml

from aerodrome.config import load_settings
from aerodrome.config.settings import Settings
from support.chart import CHART, EXAMPLES, ROOT, Manifest, Selected, admits, example, only, over, pods, render, selects
from support.console_page import blocks

_KNOWN = [each for each in dict.fromkeys(kubernetes_validate.utils.all_versions()) if each.split(".")[1] >= "27"]
#: The oldest that the chart is for, the newest that has schemas, and some in between.
VERSIONS = list(dict.fromkeys([*_KNOWN[::4], _KNOWN[-1]]))
NAME = "air-aerodrome"
FLEET = example("fleet")
#: Values by which nodes look secrets up in Vault, from the documentation.
VAULT = yaml.safe_load(
    next(
        "\n".join(block.lines)
        for block in blocks((ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8"))
        if block.language == "yaml" and any("vault:" in line for line in block.lines)
    )
)
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    **{path.stem: example(path.stem) for path in EXAMPLES.glob("*.yaml")},
    "ipv6": over(FLEET, {"ipFamily": "IPv6"}),
    "numbers for names": over(example("cli-servers"), {"cliServers": {"tenant": "007"}}),
    "sandbox": over(FLEET, {"sandboxes": {"enabled": True}}),
    "keda": over(FLEET, {"autoscaling": {"kind": "keda"}}),
    "csi": over(FLEET, {"secretFiles": {"csi": {"enabled": True, "secretProviderClass": "vault"}}}),
    # Without the reference itself, for which there would have to be a Vault.
    "vault": over(FLEET, {name: value for name, value in VAULT.items() if name != "config"}),
    "gateway api": over(
        FLEET,
        {
            "ingress": {"enabled": False},
            "gatewayApi": {
                "http": {"enabled": True, "parentRefs": [{"name": "edge"}], "hostnames": ["copilot.example"]},
                "tcp": {"enabled": True, "parentRefs": [{"name": "edge", "sectionName": "copilot"}]},
            },
        },
    ),
    "closed": over(FLEET, {"gateway": {"service": {"enabled": False}}}),
    "open": over(FLEET, {"networkPolicy": {"enabled": False}, "topologySpread": {"enabled": False}}),
    "quiet": over(
        FLEET,
        {
            "metrics": {
                "enabled": False,
                **{what: {"enabled": False} for what in ("serviceMonitor", "prometheusRule", "dashboards")},
            },
            "autoscaling": {"enabled": False},
        },
    ),
    "no hooks": over(FLEET, {"migrations": {"enabled": False}, "podDisruptionBudget": {"enabled": False}}),
    "claims": {"data": {"persistence": {"existingClaim": "conversations"}}},
    "everything said": over(
        FLEET,
        {
            "fullnameOverride": "copilot",
            "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["pull"]},
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "copilot", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
            "podLabels": {"team": "platform"},
            "podAnnotations": {"note": "yes"},
            "http": {"service": {"annotations": {"a": "b"}}},
            "podSecurity": {"seccompProfile": {"type": "Localhost", "localhostProfile": "copilot.json"}},
        },
    ),
}
#: What the kinds that Kubernetes does not come with require, of what the chart uses.
CUSTOM: dict[str, dict[str, Any]] = {
    "ServiceMonitor": {
        "required": ["selector", "endpoints"],
        "properties": {
            "jobLabel": {"type": "string"},
            "selector": {"required": ["matchLabels"]},
            "endpoints": {"minItems": 1},
        },
    },
    "PrometheusRule": {
        "required": ["groups"],
        "additionalProperties": False,
        "properties": {
            "groups": {
                "minItems": 1,
                "items": {
                    "required": ["name", "rules"],
                    "properties": {"rules": {"minItems": 1, "items": {"required": ["expr"]}}},
                },
            }
        },
    },
    "ScaledObject": {
        "required": ["scaleTargetRef", "triggers"],
        "properties": {
            "minReplicaCount": {"type": "integer"},
            "maxReplicaCount": {"type": "integer"},
            "fallback": {
                "required": ["failureThreshold", "replicas"],
                "properties": {
                    "behavior": {
                        "enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]
                    }
                },
            },
            # All values of a trigger are texts.
            "triggers": {"items": {"properties": {"metadata": {"additionalProperties": {"type": "string"}}}}},
        },
    },
    "HTTPRoute": {"required": ["parentRefs", "rules"]},
    "TCPRoute": {"required": ["parentRefs", "rules"]},
}


@cache
def rendered(case: str) -> list[Manifest]:
    return render(CASES[case])


def node(manifests: list[Manifest]) -> Selected:
    (found,) = [pod for pod in pods(manifests) if pod.labels.get("app.kubernetes.io/component") == "node"]
    return found


def container(pod: Selected) -> dict[str, Any]:
    (only_one,) = pod.spec["containers"]
    return dict(only_one)


def test_helm_finds_nothing_to_complain_of() -> None:
    result = helm_python.lint(CHART)
    assert [each for each in result["messages"] if each["severity"] > 1] == []
    assert result["errors"] == []


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_takes_it(case: str) -> None:
    for manifest in rendered(case):
        if manifest["kind"] in CUSTOM:
            jsonschema.validate(manifest["spec"], CUSTOM[manifest["kind"]])
            continue
        for version in VERSIONS:
            validate(json.dumps(manifest, sort_keys=True), version)


@cache
def validate(manifest: str, version: str) -> None:
    """Most of what one case renders is what the others do, too."""
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def test_a_manifest_that_kubernetes_does_not_take_is_found() -> None:
    manifest = only(render(FLEET), "Deployment", NAME)
    manifest["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        validate(json.dumps(manifest), VERSIONS[0])


# --- the node ---


@pytest.mark.parametrize("case", CASES)
def test_a_node_can_be_started_with_its_settings(case: str, tmp_path: Path) -> None:
    manifests = rendered(case)
    pod = node(manifests)
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    text = only(manifests, "ConfigMap", volumes["config"]["configMap"]["name"])["data"]["aerodrome.toml"]
    # Kubernetes mounts a file for each key of the Secrets; those that the chart names are checked to be there.
    mounted = tmp_path / "secrets"
    mounted.mkdir()
    for name in ("state-url", "tables-url"):
        (mounted / name).write_text("postgresql://aerodrome:s3cret@db.example/aerodrome")
    (mounted / "coordination-url").write_text("redis://:s3cret@redis.example:6379/0")
    (mounted / "provider-key").write_text("key")
    (mounted / "cli-token").write_text("token")
    config = tmp_path / "aerodrome.toml"
    config.write_text(text.replace("/etc/aerodrome/secrets", str(mounted)))
    address = "fd00::7" if case == "ipv6" else "10.1.2.3"
    env = environment(container(pod), {"metadata.name": "air-aerodrome-5d9-x", "status.podIP": address})
    settings = load_settings(config, env=env)
    assert settings.server.node_name == "air-aerodrome-5d9-x"
    assert settings.server.advertise == (address, pod.ports["gateway"])
    assert settings.server.http.port == pod.ports["http"]
    assert settings.server.gateway.port == pod.ports["gateway"]
    assert settings.server.http.host == settings.server.gateway.host == ("::" if case == "ipv6" else "0.0.0.0")
    mounts = {mount["mountPath"]: mount["name"] for mount in container(pod)["volumeMounts"]}
    assert mounts[str(settings.server.data_dir)] == "data"
    # Whatever a drain may take, and what comes before and behind it.
    drain = settings.server.drain_timeout + 2 * settings.runtime.stop_timeout
    (stop,) = [container(pod)["lifecycle"]["preStop"]["exec"]["command"]]
    assert pod.spec["terminationGracePeriodSeconds"] >= int(stop[1]) + drain + 5


def environment(container: dict[str, Any], fields: dict[str, str]) -> dict[str, str]:
    """The variables that Kubernetes gives a container, with `$(NAME)` of earlier ones replaced."""
    env: dict[str, str] = {}
    for entry in container["env"]:
        value = entry.get("value") or fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for name, known in env.items():
            value = value.replace(f"$({name})", known)
        env[entry["name"]] = value
    return env


@pytest.mark.parametrize("case", CASES)
def test_every_secret_that_the_settings_name_is_mounted(case: str) -> None:
    manifests = rendered(case)
    for pod in pods(manifests):
        for volume in pod.spec.get("volumes", []):
            if volume["name"] == "config" and "configMap" in volume:
                text = only(manifests, "ConfigMap", volume["configMap"]["name"])["data"]["aerodrome.toml"]
                wanted = {line.split("/")[-1].strip('"}]') for line in text.splitlines() if "/secrets/" in line}
                parts = [v["projected"] for v in pod.spec["volumes"] if v["name"] == "secrets"]
                sources = [each["secret"] for part in parts for each in part["sources"]]
                exact = {item["path"] for source in sources for item in source.get("items", [])}
                assert wanted <= exact or any("items" not in source for source in sources), pod.owner
                for source in sources:
                    if source["name"] == f"{NAME}-stores":
                        keys = only(manifests, "Secret", source["name"])["stringData"]
                        assert {item["key"] for item in source["items"]} <= set(keys)


def test_settings_of_every_kind_arrive_as_they_were_written(tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "runtime": {"env": {"A_B": 'a "quoted" \\ text & <more>', "dotted.name": "é\n2"}, "warm": 0},
        "isolation": {"default": "user", "tenants": {"a.b": "user"}},
        "policy": {"tools": ["ask_user", "task"], "host_tools": [], "allow_unsandboxed": False},
        "sessions": {"turn_timeout": "1h", "max_queued": 5},
        "limits": {"max_turns": 1000000, "turns_per_minute": None},
    }
    text = only(render({"config": said}), "ConfigMap", NAME)["data"]["aerodrome.toml"]
    config = tmp_path / "aerodrome.toml"
    config.write_text(text)
    settings = load_settings(config, env={})
    assert settings.runtime.env == said["runtime"]["env"]
    assert settings.runtime.warm == 0
    assert settings.isolation.tenants == {"a.b": "user"}
    assert settings.policy.tools == ["ask_user", "task"]
    assert settings.limits.max_turns == 1000000
    assert settings.sessions.turn_timeout == 3600


def test_a_change_of_settings_replaces_the_nodes() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = only(render(values), "Deployment", NAME)["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum(FLEET) == checksum(FLEET)
    assert checksum(FLEET) != checksum(over(FLEET, {"config": {"runtime": {"warm": 5}}}))


def test_a_node_goes_when_its_successor_takes_work() -> None:
    spec = only(rendered("fleet"), "Deployment", NAME)["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "replicas" not in spec, "an autoscaler and the chart would both say how many"
    probes = container(node(rendered("fleet")))
    assert probes["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert probes["livenessProbe"]["httpGet"]["path"] == "/health"
    # Killed only long after load balancers have passed it over.
    assert probes["livenessProbe"]["failureThreshold"] * probes["livenessProbe"]["periodSeconds"] > 30


# --- trap 17, and what the chart refuses ---


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(helm_python.HelmError) as error:
        render(values)
    return str(error.value)


def test_trap_17_replicas_share_no_read_write_once_volume() -> None:
    assert "stores that they share" in refused({"replicas": 3})
    assert "cannot share a volume" in refused(over(FLEET, {"data": {"persistence": {"enabled": True}}}))
    claims = [m for m in rendered("cli-servers") if m["kind"] == "PersistentVolumeClaim"]
    assert [claim["spec"]["accessModes"] for claim in claims] == [["ReadWriteMany"]]
    for manifest in rendered("fleet"):
        assert manifest["kind"] != "PersistentVolumeClaim"


def test_trap_17_probes_drain_and_disruption_budget() -> None:
    manifests = rendered("fleet")
    for pod in pods(manifests):
        if pod.owner.startswith("Deployment/"):
            assert {"startupProbe", "readinessProbe", "lifecycle"} <= set(container(pod)), pod.owner
    budget = only(manifests, "PodDisruptionBudget", NAME)["spec"]
    assert budget["maxUnavailable"] == 1
    assert selects(budget["selector"], node(manifests).labels)


def test_trap_17_no_cli_server_without_a_token() -> None:
    assert "tokenSecret" in refused(over(example("cli-servers"), {"cliServers": {"tokenSecret": ""}}))
    assert "cliServers.tenant" in refused(over(example("cli-servers"), {"cliServers": {"tenant": ""}}))
    assert "cliServers" in refused(over(example("cli-servers"), {"cliServers": {"tenant": "../globex"}}))
    (cli,) = [pod for pod in pods(rendered("cli-servers")) if pod.owner.endswith("-cli")]
    # A server may see what it serves, and only what makes its directory sees more.
    assert [m.get("subPath") for m in container(cli)["volumeMounts"] if m["name"] == "sessions"] == ["acme"]
    tokens = [entry for entry in container(cli)["env"] if entry["name"] == "COPILOT_CONNECTION_TOKEN"]
    assert tokens[0]["valueFrom"]["secretKeyRef"] == {"name": "copilot-token", "key": "token"}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"replica": 3}, "replica"),
        ({"replicas": 0}, "replicas"),
        ({"config": {"runtime": 3}}, "runtime"),
        ({"config": {"server": {"http": "0.0.0.0:1"}}}, "config.server is the chart's own"),
        ({"config": {"coordination": {"url": "memory"}}}, "memory is for tests"),
        ({"data": {"persistence": {"enabled": False}}}, "would go with the pod"),
        ({"valkey": {"enabled": True}, "config": {"coordination": {"url": "redis://x"}}}, "both set"),
        ({"secretFiles": {"csi": {"enabled": True}}}, "secretProviderClass"),
        (over(FLEET, {"metrics": {"enabled": False}}), "nothing to go by"),
        ({"podSecurity": {"runAsUser": 0}}, "runAsUser"),
        ({"drain": {"marginSeconds": 1}}, "marginSeconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(values: dict[str, Any], why: str) -> None:
    assert why in refused(values)


# --- security ---


@pytest.mark.parametrize("case", CASES)
def test_pods_have_no_rights_that_they_do_not_need(case: str) -> None:
    for pod in pods(rendered(case)):
        assert pod.spec["automountServiceAccountToken"] is False, pod.owner
        assert pod.spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        # What sandboxes inside need, and nodes alone.
        sandboxes = case == "sandbox" and pod.labels.get("app.kubernetes.io/component") == "node"
        assert (security["seccompProfile"]["type"] == "Unconfined") is sandboxes
        assert (pod.spec.get("hostUsers") is False) is sandboxes
        for each in [*pod.spec.get("initContainers", []), *pod.spec["containers"]]:
            assert each["securityContext"] == {
                **({"procMount": "Unmasked"} if sandboxes else {}),
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, pod.owner
            assert each["resources"]["limits"]["memory"]
            for entry in each.get("env", []):
                secret = any(word in f"_{entry['name']}_" for word in ("TOKEN", "PASSWORD", "_KEY_"))
                assert not secret or "valueFrom" in entry or entry["value"].startswith("/"), entry
    roles = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
    assert not roles & {manifest["kind"] for manifest in rendered(case)}


@pytest.mark.parametrize("case", CASES)
def test_nothing_secret_is_in_a_config_map(case: str) -> None:
    passwords = [m["stringData"]["password"] for m in rendered(case) if m["kind"] == "Secret"]
    for manifest in rendered(case):
        if manifest["kind"] != "Secret":
            assert not any(password in yaml.safe_dump(manifest) for password in passwords)


def test_who_reaches_what() -> None:
    stranger = {"app": "something"}
    every = rendered("cli-servers") + render(over(example("trial"), {"fullnameOverride": "other"}))
    targets = {pod.owner: pod for pod in pods(every)}
    a_node = targets[f"Deployment/{NAME}"]
    # Only nodes reach runtimes that are servers of their own, and stores.
    cli = targets[f"Deployment/{NAME}-cli"]
    assert admits(every, a_node.labels, cli, "cli")
    assert not admits(every, stranger, cli, "cli")
    assert not admits(every, cli.labels, cli, "cli")
    for store in ("valkey", "postgresql"):
        target = targets[f"StatefulSet/other-{store}"]
        assert admits(every, targets["Deployment/other"].labels, target, store)
        assert admits(every, targets["Job/other-migrate"].labels, target, store)
        assert not admits(every, stranger, target, store)
    # Where no SDK clients are wanted, only nodes reach the port between nodes.
    closed = rendered("closed")
    assert admits(closed, node(closed).labels, node(closed), "gateway")
    assert not admits(closed, stranger, node(closed), "gateway")
    assert not any(m["kind"] == "Service" and "gateway" in m["metadata"]["name"] for m in closed)
    # `fleet` names who may come.
    fleet = rendered("fleet")
    assert not admits(fleet, stranger, node(fleet), "http")
    (test,) = [pod for pod in pods(fleet) if pod.owner.startswith("Pod/")]
    assert admits(fleet, test.labels, node(fleet), "http")
    assert admits(rendered("defaults"), stranger, node(rendered("defaults")), "http")


# --- what belongs together ---


@pytest.mark.parametrize("case", CASES)
def test_what_selects_selects_the_right_pods(case: str) -> None:
    manifests = rendered(case)
    every = list(pods(manifests))
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Service":
            targets = [pod for pod in every if selects({"matchLabels": spec["selector"]}, pod.labels)]
            assert len(targets) == 1, manifest["metadata"]["name"]
            assert {port["targetPort"] for port in spec["ports"]} <= set(targets[0].ports)
        elif manifest["kind"] in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
            assert len([pod for pod in every if selects(spec["selector"], pod.labels)]) == 1
        elif manifest["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            assert only(manifests, "Deployment", spec["scaleTargetRef"]["name"])
        elif manifest["kind"] == "ServiceMonitor":
            found = [
                each
                for each in manifests
                if each["kind"] == "Service" and selects(spec["selector"], each["metadata"]["labels"])
            ]
            assert len(found) == 1
            assert {port["name"] for port in found[0]["spec"]["ports"]} >= {each["port"] for each in spec["endpoints"]}


def test_tables_are_made_before_the_first_node_and_before_an_upgrade() -> None:
    job = only(rendered("fleet"), "Job", f"{NAME}-migrate")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (migrate,) = job["spec"]["template"]["spec"]["containers"]
    assert migrate["args"][0] == "migrate"
    # Its settings are there before it is.
    settings = only(rendered("fleet"), "ConfigMap", f"{NAME}-migrate")
    assert int(settings["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
    assert settings["data"] == only(rendered("fleet"), "ConfigMap", NAME)["data"]
    # With a PostgreSQL of the release's own there is nothing to ask before the installation.
    trial = only(rendered("trial"), "Job", f"{NAME}-migrate")
    assert trial["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"


def test_the_second_phase_runs_when_somebody_says_so() -> None:
    job = only(rendered("fleet"), "CronJob", f"{NAME}-migrate-post")
    assert job["spec"]["suspend"] is True
    (migrate,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert migrate["args"][:2] == ["migrate", "--post"]


def test_sections_of_the_settings_are_all_that_config_may_have() -> None:
    """A new one belongs into `propertyNames` of `config` in values.schema.json."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["config"]["propertyNames"]["enum"]) == set(Settings.model_fields)
    assert "nonsense" in refused({"config": {"nonsense": {}}})
    assert render({"config": {"sessions": {}}})
