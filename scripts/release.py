"""Make a release, and try it: `make release` (CONTRIBUTING.md, "A release").

Builds the sdist, and from it the wheel, and checks that they have what they should; packs the chart; runs `aerodrome
demo` from the wheel in an empty environment; writes a bill of materials and checksums. All of it is in `dist/` then.
Nothing is published.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import helm_python
import yaml

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
#: What other files call the version, beside the package, which is where it is kept.
_COPIES = {
    "deploy/azure/container-instance.yaml": re.compile(r"/aerodrome:(\S+)"),
    "deploy/azure/container-apps.parameters.json": re.compile(r'/aerodrome:([^"]+)"'),
}


def version() -> str:
    match = _VERSION.search((ROOT / "src/aerodrome/__init__.py").read_text(encoding="utf-8"))
    assert match is not None
    return match[1]


def problems(released: str, *, rehearsal: bool) -> Iterator[str]:
    """What is said differently elsewhere.

    Args:
        rehearsal: The changelog may say that the version is not released yet.
    """
    yield from changelog_problems((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), released, rehearsal=rehearsal)
    chart = yaml.safe_load((ROOT / "deploy/helm/aerodrome/Chart.yaml").read_text(encoding="utf-8"))
    for key in ("version", "appVersion"):
        if chart[key] != released:
            yield f"deploy/helm/aerodrome/Chart.yaml: {key} is {chart[key]}, not {released}"
    for name, pattern in _COPIES.items():
        for found in pattern.findall((ROOT / name).read_text(encoding="utf-8")):
            if found != released:
                yield f"{name}: names {found}, not {released}"


def changelog_problems(text: str, released: str, *, rehearsal: bool) -> Iterator[str]:
    heading = re.search(rf"^## \[{re.escape(released)}\](.*)$", text, re.MULTILINE)
    if heading is None:
        yield f"CHANGELOG.md: has no heading for {released}"
        return
    body = text[heading.end() :].partition("\n## [")[0]
    if not re.search(r"^- ", body, re.MULTILINE):
        yield f"CHANGELOG.md: says nothing of {released}"
    if not rehearsal and not re.fullmatch(r" - \d{4}-\d\d-\d\d", heading[1]):
        yield f"CHANGELOG.md: the heading of {released} has no date, as in: ## [{released}] - 2026-01-31"


def wheel_problems(names: Iterable[str], released: str) -> Iterator[str]:
    """What is in the wheel and should not be, and the other way round."""
    source = ROOT / "src"
    wanted = {
        path.relative_to(source).as_posix()
        for path in (source / "aerodrome").rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    info = f"aerodrome-{released}.dist-info"
    wanted |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    found = {name for name in names if not name.endswith("/")}
    yield from (f"the wheel lacks {name}" for name in sorted(wanted - found))
    yield from (f"the wheel has {name}" for name in sorted(found - wanted))


def build(released: str, target: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made of it."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)]
    # The same source makes the same files, whenever it is.
    stamp = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": stamp.stdout.strip() or "315532800"})
    return target / f"aerodrome-{released}.tar.gz", target / f"aerodrome-{released}-py3-none-any.whl"


def try_out(wheel: Path, directory: Path) -> Path:
    """Run the demo from the wheel, as somebody would who has nothing else; returns that environment's Python."""
    environment = directory / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    command = str(environment / "bin" / "aerodrome")
    empty = directory / "empty"
    empty.mkdir()
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AERODROME_", "VIRTUAL_"))
    }
    for each in (
        [*pip, "install", "--quiet", f"{wheel}[sdk,redis,postgresql]"],
        [*pip, "check"],
        [command, "--version"],
        [command, "runtime", "install"],
        [command, "demo"],
    ):
        subprocess.run(each, check=True, cwd=empty, env=clean)
    return python


def write_checksums(target: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(target.iterdir())
        if path.name != "SHA256SUMS"
    ]
    (target / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a release and try it.")
    parser.add_argument(
        "--rehearsal", action="store_true", help="For a version that the changelog has no date for yet."
    )
    options = parser.parse_args()
    released = version()
    complain(problems(released, rehearsal=options.rehearsal))
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    if changed.stdout and not options.rehearsal:
        complain([f"not committed: {line}" for line in changed.stdout.splitlines()])
    shutil.rmtree(DIST, ignore_errors=True)
    sdist, wheel = build(released, DIST)
    with zipfile.ZipFile(wheel) as archive:
        complain(wheel_problems(archive.namelist(), released))
    with tarfile.open(sdist) as archive:
        print(f"release: {sdist.name} has {len(archive.getnames())} files")
    helm_python.package(ROOT / "deploy" / "helm" / "aerodrome", destination=DIST)
    with tempfile.TemporaryDirectory(prefix="aerodrome-release-") as name:
        python = try_out(wheel, Path(name))
        output = DIST / f"aerodrome-{released}.cdx.json"
        bill = [sys.executable, str(ROOT / "scripts/sbom.py"), "--python", str(python), "--output", str(output)]
        subprocess.run(bill, check=True)
    write_checksums(DIST)
    print(f"release: {released} is in {DIST.name}/:")
    for path in sorted(DIST.iterdir()):
        print(f"  {path.stat().st_size:>10}  {path.name}")


def complain(found: Iterable[str]) -> None:
    listed = list(found)
    if listed:
        raise SystemExit("release: " + "\nrelease: ".join(listed))


if __name__ == "__main__":
    main()
