"""Find, read and check the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aerodrome._util.xdg import config_home
from aerodrome.config.problems import describe
from aerodrome.config.secret_resolver import Known, Resolver
from aerodrome.config.secret_settings import SecretSettings
from aerodrome.config.settings import Settings
from aerodrome.config.sources import Layer, merge, read_environment, read_file, read_overrides
from aerodrome.errors import ConfigError

FILE_NAME = "aerodrome.toml"


def find_config(path: Path | str | None = None, env: Mapping[str, str] = os.environ) -> Path | None:
    """The file to read: the one asked for (which must exist), `./aerodrome.toml`, or the user's own.

    Raises:
        ConfigError: The file asked for does not exist, or is none.
    """
    if path is not None:
        if Path(path).is_dir():
            raise ConfigError(f"{path}: a directory, not a file; name the file in it")
        if not Path(path).exists():
            raise ConfigError(f"{path}: there is no such file; `aerodrome init {path}` writes one")
        return Path(path)
    candidates = [Path(FILE_NAME), config_home(env) / "aerodrome" / FILE_NAME]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def load_settings(
    path: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] = os.environ,
    resolve_secrets: bool = True,
    known: Known | None = None,
) -> Settings:
    """The settings from file, then `AERODROME_SECTION__KEY` variables, then `overrides`; later ones win.

    Args:
        path: The file; without it, see `find_config`.
        overrides: Flags by dotted name, `{"server.http": "127.0.0.1:0"}`; ``None`` values are left out.
        resolve_secrets: With ``False`` secrets stay the references they are, for commands that use none.
        known: What earlier settings have looked up; what these have is there afterwards.

    Raises:
        ConfigError: Something is wrong. `detail` lists every problem, `extra["problems"]` has them one by one.
    """
    file = find_config(path, env)
    layer = merge(
        [
            read_file(file) if file else Layer(),
            read_environment(env, Settings),
            read_overrides(overrides or {}),
        ]
    )
    return _checked(layer, env, resolve_secrets, known)


def settings_of(values: Mapping[str, Any]) -> Settings:
    """The settings that a program has put together itself: sections as in the file, and nothing from elsewhere.

    Raises:
        ConfigError: As `load_settings`.
    """
    return _checked(Layer(dict(values)), os.environ, resolve_secrets=True)


def _checked(layer: Layer, env: Mapping[str, str], resolve_secrets: bool, known: Known | None = None) -> Settings:
    resolver = Resolver(env, _secret_settings(layer).timeout, known)
    try:
        settings = Settings.model_validate(
            layer.values, context={"resolve_secrets": resolve_secrets, "resolver": resolver}
        )
        if known is not None:
            known.cells = resolver.cells
        return settings
    except ValidationError as error:
        problems = describe(error, Settings, layer.origins)
    # Outside the handler: pydantic's own text, which `raise` would chain, must not reach a log.
    heading = f"{len(problems)} problems in the configuration:\n  " if len(problems) > 1 else ""
    raise ConfigError(heading + "\n  ".join(problems), problems=problems)


def _secret_settings(layer: Layer) -> SecretSettings:
    """What the references are resolved with, while the rest is checked. What is wrong with it is told with the rest."""
    try:
        return SecretSettings.model_validate(layer.values.get("secrets", {}))
    except ValidationError:
        return SecretSettings()
