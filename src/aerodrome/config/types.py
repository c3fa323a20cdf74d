"""The types of values in the settings, each with the text form an operator writes.

Every one carries a `Kind`, from which the reference page and the template of `aerodrome init` take its name
and its way of writing a value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationInfo

from aerodrome._util.durations import format_duration, format_size, parse_duration, parse_size
from aerodrome.model import valid_name


@dataclass(frozen=True, slots=True)
class Kind:
    """What a type is called in the documentation, and how one of its values is written."""

    name: str
    write: Callable[[Any], str] = str


class Address(NamedTuple):
    """Where to listen. Port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    host, colon, port = value.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError('expected HOST:PORT, such as "127.0.0.1:8080" or "[::1]:8080"')
    return Address(host, int(port))


def parse_name(value: Any) -> Any:
    if isinstance(value, str) and not valid_name(value):
        raise ValueError("expected a name: a letter or digit, then up to 99 letters, digits or any of . _ @ -")
    return value


def check_url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]\S*", value):
        raise ValueError('expected an address such as "https://models.example/v1"')
    return value


def check_tool(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise ValueError("expected the name of a built-in tool: letters, digits, _ and -")
    return value


def check_host_and_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", host) or not colon or not _is_port(port):
        raise ValueError('expected HOST:PORT, such as "packages.example:443" or "*.example:443"')
    return value


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text[:6]) <= 65535


def parse_path(value: Any) -> Any:
    # Absolute from here on: runtimes are started in directories of their own.
    return Path(value).expanduser().absolute() if isinstance(value, str | Path) and str(value) else value


def resolve_secret(value: Any, info: ValidationInfo) -> Any:
    """Replace `env:NAME` and `file:PATH` by what they refer to.

    With the validation context `{"resolve_secrets": False}` the reference itself is kept: a command that uses
    no secret works where the secrets are not.
    """
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    context = info.context or {}
    if not isinstance(value, str) or context.get("resolve_secrets") is False:
        return value
    return _resolve(value, context)


def _resolve(value: str, context: Mapping[str, Any]) -> str:
    if value.startswith("env:"):
        name = value.removeprefix("env:")
        found, missing = (
            str(context.get("env", os.environ).get(name, "")),
            f"the environment variable {name!r} is not set, or is empty",
        )
    elif value.startswith("file:"):
        found, missing = _read_secret(Path(value.removeprefix("file:")).expanduser())
    else:
        found, missing = value, "expected a secret, env:NAME or file:PATH, not an empty text"
    if not found:
        raise ValueError(missing)
    return found


def _read_secret(path: Path) -> tuple[str, str]:
    try:
        # Editors and `echo` end a file with a line break that is no part of the secret.
        return path.read_text(encoding="utf-8").rstrip("\r\n"), f"the file {path} is empty"
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return "", f"the file {path} can not be read: {reason}"


#: What is secret in the address of a store: the password after the user's name, and parameters of that name.
_PASSWORDS = re.compile(r"(://[^:@/\s]*):\S*@|(password=)[^&\s]*")


def mask_passwords(text: str) -> str:
    """The text with `***` for every password in an address, for messages and listings."""
    return _PASSWORDS.sub(lambda found: f"{found[1]}:***@" if found[1] else f"{found[2]}***", text)


class StoreUrl(str):
    """The address of a store. It may hold a password: `str` is the address, `repr` and `masked` are for people."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """`sqlite`, `postgresql`, ...: what comes before the colon, or the whole."""
        return self.partition(":")[0]

    @property
    def masked(self) -> str:
        return mask_passwords(self)

    def __repr__(self) -> str:
        return repr(self.masked)


def resolve_store_url(value: Any, info: ValidationInfo) -> StoreUrl:
    """As `resolve_secret`, but always: a command that works on the stores needs their address."""
    if not isinstance(value, str):
        raise ValueError("expected a text in quotes")
    return StoreUrl(_resolve(value, info.context or {}))


def check_postgresql_url(value: StoreUrl) -> StoreUrl:
    """The form only; what the driver makes of it is told when it is opened."""
    if not re.fullmatch(r"postgres(ql)?://\S+", value):
        raise ValueError(
            'expected an address such as "postgresql://aerodrome@db.example/aerodrome?sslmode=verify-full"'
        )
    return value


def _quoted(text: object) -> str:
    return f'"{text}"'


#: Seconds. Written as "30s", "1h30m".
Duration = Annotated[float, BeforeValidator(parse_duration), Kind("duration", lambda v: _quoted(format_duration(v)))]
#: Bytes. Written as "64MiB", "1.5GB".
ByteSize = Annotated[int, BeforeValidator(parse_size), Kind("size", lambda v: _quoted(format_size(v)))]
#: Host and port. Written as "127.0.0.1:8080".
ListenAddress = Annotated[Address, BeforeValidator(parse_address), Kind("address", _quoted)]
#: A tenant, user or node.
Name = Annotated[str, BeforeValidator(parse_name), Kind("name", _quoted)]
#: The address of a service.
Url = Annotated[str, AfterValidator(check_url), Kind("URL", _quoted)]
#: A built-in tool of the Copilot CLI.
Tool = Annotated[str, AfterValidator(check_tool), Kind("tool", _quoted)]
#: A path, absolute and with `~` replaced.
LocalPath = Annotated[Path, BeforeValidator(parse_path), Kind("path", _quoted)]
#: A secret or a reference to one; never printed.
Secret = Annotated[SecretStr, BeforeValidator(resolve_secret), Kind("secret", _quoted)]
