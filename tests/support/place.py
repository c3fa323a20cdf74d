"""Where the commands of a page for operators are typed: a directory with a configuration, beside which a node works."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from support.ports import free_port
from support.reader import reader_of


class Place:
    """Its node answers at ports that were free, and sends to the model at `model_url`."""

    def __init__(self, directory: Path, model_url: str) -> None:
        self.directory = directory
        self.env = reader_of(directory)
        http, gateway = free_port(), free_port()
        self._url = f"http://127.0.0.1:{http}/api/v1"
        self.server = (
            f'[server]\nhttp = "127.0.0.1:{http}"\ngateway = "127.0.0.1:{gateway}"\ndata_dir = "data"\n'
            'node_name = "a"\n[coordination]\nheartbeat = "200ms"\n'
        )
        self.provider = f'[provider]\ntype = "openai"\nbase_url = "{model_url}"\nmodel = "gpt-4.1"\n'

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text, encoding="utf-8")

    def aerodrome(self, *arguments: str) -> Any:
        """What it prints, decoded."""
        command = ["aerodrome", *arguments, "--json"]
        done = subprocess.run(command, cwd=self.directory, env=self.env, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def client(self, user: str) -> httpx.Client:
        """HTTP calls of this user of acme."""
        key = self.aerodrome("keys", "create", "--tenant", "acme", "--user", user)["key"]
        return httpx.Client(base_url=self._url, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def runtimes(self, wanted: Callable[[dict[str, Any]], bool], count: int = 1) -> list[dict[str, Any]]:
        """So many runtimes of this kind, as soon as the node has told of them."""
        deadline = time.monotonic() + 60.0
        while True:
            told = self.aerodrome("runtimes", "ls")
            if len(found := [each for each in told if wanted(each)]) == count:
                return found
            assert time.monotonic() < deadline, told
