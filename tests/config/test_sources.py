"""Where each key stands in a TOML file, and how variables become settings."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.config.settings import Settings
from aerodrome.config.sources import key_lines, merge, read_environment, read_file, read_overrides
from aerodrome.errors import ConfigError

DOCUMENT = '''\
# a comment = 1
top = 1

[server] # the first table
http = "x"
"data dir" = """
not = "a key"
[nor a table]
"""
tenants = { acme = "user", other = { deep = true } }

[policy.inner."dotted.name"]
list = [
  # tools = "x"
  "[policy]",
  "b",
]
a.b . c = 5
[[many]]
x = 1
[[many]]
y = 2'''


def test_every_key_and_table_has_its_line() -> None:
    assert key_lines(DOCUMENT) == {
        ("top",): 2,
        ("server",): 4,
        ("server", "http"): 5,
        ("server", "data dir"): 6,
        ("server", "tenants"): 10,
        ("server", "tenants", "acme"): 10,
        ("server", "tenants", "other"): 10,
        ("server", "tenants", "other", "deep"): 10,
        ("policy",): 12,
        ("policy", "inner"): 12,
        ("policy", "inner", "dotted.name"): 12,
        ("policy", "inner", "dotted.name", "list"): 13,
        ("policy", "inner", "dotted.name", "a"): 18,
        ("policy", "inner", "dotted.name", "a", "b"): 18,
        ("policy", "inner", "dotted.name", "a", "b", "c"): 18,
        ("many",): 19,
        ("many", "x"): 20,
        ("many", "y"): 22,
    }


def test_lines_end_with_crlf_too(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(b'[server]\r\n\r\nhttp = "x"\r\n')
    assert read_file(file).origins[("server", "http")] == f"{file}:3"


KEYS = st.sampled_from(["a", "b", "c", '"d e"', "'f.g'"])
VALUES = st.sampled_from(
    [
        "1",
        '"x # y"',
        "'''\n[t]\nb = 1\n'''",
        '"""\n\\\n  a = 1"""',
        "[\n 1, # ]\n 2\n]",
        "{ a = 1 }",
        "1979-05-27T07:32:00Z",
    ]
)


@given(st.lists(st.tuples(KEYS, VALUES, st.integers(0, 2)), unique_by=lambda item: item[0]))
def test_line_of_any_key_in_any_layout(items: list[tuple[str, str, int]]) -> None:
    """Each statement is put where we know it, between blank lines and comments, and found there."""
    lines = ["[table]"]
    where = {}
    for key, value, gap in items:
        lines += ["# [no] = table", ""][:gap]
        where[next(iter(tomllib.loads(f"{key} = 1")))] = len(lines) + 1
        lines += f"{key} = {value}".split("\n")
    found = key_lines("\n".join(lines))
    assert {path[1]: line for path, line in found.items() if len(path) == 2} == where


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[server]\nhttp = "x\n', r"a\.toml:2: not valid TOML"),
        (b'[server]\nhttp = "x"\nhttp = "y"\n', r"a\.toml:3: not valid TOML"),
        (b"\xff", r"a\.toml: not UTF-8"),
    ],
)
def test_what_is_not_toml_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_file(file)


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        read_file(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("AERODROME_SERVER__HTTP", "x:1", {"server": {"http": "x:1"}}),
        ("AERODROME_policy__TOOLS", "a, b", {"policy": {"tools": ["a", "b"]}}),
        ("AERODROME_POLICY__TOOLS", '["a"]', {"policy": {"tools": ["a"]}}),
        ("AERODROME_POLICY__TOOLS", "", {"policy": {"tools": []}}),
        ("AERODROME_RUNTIME__ENV", '{"A": "b"}', {"runtime": {"env": {"A": "b"}}}),
        ("AERODROME_RUNTIME__ENV", '{A = "b"}', {"runtime": {"env": {"A": "b"}}}),
        ("AERODROME_RUNTIME__ENV__Mixed_Case", "b", {"runtime": {"env": {"Mixed_Case": "b"}}}),
        ("AERODROME_ISOLATION__TENANTS__acme", "user", {"isolation": {"tenants": {"acme": "user"}}}),
        (
            "AERODROME_PROVIDER__TENANTS__Acme__BASE_URL",
            "http://x",
            {"provider": {"tenants": {"Acme": {"base_url": "http://x"}}}},
        ),
        ("AERODROME_CACHE_DIR", "/x", {}),
        ("OTHER__HTTP", "x", {}),
    ],
)
def test_a_variable_is_a_setting(name: str, text: str, values: dict[str, Any]) -> None:
    assert read_environment({name: text}, Settings).values == values


@pytest.mark.parametrize(
    "name",
    [
        "AERODROME_SERVICE_HOST",
        "AERODROME_SERVICE_PORT",
        "AERODROME_SERVICE_PORT_HTTP",
        "AERODROME_PORT",
        "AERODROME_PORT_8080_TCP",
        "AERODROME_PORT_8080_TCP_ADDR",
        "AERODROME_HEADLESS_SERVICE_HOST",
        "AERODROME_HEADLESS_PORT_4321_TCP_PROTO",
    ],
)
def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_not_ours(name: str) -> None:
    assert read_environment({name: "tcp://10.0.0.1:8080"}, Settings).values == {}


def test_later_layers_win_key_by_key() -> None:
    low = read_overrides({"server.http": "a", "server.node_name": "n", "policy.tools": ["x"]})
    high = read_overrides({"server.http": "b", "policy.tools": ["y"], "server.data_dir": None})
    merged = merge([low, high])
    assert merged.values == {"server": {"http": "b", "node_name": "n"}, "policy": {"tools": ["y"]}}
    assert low.values["server"]["http"] == "a"


def test_a_table_that_is_set_whole_and_in_part_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"__WARM: runtime\.warm is set here, and runtime as a whole"):
        read_environment({"AERODROME_RUNTIME": "x", "AERODROME_RUNTIME__WARM": "1"}, Settings)
