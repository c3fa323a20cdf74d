"""The types of values in the settings, each with the text form an operator writes.

Every one carries a `Kind`, from which the reference page and the template of `aerodrome init` take its name
and its way of writing a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, PlainValidator, SecretStr, ValidationInfo

from aerodrome._util.durations import format_duration, format_size, parse_duration, parse_size
from aerodrome._util.redis_url import REDIS_SCHEMES, RedisUrl
from aerodrome.config.secret_cells import Cell, LiveSecret
from aerodrome.config.secret_resolver import Resolver
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


def resolve_secret(value: Any, info: ValidationInfo) -> SecretStr:
    """A secret, or a reference to one (see `secret_references`), as something that knows its present value.

    With the validation context `{"resolve_secrets": False}` the reference itself is kept: a command that uses
    no secret works where the secrets are not.
    """
    if isinstance(value, LiveSecret):
        return value
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if not isinstance(value, str):
        raise ValueError("expected a text in quotes")
    context = info.context or {}
    if context.get("resolve_secrets") is False:
        return SecretStr(value)
    return LiveSecret(Resolver.of(context).secret(value, info.field_name or ""))


#: What is secret in the address of a store: the password after the user's name, and parameters of that name.
_PASSWORDS = re.compile(
    r"(?P<user>://[^:@/\s]*):.*@"
    # A user with an @ in it, which is wrong, and usual at some providers.
    r"|(?P<odd>://[^:/\s]*):[^/?\s]*@"
    r"|(?P<option>password=)[^&\s]*"
)


def mask_passwords(text: str) -> str:
    """The text with `***` for every password in an address, for messages and listings."""

    def mask(found: re.Match[str]) -> str:
        user = found["user"] or found["odd"]
        return f"{user}:***@" if user is not None else f"{found['option']}***"

    return _PASSWORDS.sub(mask, text)


class StoreUrl(str):
    """The address of a store, as it was when the settings were loaded. It may hold a password: `str` is the address,
    `repr` and `masked` are for people.
    """

    __slots__ = ("cell",)

    #: What knows the address as it is now; ``None`` when it was written by a program.
    cell: Cell | None

    def __new__(cls, text: str, cell: Cell | None = None) -> Self:
        url = super().__new__(cls, text)
        url.cell = cell
        return url

    def current(self) -> StoreUrl:
        """The address for a new connection: its user and password may be others than at the start."""
        return self if self.cell is None else StoreUrl(self.cell.current(), self.cell)

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
    if isinstance(value, StoreUrl) and value.cell is not None:
        return value
    cell = Resolver.of(info.context).address(value, info.field_name or "")
    url = StoreUrl(cell.current(), cell)
    place = _without_login(url)

    def check(changed: str) -> None:
        # Connections that stand would stay with the old one, and both would be written to.
        if _without_login(changed) != place:
            raise ValueError("the address names another place than at the start: restart the node for that")
        # One that the driver does not understand would refuse every new connection.
        check_store_url(StoreUrl(changed))

    cell.check = check
    return url


def _without_login(url: str) -> str:
    """The address without user and password, which alone may change while connections stand."""
    return re.sub(r"(://).*@|([?&](?:password|user|sentinel_username|sentinel_password)=)[^&\s]*", r"\1\2", url)


def check_store_url(value: StoreUrl) -> StoreUrl:
    """The form of an address of Redis or PostgreSQL; whatever else it is is not looked at here. Raises ValueError."""
    if value.scheme in REDIS_SCHEMES:
        RedisUrl.parse(value)
    elif value.scheme in ("postgresql", "postgres"):
        check_postgresql_url(value)
    return value


def check_postgresql_url(value: StoreUrl) -> StoreUrl:
    """The form only; what the driver makes of it is told when it is opened."""
    if not re.fullmatch(r"postgres(ql)?://\S+", value):
        raise ValueError(
            'expected an address such as "postgresql://aerodrome@db.example/aerodrome?sslmode=verify-full"'
        )
    authority, _, path = value.partition("://")[2].partition("?")[0].partition("/")
    if authority.count("@") > 1 or "@" in path or re.search(r"%(?![0-9A-Fa-f]{2})", authority):
        # The driver would take a piece of the password for the host or the port, and its error would quote that.
        raise ValueError("in user and password write @ as %40, / as %2F and % as %25")
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
Secret = Annotated[SecretStr, PlainValidator(resolve_secret), Kind("secret", _quoted)]
