"""The stand-ins of `support.outside` refuse what the real tools could not use: a page that is wrong is found."""

from __future__ import annotations

import contextlib
import copy
import shlex
from collections.abc import Callable

import pytest

from support.chart import ROOT
from support.outside import clone, containers, kubernetes, machine, systemd
from support.outside.world import Refused, World, script_in

Tool = Callable[[World, list[str]], int | None]
TOOLS: dict[str, Tool] = {
    "aerodrome": clone.aerodrome,
    "az": containers.az,
    "chgrp": machine.chgrp,
    "curl": machine.curl,
    "docker": containers.docker,
    "helm": kubernetes.helm,
    "install": machine.install,
    "kubectl": kubernetes.kubectl,
    "pytest": clone.pytest,
    "python": clone.venv_python,
    "runuser": machine.runuser,
    "systemctl": systemd.systemctl,
    "useradd": machine.useradd,
}
SECRET = "kubectl --namespace copilot create secret generic aerodrome"
COORDINATION = "--from-literal=coordination-url=rediss://redis.example"
COMPOSE = "docker compose --file deploy/compose/compose.yaml"
AZURE = "deploy/azure/container-apps"
DEPLOYMENT = (
    f"az deployment group create --resource-group copilot --template-file {AZURE}.bicep"
    f" --parameters @{AZURE}.parameters.json"
)
HELM = "helm upgrade --install aerodrome deploy/helm/aerodrome --namespace copilot --values deploy/helm/examples"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> World:
    """In which the commands of the pages have been given that come before."""
    root = tmp_path_factory.mktemp("root")
    units = root / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    (units / "aerodrome.service").write_text((ROOT / "deploy" / "systemd" / "aerodrome.service").read_text())
    (root / "opt" / "aerodrome" / "bin").mkdir(parents=True)
    (root / "opt" / "aerodrome" / "bin" / "aerodrome").touch(0o755)
    made = World(root)
    for line in (
        "useradd --system --home-dir /x --shell /x aerodrome",
        "install -d -m 0750 -g aerodrome /etc/aerodrome",
        "install -m 0600 /dev/null /etc/aerodrome/aerodrome.toml",
        "install -m 0600 /dev/null /etc/aerodrome/secrets.env",
        "systemctl daemon-reload",
        "docker build --file deploy/docker/Dockerfile --tag image .",
        "az group create --name copilot --location here",
        DEPLOYMENT,
        "kubectl create namespace copilot",
        f"{SECRET} --from-literal=state-url=postgresql://db.example/a --from-literal=provider-key=KEY {COORDINATION}",
        f"{HELM}/fleet.yaml",
    ):
        with contextlib.chdir(ROOT):
            give(made, line)
    return made


@pytest.fixture
def world(begun: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(begun, "state", copy.deepcopy(begun.state))
    return begun


def give(world: World, line: str) -> None:
    tool, *arguments = shlex.split(script_in(world.root, line))
    TOOLS[tool](world, arguments)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("chgrp aerodrom /etc/aerodrome", "no users 'aerodrom'"),
        ("runuser -u other -- true", "no users 'other'"),
        ("runuser -u aerodrome -- cat /etc/aerodrome/aerodrome.toml", "may not use /etc/aerodrome/aerodrome.toml"),
        ("runuser -u aerodrome -- env DIR=/etc/aerodrome true", "may not use /etc/aerodrome"),
        ("systemctl enable --now aerodrome.service", "aerodrome may not read /etc/aerodrome/aerodrome.toml"),
        ("systemctl enable aerodrome-http.socket", "no loaded 'aerodrome-http.socket'"),
        ("systemctl restart aerodrome", "no enabled 'aerodrome.service'"),
        ("curl --fail http://127.0.0.1:8083/ready", "no addresses '127.0.0.1:8083'"),
        ("curl --fail http://10.0.0.7/api/v1/admin/nodes/a/drain", "no route GET /api/v1/admin/nodes/a/drain"),
        ("docker build --file deploy/docker/Dockerfile --tag image docs", "is not in docs"),
        ("docker run --rm other --version", "no images 'other'"),
        ("docker run --rm --entrypoint cat image /opt/sbom.json", "the image has no /opt/sbom.json"),
        (f"{COMPOSE} up", "store-password is not there"),
        ("az containerapp delete --resource-group copilot --name aerodrome-a-9 --yes", "no apps 'aerodrome-a-9'"),
        (
            f"{DEPLOYMENT} --parameters image=other",
            "aerodrome-a-1 would be updated in its place",
        ),
        ("az container delete --resource-group copilot --name aerodrome-1 --yes", "no containers 'aerodrome-1'"),
        ("kubectl exec deploy/aerodrome -- aerodrome --version", "in which namespace"),
        ("kubectl --namespace prod exec deploy/aerodrome -- aerodrome --version", "no namespaces 'prod'"),
        ("kubectl --namespace copilot exec deploy/air -- aerodrome --version", "no deploy air"),
        ("kubectl --namespace copilot exec deploy/aerodrome -- sh", "sh is not on the path"),
        (
            "kubectl --namespace copilot exec deploy/aerodrome -- aerodrome keys ls --config /etc/aerodrome/a.toml",
            "/etc/aerodrome/a.toml is not in the container",
        ),
        ("kubectl --namespace copilot create job --from=cronjob/aerodrome-late a", "no cronjob aerodrome-late"),
        (f"{HELM}/fleet.yaml --set secretFiles.existing={{other}}", "no secrets 'other'"),
        ("helm test other --namespace copilot", "no releases 'other'"),
        ("pytest tests/sessions -k nonsense", "no test 'nonsense' in tests/sessions"),
        ("pytest tests/nowhere", "no test '' in tests/nowhere"),
        ("python scripts/nowhere.py", "scripts/nowhere.py is not there"),
        ("python -m nowhere", "there is no module nowhere"),
    ],
)
def test_what_is_wrong_is_refused(world: World, line: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        give(world, line)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("literal", "said"),
    [
        ("provider=KEY", "no secret has the key provider-key"),
        ("provider-key=rediss://redis.example:6380", "lets no node get to port 6380"),
    ],
)
def test_secrets_that_do_not_fit_the_values_are_refused(world: World, literal: str, said: str) -> None:
    world.state["secrets"]["aerodrome"].pop("provider-key")
    name, value = literal.split("=")
    world.state["secrets"]["aerodrome"][name] = value
    with pytest.raises(Refused, match=said):
        give(world, f"{HELM}/fleet.yaml")


@pytest.mark.parametrize(
    "line",
    [
        "useradd --sytem a",
        f"{COMPOSE} up --detached",
        "kubectl get pods",
        "az container exec --resource-group copilot",
        f"{HELM}/fleet.yaml --atomic",
    ],
)
def test_options_that_the_pages_do_not_have_are_not_known(
    world: World, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, KeyError)):
        give(world, line)


def test_a_benchmark_that_does_not_exist_is_refused(world: World) -> None:
    give(world, "aerodrome bench --only turn --quick")
    with pytest.raises(Exception, match="'turns' is not one of"):
        give(world, "aerodrome bench --only turns")


def test_a_value_that_the_chart_does_not_have_is_refused(world: World) -> None:
    with pytest.raises(Exception, match="repositori"):
        give(world, f"{HELM}/fleet.yaml --set image.repositori=x")
