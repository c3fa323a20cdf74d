"""Loading: precedence, and what is said about a wrong configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from aerodrome.config import Settings, find_config, load_settings
from aerodrome.config.provider_settings import reveal
from aerodrome.errors import ConfigError
from aerodrome.model import ISOLATED_TOOLS, Isolation, OnBusy, Profile


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def problems(text: str, env: dict[str, str] | None = None, **overrides: object) -> list[str]:
    """What is wrong with a file of this text, its name left out of each line."""
    file = write(Path("t.toml"), text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {key.replace("__", "."): value for key, value in overrides.items()}, env=env or {})
    found = caught.value.extra["problems"]
    assert all(line in caught.value.detail for line in found)
    return list(found)


def test_nothing_is_needed(tmp_path: Path) -> None:
    settings = load_settings(env={})
    assert settings.server.http == ("127.0.0.1", 8080)
    assert settings.server.data_dir == tmp_path / "data" / "aerodrome"
    assert settings.sessions.on_busy is OnBusy.ENQUEUE
    assert settings.sessions.ttl == 30 * 86400
    assert settings == Settings()


def test_flags_over_variables_over_file() -> None:
    file = write(Path("t.toml"), '[server]\nhttp = "127.0.0.1:1"\nnode_name = "file"\ndrain_timeout = "5s"\n')
    env = {"AERODROME_SERVER__HTTP": "127.0.0.1:2", "AERODROME_SERVER__NODE_NAME": "variable"}
    settings = load_settings(file, {"server.http": "127.0.0.1:3", "server.node_name": None}, env=env)
    assert settings.server.http.port == 3
    assert settings.server.node_name == "variable"
    assert settings.server.drain_timeout == 5


def test_the_file_is_the_one_asked_for_then_the_local_then_the_users_own(tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert find_config(env=env) is None
    own = write(tmp_path / "config" / "aerodrome" / "aerodrome.toml", "")
    assert find_config(env=env) == own
    local = write(Path("aerodrome.toml"), "")
    assert find_config(env=env) == local
    asked = write(Path("other.toml"), "")
    assert find_config("other.toml", env=env) == asked
    with pytest.raises(ConfigError, match=r"missing\.toml: there is no such file; `aerodrome init missing.toml`"):
        load_settings("missing.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[server]\nhtpp = "x"', 't.toml:2: there is no setting "htpp" in server; did you mean "http"?'),
        ("[sevrer]\na = 1", 't.toml:1: there is no section "sevrer"; did you mean "server"?'),
        (
            '\n[server]\nkey_cache = "3m"',
            't.toml:3: there is no setting "key_cache" in server; did you mean "auth.key_cache"?',
        ),
        ("max_turns = 5", 't.toml:1: there is no section "max_turns"; did you mean "limits.max_turns"?'),
        (
            "[auth]\nzzz = 1",
            't.toml:2: there is no setting "zzz" in auth; expected one of key_cache',
        ),
        (
            '[isolation]\ndefault = "tenat"',
            't.toml:2: isolation.default = "tenat": expected "user" or "tenant"; did you mean "tenant"?',
        ),
        (
            '[isolation]\ntenants = { acme = "usr" }',
            't.toml:2: isolation.tenants.acme = "usr": expected "user" or "tenant"; did you mean "user"?',
        ),
        (
            '[server]\nhttp = "8080"',
            't.toml:2: server.http = "8080": expected HOST:PORT, such as "127.0.0.1:8080" or "[::1]:8080"',
        ),
        (
            '[sessions]\nttl = "5 parsecs"',
            't.toml:2: sessions.ttl = "5 parsecs": expected a duration such as "500ms", "30s", "1h30m" or "30d"',
        ),
        (
            '[limits]\nmax_body = "big"',
            't.toml:2: limits.max_body = "big": expected a size such as "512KiB", "64MiB" or "1.5GB"',
        ),
        ('[runtime]\nwarm = "x"', 't.toml:2: runtime.warm = "x": expected a whole number'),
        ("[runtime]\nwarm = -1", "t.toml:2: runtime.warm = -1: expected greater than or equal to 0"),
        ("runtime = 5", "t.toml:1: runtime = 5: expected a table"),
        (
            '[coordination]\nurl = "mysql://me:secret@h"',
            (
                't.toml:2: coordination.url = "mysql://me:***@h": expected "sqlite", "memory", "redis://HOST" '
                '(or rediss, unix, redis+sentinel, redis+cluster) or "postgresql://USER@HOST/DATABASE"'
            ),
        ),
        (
            '[coordination]\nurl = "redis+sentinel://me:secret@a,b"',
            (
                't.toml:2: coordination.url = "redis+sentinel://me:***@a,b": '
                "expected the name of the primary after the hosts: redis+sentinel://HOST/mymaster"
            ),
        ),
        (
            '[coordination]\nkey_prefix = "a{b}"',
            't.toml:2: coordination.key_prefix = "a{b}": expected up to 60 letters, digits or any of . _ -',
        ),
        (
            '[state]\nurl = "volume:x"',
            't.toml:2: state.url = "volume:x": expected the absolute path of the mounted volume, volume:/PATH',
        ),
        (
            '[state]\nurl = "redis://:secret@h"',
            (
                't.toml:2: state.url = "redis://:***@h": redis stores forget; '
                'expected "sqlite", "postgresql://USER@HOST/DATABASE" or "volume:/PATH"'
            ),
        ),
        (
            '[state]\nurl = "postgresql:x"',
            (
                't.toml:2: state.url = "postgresql:x": '
                'expected an address such as "postgresql://aerodrome@db.example/aerodrome?sslmode=verify-full"'
            ),
        ),
        (
            '[state]\ndatabase_schema = "pg_mine"',
            (
                't.toml:2: state.database_schema = "pg_mine": '
                "expected up to 63 small letters, digits and _, the first no digit"
            ),
        ),
        (
            '[coordination]\nheartbeat = "2s"\nttl = "5s"',
            't.toml:3: coordination.ttl = "5s": expected at least three times coordination.heartbeat',
        ),
        (
            '[coordination]\nheartbeat = "9s"',
            "t.toml:1: coordination.ttl: expected at least three times coordination.heartbeat",
        ),
        (
            '[provider]\ntype = "openai"',
            't.toml:1: provider.base_url: expected a value: the provider type "openai" needs one',
        ),
        (
            '[provider]\nbase_url = "http://h"',
            (
                't.toml:2: provider.base_url = "http://h": not used by the provider type "github"; '
                "expected type openai, azure or anthropic"
            ),
        ),
        (
            '[provider.tenants.acme]\ntype = "azure"',
            't.toml:1: provider.tenants.acme.base_url: expected a value: the provider type "azure" needs one',
        ),
        (
            '[provider]\ntype = "openai"\nbase_url = "h"',
            't.toml:3: provider.base_url = "h": expected an address such as "https://models.example/v1"',
        ),
        (
            '[policy]\nhost_tools = [\n"bash", "a b"]',
            't.toml:2: policy.host_tools[1] = "a b": expected the name of a built-in tool: letters, digits, _ and -',
        ),
        (
            "[runtime.recycle]\ndrift = 0.9",
            "t.toml:2: runtime.recycle.drift = 0.9: expected 0, or more than 1: so many times slower than in its youth",
        ),
    ],
)
def test_a_wrong_setting_is_told_with_place_value_and_what_is_meant(text: str, expected: str) -> None:
    assert problems(text) == [expected]


def test_every_problem_is_told_at_once() -> None:
    found = problems(
        '[server]\nhtpp = "x"\n[runtime]\nwarm = "x"\n[sessions]\non_disconnect = "cancle"\n',
        {"AERODROME_SEVER__HTTP": "1", "AERODROME_RUNTIME__MAX_SESSIONS": "many"},
        telemetry__log_format="jso",
    )
    assert sorted(found) == [
        'AERODROME_RUNTIME__MAX_SESSIONS: runtime.max_sessions = "many": expected a whole number',
        'AERODROME_SEVER__HTTP: there is no section "sever"; did you mean "server"? (AERODROME_SERVER__HTTP)',
        'command line: telemetry.log_format = "jso": expected "auto", "json" or "console"; did you mean "json"?',
        't.toml:2: there is no setting "htpp" in server; did you mean "http"?',
        't.toml:4: runtime.warm = "x": expected a whole number',
        't.toml:6: sessions.on_disconnect = "cancle": expected "continue" or "cancel"; did you mean "cancel"?',
    ]


def test_the_place_is_that_of_the_value_that_won() -> None:
    assert problems("[runtime]\nwarm = 1\n", {"AERODROME_RUNTIME__WARM": "x"}) == [
        'AERODROME_RUNTIME__WARM: runtime.warm = "x": expected a whole number'
    ]


def test_secrets_are_read_from_variables_and_files() -> None:
    secret = write(Path("key"), "from-file\n")
    file = write(
        Path("t.toml"),
        f"""\
[provider]
type = "openai"
base_url = "http://h/v1"
api_key = "env:MODEL_KEY"
[provider.tenants.acme]
github_token = "file:{secret.absolute()}"
[provider.tenants.other]
github_token = "literal:with-colon"
""",
    )
    provider = load_settings(file, env={"MODEL_KEY": "from-variable"}).provider
    assert reveal(provider.of("nobody").api_key) == "from-variable"
    assert reveal(provider.of("acme").github_token) == "from-file"
    assert reveal(provider.of("other").github_token) == "literal:with-colon"
    # A tenant's entry stands alone: the common key is not for its endpoint.
    assert provider.of("acme").api_key is None
    unresolved = load_settings(file, env={}, resolve_secrets=False)
    assert reveal(unresolved.provider.api_key) == "env:MODEL_KEY"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("env:NOT_SET", "the environment variable 'NOT_SET' is not set, or is empty"),
        ("env:EMPTY", "the environment variable 'EMPTY' is not set, or is empty"),
        ("file:/nonexistent/key", "the file /nonexistent/key can not be read: No such file or directory"),
        ("file:/dev/null", "the file /dev/null is empty"),
        ("", "expected a secret, env:NAME or file:PATH, not an empty text"),
    ],
)
def test_a_secret_that_is_not_there_is_told(reference: str, expected: str) -> None:
    found = problems(f'[provider]\ngithub_token = "{reference}"', {"EMPTY": ""})
    assert found == [f"t.toml:2: provider.github_token: {expected}"]


def test_a_secret_is_never_printed() -> None:
    hidden = "sk-hidden"
    found = problems(
        f'[provider]\ngithub_token = ["{hidden}"]\napi_kye = "{hidden}"\n[runtime]\nenv = {{ A = ["{hidden}"] }}\n'
    )
    assert len(found) == 3
    assert hidden not in "".join(found)
    settings = load_settings(
        write(Path("u.toml"), f'[provider]\ngithub_token = "{hidden}"\n[runtime]\nenv = {{ A = "{hidden}" }}\n'), env={}
    )
    assert hidden not in repr(settings) + str(settings)


HOST_TOOLS = '[policy]\nhost_tools = ["bash"]\n'
USER = '[isolation]\ntenants = { acme = "user" }\n'


def test_tools_that_reach_the_host_need_isolation_and_consent() -> None:
    (isolation,) = problems(HOST_TOOLS)
    assert 'needs isolation "user"' in isolation
    (consent,) = problems(HOST_TOOLS + USER)
    assert consent.startswith('t.toml:2: policy.host_tools = ["bash"]')
    assert "policy.allow_unsandboxed = true" in consent
    settings = load_settings(write(Path("t.toml"), HOST_TOOLS + "allow_unsandboxed = true\n" + USER), env={})
    assert settings.policy.host_tools == ["bash"]
    assert settings.isolation.of("acme") is Isolation.USER
    assert settings.isolation.of("other") is Isolation.TENANT


@pytest.mark.parametrize(
    ("isolation", "policy", "place"),
    [
        ("", 'profile = "sandboxed"', 'policy.profile = "sandboxed"'),
        ("", 'profile = "trusted"', 'policy.profile = "trusted"'),
        ('default = "user"\ntenants = { acme = "tenant" }', 'profile = "trusted"', 'policy.profile = "trusted"'),
        ("", 'tenants = { acme = "sandboxed" }', "policy.tenants"),
        ('tenants = { acme = "user" }', 'tenants = { acme = "sandboxed", bank = "sandboxed" }', "policy.tenants"),
    ],
)
def test_a_profile_that_reaches_the_host_needs_a_runtime_of_ones_own(isolation: str, policy: str, place: str) -> None:
    (problem,) = problems(f"[policy]\nallow_unsandboxed = true\n{policy}\n[isolation]\n{isolation}")
    assert problem.startswith(f"t.toml:3: {place}")
    assert 'needs isolation "user"' in problem


@pytest.mark.parametrize(
    ("isolation", "policy"),
    [
        ('default = "user"', 'profile = "sandboxed"'),
        ('default = "user"', 'profile = "trusted"'),
        ('default = "user"\ntenants = { acme = "tenant" }', 'profile = "sandboxed"\ntenants = { acme = "isolated" }'),
        ('tenants = { acme = "user" }', 'tenants = { acme = "sandboxed" }'),
        ("", 'tenants = { acme = "trusted" }'),
    ],
)
def test_a_profile_that_reaches_the_host_needs_consent(isolation: str, policy: str) -> None:
    text = f"[policy]\n{policy}\n[isolation]\n{isolation}\n"
    (problem,) = problems(text)
    assert problem.startswith("t.toml:2: policy.")
    assert "policy.allow_unsandboxed = true" in problem
    consented = text.replace("[policy]", "[policy]\nallow_unsandboxed = true")
    settings = load_settings(write(Path("t.toml"), consented), env={})
    assert settings.policy.profile.value in policy or settings.policy.of("acme").value in policy


SANDBOX = '[runtime]\nlauncher = "sandbox"\n'


def test_a_sandbox_contains_host_tools_and_the_profile_of_that_name() -> None:
    contained = SANDBOX + '[isolation]\ndefault = "user"\n[policy]\nhost_tools = ["bash"]\nprofile = "sandboxed"\n'
    settings = load_settings(write(Path("t.toml"), contained), env={})
    assert settings.contained
    assert not settings.policy.allow_unsandboxed
    (shared,) = problems(SANDBOX + HOST_TOOLS)
    assert 'needs isolation "user"' in shared
    for problem in problems(contained + '[sandbox]\nlevel = "standard"\n'):
        assert 'the level "standard" of the sandbox shares the network of this machine' in problem
    (trusted,) = problems(contained.replace('"sandboxed"', '"trusted"'))
    assert trusted.startswith('t.toml:7: policy.profile = "trusted"')
    assert "policy.allow_unsandboxed = true" in trusted


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('network = "proxy"', "needs the address of one in sandbox.proxy"),
        ('network = "open"\nproxy = "http://proxy.example:3128"', '"open" connects by itself'),
        ('proxy = "https://proxy.example"', 'expected an address such as "http://proxy.example:3128"'),
        ('level = "standard"\nallow = ["x:1"]', '"standard" has the network of the machine'),
        ('allow = ["example"]', "expected HOST:PORT"),
        ('allow = ["example:0"]', "expected HOST:PORT"),
        ('allow = ["http://example:80"]', "expected HOST:PORT"),
        ('memory = "1MiB"', "greater than or equal to"),
        ('level = "strct"', 'did you mean "strict"?'),
    ],
)
def test_a_sandbox_that_is_not_consistent(keys: str, message: str) -> None:
    (problem,) = problems(f"[sandbox]\n{keys}")
    assert message in problem


def test_everybody_is_isolated_unless_it_is_said_otherwise() -> None:
    settings = load_settings(env={})
    assert settings.policy.of("acme") is Profile.ISOLATED
    text = '[policy]\nallow_unsandboxed = true\ntenants = { acme = "trusted" }'
    settings = load_settings(write(Path("t.toml"), text), env={})
    assert settings.policy.of("acme") is Profile.TRUSTED
    assert settings.policy.of("other") is Profile.ISOLATED


def test_a_host_tool_is_not_taken_for_an_isolated_one() -> None:
    (problem,) = problems('[policy]\ntools = ["ask_user", "bash"]')
    assert problem.startswith('t.toml:2: policy.tools[1] = "bash": expected one of the isolated tools (ask_user, ')
    assert problem.endswith("one that reaches the host goes in host_tools")


def test_the_isolated_tools_are_those_of_the_sdk() -> None:
    copilot = pytest.importorskip("copilot")
    assert list(ISOLATED_TOOLS) == copilot.BUILTIN_TOOLS_ISOLATED


def test_paths_are_absolute_after_loading() -> None:
    settings = load_settings(overrides={"server.data_dir": "data", "runtime.command": "bin/copilot"}, env={})
    assert settings.server.data_dir == Path.cwd() / "data"
    assert settings.runtime.command == str(Path.cwd() / "bin/copilot")


def test_addresses() -> None:
    settings = load_settings(overrides={"server.http": "[::1]:0"}, env={})
    assert settings.server.http == ("::1", 0)
    assert str(settings.server.http) == "[::1]:0"


@pytest.mark.parametrize("address", ["::1:80", "host:", ":80", "host:70000", "host:-1", "host:8x", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    (problem,) = problems("", server__http=address)
    assert "expected HOST:PORT" in problem


def test_the_password_of_a_store_is_resolved_and_never_shown(tmp_path: Path) -> None:
    url = "postgresql://me:s3cret%2Fx@db.example/aerodrome?sslmode=verify-full"
    secret = write(tmp_path / "url", f"{url}\n")
    for text, env in [
        (url, {}),
        ("env:DATABASE", {"DATABASE": url}),
        (f"file:{secret}", {}),
    ]:
        file = write(Path("t.toml"), f'[state]\nurl = "{text}"\n')
        # Commands that use no secret work on the stores all the same.
        for resolve in (True, False):
            settings = load_settings(file, env=env, resolve_secrets=resolve)
            assert settings.state.url == url
            assert "s3cret" not in f"{settings!r} {settings}"
            assert "me:***@db.example" in repr(settings)
    for url in ("redis://:s3cret@h/1", "redis+sentinel://a:s3cret@h/m?sentinel_password=s3cret", "unix://a:s3cret@/x"):
        settings = load_settings(write(Path("t.toml"), f'[coordination]\nurl = "{url}"\n'), env={})
        assert settings.coordination.url == url
        assert "s3cret" not in f"{settings!r} {settings} {settings.coordination.url.masked}"
    assert "s3cret" not in "".join(problems('[state]\nurl = "mysql://me:s3cret@h/x"'))
    assert "s3cret" not in "".join(problems('[state]\nurl = "postgres://h/ x?sslpassword=s3cret"'))


def test_what_is_wrong_in_a_list_of_tables_is_named_and_shows_no_token(tmp_path: Path) -> None:
    path = tmp_path / "aerodrome.toml"
    path.write_text(
        '[state]\nurl = "volume:/mnt/v"\n[runtime]\n'
        'attach = [{ token = "hush" }, { address = "a:1", weights = 3 }, 17, { address = "b:1", weight = -1 }, "c"]\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(path, env={})
    text = caught.value.detail
    assert "hush" not in text
    assert "aerodrome.toml:4: runtime.attach[0].address: " in text
    assert 'there is no setting "weights" in runtime.attach[1]; did you mean "weight"?' in text
    assert "runtime.attach[2] = 17: expected a table" in text
    assert "runtime.attach[3].weight = -1" in text
    assert 'runtime.attach[4].address = "c": expected HOST:PORT' in text


def test_attached_servers_need_a_volume(tmp_path: Path) -> None:
    path = tmp_path / "aerodrome.toml"
    path.write_text('[runtime]\nattach = ["cli-1:4321"]\n')
    with pytest.raises(ConfigError, match="volume:/PATH"):
        load_settings(path, env={})
    loaded = load_settings(
        path, env={"AERODROME_STATE__URL": "volume:/mnt/v", "AERODROME_RUNTIME__ATTACH": "cli-1:4321, cli-2:4321"}
    )
    assert [str(server.address) for server in loaded.runtime.attach] == ["cli-1:4321", "cli-2:4321"]
    assert (loaded.state.volume, loaded.state.tables_url) == (Path("/mnt/v"), "sqlite")


@pytest.mark.parametrize("url", ["volume:", "volume:relative/path", "redis://x"])
def test_a_volume_is_an_absolute_path(url: str) -> None:
    with pytest.raises(ConfigError, match="volume:/PATH"):
        load_settings(env={"AERODROME_STATE__URL": url})


@pytest.mark.parametrize("login", ["me:s3@cret", "me@host:s3cret", "me:s3/cret", "me:s3%cret", "me:100%"])
def test_a_password_that_the_driver_would_take_for_a_host_is_refused_and_not_shown(login: str) -> None:
    """The driver's own error would quote a piece of it."""
    (problem,) = problems(f'[state]\nurl = "postgresql://{login}@db.example/aerodrome"')
    assert problem.endswith(": in user and password write @ as %40, / as %2F and % as %25")
    assert not [piece for piece in ("s3", "cret", "100") if piece in problem]
    (problem,) = problems(f'[coordination]\nurl = "postgresql://{login}@db.example/aerodrome"')
    assert "%40" in problem


def test_what_has_a_meaning_may_be_written_in_a_password() -> None:
    url = "postgresql://me%40host:s3%40%2F%25:?#!@db.example,other.example:5433/aerodrome?options=-c%20a%3Db&x=@"
    settings = load_settings(overrides={"state.url": url}, env={})
    assert settings.state.url == url


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a directory, not a file"):
        load_settings(tmp_path, env={})
