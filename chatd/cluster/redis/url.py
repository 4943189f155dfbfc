"""Parses the setting `redis_url`: shape of Redis, hosts, user, TLS. Pure.

    redis://[user:password@]host[:6379][/db]            one server; rediss:// for TLS
    unix://[user:password@]/path[?db=0]                 one server, by its socket
    redis+sentinel://[user:password@]host[:26379],.../service[/db]     rediss+sentinel:// for TLS
    redis+cluster://[user:password@]host[:6379],...                    rediss+cluster:// for TLS

redis-py parses the first two itself. But it accepts any option (`decode_responses` would break
every answer), guesses at what it does not understand, and may put the password into its error
texts. Here nothing is guessed. If the parts of a URL are ambiguous, no error text shows any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlsplit

from chatd.config import mask_password
from chatd.errors import SettingError

Kind: TypeAlias = Literal["server", "sentinel", "cluster"]

PORT: Final = 6379
SENTINEL_PORT: Final = 26_379
HOSTS_MAX: Final = 100

_SCHEMES: Final[Mapping[str, tuple[Kind, bool]]] = {  # (shape, whether by TLS)
    "redis": ("server", False), "rediss": ("server", True), "unix": ("server", False),
    "redis+sentinel": ("sentinel", False), "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False), "rediss+cluster": ("cluster", True),
}  # fmt: skip
_TLS_OPTIONS: Final = {
    "ssl_ca_certs": r".+",
    "ssl_certfile": r".+",
    "ssl_keyfile": r".+",
    "ssl_cert_reqs": r"none|optional|required",
    "ssl_check_hostname": r"true|false",
}
_SENTINEL_OPTIONS: Final = {"sentinel_username": r".+", "sentinel_password": r".+"}
_UNIX_OPTIONS: Final = {"db": r"[0-9]{1,4}"}
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[0-9A-Za-z_.%-]+)(?::([0-9]{1,5}))?")
_BARE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODE: Final = "write / ? # @ : and % in a user or password as %2F %3F %23 %40 %3A %25"


class RedisUrl(NamedTuple):
    """A parsed URL. Its `repr` has the password: show `masked`."""

    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...]  # empty: connect to `path`
    masked: str
    path: str = ""
    service: str = ""  # the master's name at the Sentinels
    db: int = 0
    username: str | None = None
    password: str | None = None
    options: Mapping[str, Any] = {}  # options of TLS, by redis-py's names
    sentinel: Mapping[str, str] = {}  # username and password, for the Sentinels themselves

    @property
    def secrets(self) -> list[str]:
        """Texts that no message may show."""
        return [text for text in (self.password, self.sentinel.get("password")) if text]


def _is_encoded(text: str) -> bool:
    """Whether each % begins an encoded byte, and the bytes are UTF-8."""
    try:
        unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return False
    return _BARE_PERCENT.search(text) is None


def read(url: str) -> RedisUrl:
    """Parse a URL. Raises SettingError, whose text has the remedy."""
    return _Reader(url).read()


class _Reader:
    def __init__(self, url: str) -> None:
        self.url = url
        self.scheme = ""

    def wrong(self, what: str, remedy: str) -> NoReturn:
        raise SettingError(f"redis_url: {what}; {remedy}")

    def read(self) -> RedisUrl:
        url = self.url
        self.scheme = url.partition("://")[0]
        if "://" not in url or self.scheme not in _SCHEMES:
            self.wrong(
                "is of no known shape", "begin it with one of " + ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            )
        if not url.isascii() or not url.isprintable() or " " in url:
            self.wrong("holds spaces, control or non-ASCII characters", "percent-encode them")
        try:
            parts = urlsplit(url)
        except ValueError:
            self.wrong("is no URL", _ENCODE)
        if "#" in url:
            self.wrong("has a # in it", _ENCODE)
        kind, tls = _SCHEMES[self.scheme]
        userinfo, at, hosts = parts.netloc.rpartition("@")
        if "@" in userinfo or "@" in parts.path or "@" in parts.query:
            self.wrong("has an @ where none can be", _ENCODE)
        if not all(_is_encoded(part) for part in (userinfo, parts.path, parts.query)):
            self.wrong("has a % that encodes no character", _ENCODE)
        username, colon, password = userinfo.partition(":")
        if at and not (username or password):
            self.wrong("has an empty user and password", "take out what stands before the @")
        common = {
            "kind": kind,
            "tls": tls,
            "masked": re.sub("://.*@", "://***@", mask_password(url)),
            "username": unquote(username) or None,
            "password": unquote(password) if colon else None,
            **self._options(parts.query, kind, tls),
        }
        if self.scheme == "unix":
            if hosts or not parts.path.startswith("/") or parts.path.endswith("/"):
                self.wrong("names no socket", "write unix:///path/of/redis.sock")
            return RedisUrl(hosts=(), path=unquote(parts.path), **common)
        common.pop("db")
        return self._place(parts.path, RedisUrl(hosts=self._hosts(hosts, kind), **common))

    def _hosts(self, text: str, kind: Kind) -> tuple[tuple[str, int], ...]:
        hosts = []
        for part in text.split(","):
            match = _HOST.fullmatch(part)
            if match is None or not 0 < int(match[2] or 1) < 65_536:
                self.wrong("names no host", f"write {self.scheme}://host:port, where {_ENCODE.removeprefix('write ')}")
            hosts.append((match[1].strip("[]"), int(match[2] or (SENTINEL_PORT if kind == "sentinel" else PORT))))
        if len(hosts) > (1 if kind == "server" else HOSTS_MAX):
            self.wrong(
                f"names {len(hosts)} hosts",
                "give one, or redis+sentinel://host,host/service, or redis+cluster://host,host",
            )
        return tuple(hosts)

    def _place(self, path: str, url: RedisUrl) -> RedisUrl:
        """The URL with what its path says: database, or service and database."""
        words = path.strip("/").split("/") if path.strip("/") else []
        if url.kind == "sentinel":
            if not words:
                self.wrong(
                    "does not say which master the Sentinels are to name", "write redis+sentinel://host,host/service"
                )
            url, words = url._replace(service=unquote(words[0])), words[1:]
        if not words:
            return url
        if len(words) > 1 or re.fullmatch("[0-9]{1,4}", words[0]) is None:
            self.wrong(
                "has a path that is no number of a database",
                f"end it with /0, or after the {'service' if url.service else 'host'}",
            )
        if url.kind == "cluster" and int(words[0]):
            self.wrong("names a database, and a Cluster has only 0", "end it after the hosts")
        return url._replace(db=int(words[0]))

    def _options(self, query: str, kind: Kind, tls: bool) -> dict[str, Any]:
        allowed = {
            **(_TLS_OPTIONS if tls else {}),
            **(_SENTINEL_OPTIONS if kind == "sentinel" else {}),
            **(_UNIX_OPTIONS if self.scheme == "unix" else {}),
        }
        given: dict[str, str] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in allowed:
                remedy = f"{self.scheme}:// takes {', '.join(allowed)}" if allowed else f"{self.scheme}:// takes none"
                self.wrong("has an option that chatd does not know", remedy)
            if re.fullmatch(allowed[name], value) is None:
                self.wrong(f"has a wrong {name}", f"give {allowed[name]}" if "|" in allowed[name] else "give a value")
            given[name] = value
        sentinel = {name.removeprefix("sentinel_"): given.pop(name) for name in _SENTINEL_OPTIONS if name in given}
        db = int(given.pop("db", "0"))
        options: dict[str, Any] = dict(given)
        if "ssl_check_hostname" in options:
            options["ssl_check_hostname"] = options["ssl_check_hostname"] == "true"
        return {"options": options, "sentinel": sentinel, "db": db}
