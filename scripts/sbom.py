"""Write the bill of materials of an installation: its Python packages, and the Copilot CLI that it fetches.

    python scripts/sbom.py --python /opt/aerodrome/bin/python --output sbom.cdx.json

CycloneDX, JSON. Needs cyclonedx-bom; `--python` is of the environment that is listed, with `aerodrome` in it.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Run by the other Python: which release of the CLI it is made for, and the checksum of the package by platform.
_ASK = """
import json
from aerodrome.runtime.release import PINNED, host_platform
print(json.dumps([PINNED.version, host_platform(), PINNED.integrity[host_platform()]]))
"""


def python_packages(python: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--output-reproducible",
        "--of",
        "JSON",
        str(python),
    ]
    listed = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    bill: dict[str, Any] = json.loads(listed.stdout)
    return bill


def copilot_cli(python: Path) -> dict[str, Any]:
    """The component, as it comes from npm."""
    asked = subprocess.run([python, "-c", _ASK], check=True, stdout=subprocess.PIPE)
    version, platform, integrity = json.loads(asked.stdout)
    algorithm, _, digest = integrity.partition("-")
    purl = f"pkg:npm/%40github/copilot-{platform}@{version}"
    return {
        "type": "application",
        "bom-ref": purl,
        "group": "@github",
        "name": f"copilot-{platform}",
        "version": version,
        "purl": purl,
        "hashes": [{"alg": algorithm.upper().replace("SHA", "SHA-"), "content": base64.b64decode(digest).hex()}],
    }


def bill_of_materials(python: Path) -> dict[str, Any]:
    bill = python_packages(python)
    bill["components"].append(copilot_cli(python))
    return bill


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the bill of materials of an installation.")
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.write_text(json.dumps(bill_of_materials(options.python), indent=2) + "\n")


if __name__ == "__main__":
    main()
