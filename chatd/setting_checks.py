"""Checks the values of settings that are text. Pure.

    check(name, text)     raises ValueError: a sentence without the value, which may be a secret
    WORDS[name]           what a valid value is, for errors, `--help` and the docs page

A value that can never work is refused here, with its own reason: an origin that no browser sends, a
host name that no resolver accepts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Final

HOST_CHARS_MAX: Final = 253  # RFC 1035 section 2.3.4
LABEL_CHARS_MAX: Final = 63
PORT_MAX: Final = 65_535
DEFAULT_PORTS: Final = {"http": "80", "https": "443"}

DATABASE_URLS: Final = ("database_url", "database_replica_url")
ORIGIN_LISTS: Final = ("origins", "embed_origins")
WORDS: Final = {
    "host": "a host name or an IP address",
    "admin_host": "a host name or an IP address",
    **dict.fromkeys(DATABASE_URLS, "postgresql://user:password@host/database or key=value pairs"),
    "redis_url": "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
    "redis_prefix": "1 to 32 of a-z 0-9 _ . -",
    "node_name": "1 to 64 printable ASCII characters",
    "trusted_proxies": "networks such as 10.0.0.0/8",
    **dict.fromkeys(ORIGIN_LISTS, "scheme://host[:port], in lower case and without a path, several by commas"),
}

_PATTERNS: Final = {
    **dict.fromkeys(DATABASE_URLS, re.compile(r"(?s)(postgres(ql)?://|[a-z_]+\s*=).*")),
    "redis_url": re.compile(r"(?s)(unix|rediss?|rediss?\+(sentinel|cluster))://.+"),
    "redis_prefix": re.compile(r"[a-z0-9_.-]{1,32}"),
    "node_name": re.compile(r"[ -~]{1,64}"),
}
_HOST: Final = re.compile(r"[0-9A-Za-z_.:%-]+")
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^/?#\s@A-Z\[\]:;]+)(?::([0-9]+))?")


def check(name: str, text: str) -> None:
    """Raise ValueError if `text` is not valid for the setting `name`."""
    if "\0" in text:
        raise ValueError("has a NUL character in it")
    if (judge := _JUDGES.get(name)) is not None:
        judge(text)
    elif (pattern := _PATTERNS.get(name)) is not None and pattern.fullmatch(text) is None:
        raise ValueError("is wrong")


def canonical_origin(origin: str) -> str:
    """The origin as browsers send it (RFC 6454 section 6.2): without its scheme's default port."""
    scheme, _, rest = origin.partition("://")
    return f"{scheme}://{rest.removesuffix(':' + DEFAULT_PORTS.get(scheme, '-'))}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def overlap(host: str, other: str) -> bool:
    """Whether a listener on one host takes the port on the other, too."""
    return host == other or bool({host, other} & {"0.0.0.0", "::"})  # noqa: S104


def _host(text: str) -> None:
    labels = [] if ":" in text else text.removesuffix(".").split(".")
    if (
        _HOST.fullmatch(text) is None
        or len(text) > HOST_CHARS_MAX
        or not all(0 < len(label) <= LABEL_CHARS_MAX for label in labels)
    ):
        raise ValueError("is wrong")


def _origin(text: str) -> None:
    if "*" in text:
        raise ValueError("has a * in it, and would match nothing: an origin is compared as a whole")
    match = _ORIGIN.fullmatch(text)
    if match is None or not 0 < int((match[3] or "1")[:6]) <= PORT_MAX:
        raise ValueError("is wrong")
    if not text.isascii():
        raise ValueError("is not ASCII, and would match nothing: browsers send such names as xn--...")
    if match[1] in ("ws", "wss"):
        raise ValueError("would match nothing: the origin of a page is http://... or https://...")


_JUDGES: Final[dict[str, Callable[[str], None]]] = {
    "host": _host,
    "admin_host": _host,
    **dict.fromkeys(ORIGIN_LISTS, _origin),
}
