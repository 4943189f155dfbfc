"""Checks that libpq accepts `database_url` and `database_replica_url`, before anything connects.

So a malformed URL is reported as a wrong setting, and not as a server that is away.

libpq's error quotes the piece that it could not parse, which in a URL with an unescaped `@`, `?` or
`%` is a piece of the password. So only the text before the quote is reported. A parameter's name is
reported only by the known name that it is closest to.
"""

from __future__ import annotations

import difflib
import re
from typing import Final, NoReturn

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from chatd.errors import SettingError

PORT_MAX: Final = 65_535
ENCODE: Final = "write / ? # @ : and % in a user or password as %2F %3F %23 %40 %3A %25"
SHAPE: Final = f"give postgresql://user:password@host:5432/database, and {ENCODE}"
_CHOICES: Final = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer", "require"),
}
_NUMBERS: Final = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)


def check(url: str, setting: str = "database_url") -> None:
    """Raises SettingError, whose text holds no piece of the URL that could be a secret."""
    try:
        _check(url)
    except ValueError as e:
        raise SettingError(f"{setting}: {e}") from None


def _check(url: str) -> None:
    try:
        parts = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.Error as e:
        _wrong_shape(str(e))
    except UnicodeError:
        _wrong("is not text in UTF-8", SHAPE)
    _check_hosts(parts)
    for name, choices in _CHOICES.items():
        if name in parts and parts[name] not in choices:
            _wrong(f"has a wrong {name}", f"give one of {', '.join(choices)}")
    for name in _NUMBERS:
        if name in parts and re.fullmatch(r"-?[0-9]{1,9}", parts[name].strip()) is None:
            _wrong(f"has a wrong {name}", "give an integer")


def _check_hosts(parts: dict[str, str]) -> None:
    ports = parts.get("port", "").split(",")
    for port in ports:
        if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= PORT_MAX):
            _wrong("has a port that is no number from 1 to 65535", SHAPE)
    hosts = max((parts[name].count(",") + 1 for name in ("host", "hostaddr") if parts.get(name)), default=1)
    if len(ports) not in (1, hosts):
        _wrong(f"has {len(ports)} ports for {hosts} hosts", "give one port for all, or each its own")


def _wrong_shape(said: str) -> NoReturn:
    what, quote, rest = said.partition('"')
    name = rest.partition('"')[0]
    if quote and ("query parameter" in what or "connection option" in what) and "separator" not in what:
        known = [option.keyword.decode() for option in Conninfo.get_defaults()]
        near = difflib.get_close_matches(name, known, n=1)
        _wrong(
            "has a parameter that libpq does not know",
            f"did you mean {near[0]}?" if near else f"take it out, or {ENCODE}",
        )
    if "percent" in what or "%00" in said:
        _wrong("has a % that encodes no character", ENCODE)
    _wrong(f"cannot be read ({what.strip(' :').split(chr(10))[0] or 'libpq does not take it'})", SHAPE)


def _wrong(what: str, remedy: str) -> NoReturn:
    raise ValueError(f"{what}; {remedy}") from None
