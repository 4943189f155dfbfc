"""Settings: each one written once, as a typed field; everything else about it is derived.

    port: int = _listen(8080, "TCP port of the chat server; ...", 0, 65535)
     |           |       |     |                                  └ bounds: validation, help, docs
     |           group   |     help: `--help` and the docs page
     |                   default
     └ name: flag `--port`, variable `CHATD_PORT`, TOML key `port`; its suffix is the unit

`load` merges default < TOML file < environment < flags, and remembers where each value came from:
the one thing an operator needs from an error is *which* of the four to look at. It raises
`SettingError`: one line with the setting, its origin, what is wrong and what would be right.
Secrets never reach a message.

Rejected: pydantic-settings (its sources drop the origin, pass over unknown names in silence, read
`os.environ` behind the caller's back, want JSON for lists). `Settings(...)` sees its arguments and
nothing else: what a test builds does not depend on the machine. Rejected: TOML tables; a flat name
is the same in all four places. argparse hands on text and pydantic alone judges it, so that a wrong
flag reads like a wrong file.
"""

from __future__ import annotations

import argparse
import codecs
import difflib
import os
import re
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from chatd import injected, shapes
from chatd.addresses import Networks
from chatd.errors import SettingError

ENV_PREFIX = "CHATD_"
CONFIG_VARIABLE = "CHATD_CONFIG"  # names the TOML file where there is no --config (containers have no flags)
CONFIG_BYTES_MAX = 1 << 20
ESCAPE_FACTOR = 6  # the most bytes JSON can make of one byte of text: \u00XX
ENVELOPE_BYTES_MAX = 1024  # a frame without its body; most of it is user ids (64 x 12 bytes if all is escaped)
DAY_S = 86_400
TOKEN_TTL_S_MAX = 10 * 366 * DAY_S
NO_HOME = Path("/nonexistent/chatd")  # stands for a home folder that is not known


def _group(title: str) -> Callable[..., Any]:
    """Makes the fields of a group: default (or what makes it), help, least and greatest integer."""

    def setting(default: Any, text: str, ge: int | None = None, le: int | None = None) -> Any:
        extra: dict[str, Any] = {"group": title}
        if callable(default):
            return Field(default_factory=default, description=text, json_schema_extra=extra)
        return Field(default, description=text, json_schema_extra=extra, ge=ge, le=le)

    return setting


def _user_data_dir() -> Path:
    try:
        return Path(platformdirs.user_data_dir("chatd", appauthor=False))
    except RuntimeError:  # neither HOME nor an entry in passwd
        return NO_HOME


_listen = _group("Listening")
_storage = _group("Storage")
_access = _group("Tokens and origins")
_proxy = _group("Proxies in front")
_limit = _group("Connections and frames")
_rate = _group("Rates")
_write = _group("Writing and keeping")
_deliver = _group("Presence and delivery")
_nodes = _group("Many nodes")
_run = _group("Running")


class Settings(BaseModel):
    """All settings, frozen. Build it with `load`; tests may call it with keyword arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _warnings: list[str] = PrivateAttr(default_factory=list)

    host: str = _listen("127.0.0.1", "Address the chat server listens on")
    port: int = _listen(8080, "TCP port of the chat server; 0 takes any free one", 0, 65535)
    admin_host: str = _listen("127.0.0.1", "Address of the admin port (health, metrics); keep it private")
    admin_port: int = _listen(8081, "TCP port of health and metrics; 0 takes any free one, -1 none", -1, 65535)
    allow_remote_dev: bool = _listen(
        False, "Development mode (no keys_file) refuses to listen on anything but loopback unless this is set"
    )

    data_dir: Path = _storage(_user_data_dir, "Holds the embedded PostgreSQL and the development key")
    database_url: SecretStr | None = _storage(
        None, "PostgreSQL as a libpq URL; unset runs the embedded one. Flags show in process lists: prefer the file"
    )
    redis_url: SecretStr | None = _storage(
        None,
        "Redis: redis[s]://host, unix:///socket, redis+sentinel://host,host/service or redis+cluster://host,host; unset: a single node",
    )

    keys_file: Path | None = _access(
        None, "JSON file of the keys that sign users' tokens; unset is development mode, with a key of its own"
    )
    jwt_audience: str | None = _access(None, "The `aud` that tokens must have; unset refuses tokens with one")
    jwt_issuer: str | None = _access(None, "The `iss` that tokens must have; unset takes any")
    jwt_leeway_s: int = _access(5, "How far the token issuer's clock may be from ours", 0, 300)
    token_ttl_max_s: int = _access(
        0,
        "Longest time that a token may be valid for: `exp` minus `iat`, or what is left of it without `iat`; 0: any",
        0,
        TOKEN_TTL_S_MAX,
    )
    origins: list[str] = _access([], "Further web origins to allow, such as https://chat.example.org, by commas")

    trusted_proxies: list[str] = _proxy(
        [],
        "Networks (CIDR) of the proxies in front, by commas: only what a peer in them says of a client's address is believed",
    )
    forwarded_header: Literal["auto", "x-forwarded-for", "forwarded"] = _proxy(
        "auto",
        "The header in which the proxy names the client; auto: whichever is there, and none where both are and differ",
    )
    proxy_protocol: bool = _proxy(
        False, "Each connection begins with a PROXY header (version 1 or 2), and comes from a trusted proxy"
    )

    heartbeat_ms: int = _limit(20_000, "A peer silent for so long is closed", 1000, 600_000)
    hello_ms: int = _limit(5000, "Time from the handshake to hello", 100, 60_000)
    handshake_ms: int = _limit(5000, "Time for the WebSocket handshake", 100, 60_000)
    connections_max: int = _limit(100_000, "Connections of this node", 1, 10_000_000)
    connections_per_address_max: int = _limit(10_000, "Connections from one address", 1, 10_000_000)
    unauthenticated_max: int = _limit(
        2000, "Connections that have not said hello yet; one more closes the oldest of them", 1, 1_000_000
    )
    unauthenticated_per_address_max: int = _limit(
        400, "Those of one address (IPv6: of one /64); one more closes its oldest", 1, 1_000_000
    )
    devices_max: int = _limit(10, "Devices of a user at a time; one more closes the longest idle", 1, 100)
    frame_bytes_max: int = _limit(16_384, "Longest frame that a client may send", 1024, 1 << 24)
    body_bytes_max: int = _limit(2048, "Longest message, in bytes of UTF-8", 1, 1 << 20)
    out_queue_bytes_max: int = _limit(
        1_048_576, "Bytes that may wait for a client that does not read; past it the client is closed", 1024, 1 << 28
    )

    rate_messages: int = _rate(10, "Messages that a user may send in any rate_per_ms", 1, 10_000)
    rate_per_ms: int = _rate(5000, "The period that rate_messages counts in", 10, 3_600_000)
    rate_penalties_max: int = _rate(8, "Sends against the told wait until the connection is closed", 1, 64)
    frames_per_s: int = _rate(100, "Frames that a connection may send, on average", 1, 1_000_000)
    frames_burst: int = _rate(400, "Frames that a connection may send at once after a pause", 1, 1_000_000)
    new_conversations_per_hour: int = _rate(100, "Conversations that a user may open", 1, 10_000)
    unknown_recipients: Literal["keep", "refuse"] = _rate(
        "keep", "A message to a user never seen here: keep it for them, or refuse it with no_user"
    )

    lanes: int = _write(4, "Writer lanes, each with a connection to PostgreSQL", 1, 64)
    batch_rows_max: int = _write(1024, "Rows that a lane writes in one transaction", 1, 10_000)
    lane_queue_max: int = _write(4096, "Rows that may wait for a lane; past it: overloaded", 1, 1 << 20)
    lane_deadline_ms: int = _write(5000, "After so long the outcome of a batch counts as unknown", 100, 60_000)
    pool_max: int = _write(4, "Connections to PostgreSQL for reading", 1, 64)
    reads_queue_max: int = _write(1000, "Reads that may wait for a connection; past it: overloaded", 1, 1 << 20)
    edit_window_ms: int = _write(900_000, "How long a message can be edited", 0, 366 * DAY_S * 1000)
    retention_days: int = _write(30, "Days that messages are kept", 1, 3660)
    partition_s: int = _write(DAY_S, "Time that one partition of the log holds", 1, 31 * DAY_S)
    partitions_ahead: int = _write(7, "Partitions made before they are needed", 1, 100)
    cursor_flush_ms: int = _write(500, "Cursors are written this often; a crash loses so much of them", 10, 1000)

    presence_grace_ms: int = _deliver(500, "A user who is back within it never looked offline", 0, 1000)
    watch_max: int = _deliver(200, "Users whose presence one session may watch", 0, 10_000)
    resync_entries_max: int = _deliver(500, "Missed entries of a conversation sent unasked", 0, 100_000)
    history_max: int = _deliver(100, "Messages in one page of history", 1, 1000)

    node_name: str | None = _nodes(None, "What logs and `chatd nodes` call this node; unset: its host and port")
    redis_prefix: str = _nodes("chatd", "Begins the names of all keys and channels in Redis; one for each database")
    lease_ms: int = _nodes(
        5000, "A node that Redis has not heard of for so long is dead, and its users are offline", 1000, 60_000
    )

    other_nodes: Literal["warn", "refuse"] = _nodes(
        "warn",
        "Another node on this database that shares no Redis with this one (redis_url forgotten, another prefix): warn, or refuse to start",
    )

    workers: int = _run(
        1, "Nodes that `chatd serve` runs on this port, each a process; more than 1 needs redis_url", 1, 64
    )
    drain_ms: int = _run(10_000, "Time that clients get to leave when the server stops", 0, 600_000)
    log_level: Literal["debug", "info", "warning", "error"] = _run("info", "Least severe events to log")
    log_format: Literal["auto", "json", "pretty", "journal"] = _run(
        "auto",
        "journal is json with each line's priority before it; auto is pretty on a terminal, journal under systemd, json elsewhere",
    )

    @property
    def development(self) -> bool:
        """No keys_file: tokens are signed by a key that chatd makes itself."""
        return self.keys_file is None

    def token_ttl_s(self, wanted_s: int) -> int:
        """How long a token made here is valid for: as long as wanted, or as `token_ttl_max_s`
        allows.
        """
        return min(wanted_s, self.token_ttl_max_s or wanted_s)

    @property
    def homeless(self) -> bool:
        """No home folder is known, so there is no place for data_dir unless it is given."""
        return self.data_dir == NO_HOME

    @property
    def embedded(self) -> bool:
        """No database_url: PostgreSQL comes from the wheel and lives in data_dir."""
        return self.database_url is None

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: object, info: Any) -> object:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("is true or false")  # pydantic would read TOML's `port = true` as 1
        if info.field_name in ("origins", "trusted_proxies") and isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        if value == "" and cls.model_fields[info.field_name].annotation in (Path, Path | None):
            raise ValueError("is empty")  # Path("") would be the current folder
        return value

    @field_validator("*")
    @classmethod
    def _check(cls, value: Any, info: Any) -> Any:
        if info.field_name == "trusted_proxies":
            Networks(value)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str | SecretStr | Path):
                shapes.check(info.field_name, text.get_secret_value() if isinstance(text, SecretStr) else str(text))
        if isinstance(value, Path):
            return _expanded(value)
        return [shapes.canonical_origin(origin) for origin in value] if info.field_name == "origins" else value

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        for sentence in self._contradictions():
            raise ValueError(sentence)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Sentences `setting: what is wrong; remedy` on values that are right alone and wrong
        together.
        """
        need = self.body_bytes_max * ESCAPE_FACTOR + ENVELOPE_BYTES_MAX
        if self.frame_bytes_max <= need:
            yield f"frame_bytes_max: cannot hold body_bytes_max with every byte escaped; give more than {need}"
        page = self.history_max * (self.body_bytes_max * 2 + ENVELOPE_BYTES_MAX)  # our own escapes double at most
        if self.out_queue_bytes_max < page:
            yield f"out_queue_bytes_max: cannot hold a page of history_max entries; give {page} or more"
        if self.lane_queue_max < self.batch_rows_max:
            yield f"lane_queue_max: is less than one batch; give {self.batch_rows_max} or more"
        if self.edit_window_ms > self.retention_days * DAY_S * 1000:
            yield f"edit_window_ms: is longer than messages are kept; give {self.retention_days * DAY_S * 1000} or less"
        if self.partition_s > self.retention_days * DAY_S:
            yield f"partition_s: is longer than messages are kept; give {self.retention_days * DAY_S} or less"
        last = self.admin_port + self.workers - 1  # each worker has its own
        if 0 < self.admin_port <= self.port <= last and shapes.overlap(self.host, self.admin_host):
            yield f"admin_port: takes the chat server's port, too ({self.workers} from {self.admin_port} on); give another"
        if last > 65_535:
            yield f"admin_port: is the first of the workers' ports, which end at {last}; give {65_536 - self.workers} or less"
        if self.proxy_protocol and not self.trusted_proxies:
            yield "proxy_protocol: needs proxies that may send its header, and trusted_proxies is not set; name them by --trusted-proxies"
        if self.workers > 1 and self.redis_url is None:
            yield "workers: are nodes that must hear of each other, and redis_url is not set; give --redis-url, or 1"
        for name, host in (("host", self.host), ("admin_host", self.admin_host)):
            if self.development and not self.allow_remote_dev and not shapes.is_loopback(host):
                yield (
                    f"{name}: can be reached from outside, and without keys_file anybody can be anybody; "
                    "give --keys-file, or --allow-remote-dev if you mean it"
                )


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("begins with a home folder that is not known here") from None


# -- reading
# -------------------------------------------------------------------------------------------------------


def load(
    argv_overrides: Mapping[str, object], config_file: Path | None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Settings from flags, environment (default: the process's) and TOML file. Raises SettingError.

    `argv_overrides` may be `vars()` of the whole namespace: what is no setting is the caller's.
    Without `config_file` the variable CHATD_CONFIG may name one. An empty variable counts as unset.
    """
    environ = os.environ if environ is None else environ
    if config_file is None and environ.get(CONFIG_VARIABLE):
        config_file = Path(environ[CONFIG_VARIABLE])
    values: dict[str, Any] = {} if config_file is None else _read_toml(config_file)
    origins = {name: f"{name} in {config_file}" for name in values}
    variables, passed_over = _read_environment(environ)
    for name, text in variables.items():
        values[name], origins[name] = text, ENV_PREFIX + name.upper()
    for name, given in argv_overrides.items():
        if name in Settings.model_fields and given is not None:
            values[name], origins[name] = given, _flag(name)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingError(_sentence(error, values, origins)) from None  # its cause would show values: secrets
    settings._origins.update(origins)
    settings._warnings.extend([injected.warning(passed_over)] if passed_over else [])
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise OSError(None, f"it has more than {CONFIG_BYTES_MAX} bytes")
        if data.startswith(codecs.BOM_UTF8):
            raise OSError(
                None, "it begins with a byte order mark, which TOML does not know; save it as UTF-8 without one"
            )
        values = tomllib.loads(data.decode())
    except OSError as error:
        raise SettingError(one_line(f"--config: cannot read {path}: {error.strerror}; name another file")) from None
    except (ValueError, RecursionError) as error:  # only TOMLDecodeError shows no piece of the file
        wrong = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "it is not UTF-8 text"
        raise SettingError(one_line(f"--config: {path} is not TOML: {wrong}; write lines like port = 8080")) from None
    for name in values:
        if name not in Settings.model_fields:
            raise SettingError(one_line(f"{name}: in {path} is not a setting; {_did_you_mean(name)}"))
    return values


def _read_environment(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Settings by name; and the variables that a cluster has set."""
    values, passed_over = {}, []
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if injected.is_injected(variable, environ[variable]):
            passed_over.append(variable)
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in Settings.model_fields or variable != variable.upper():
            remedy = _did_you_mean(name, lambda known: ENV_PREFIX + known.upper())
            raise SettingError(one_line(f"{variable}: in the environment is not a setting; {remedy}"))
        if environ[variable]:
            values[name] = environ[variable]
    return values, passed_over


def _did_you_mean(name: str, spell: Callable[[str], str] = str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), Settings.model_fields, n=1)
    return f"did you mean {spell(near[0])}?" if near else "remove it (`chatd config` lists all settings)"


def _sentence(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """The first thing wrong:

    `port: 70000 from CHATD_PORT is wrong (...); give an integer from 0 to 65535`.
    """
    first = error.errors(include_url=False)[0]
    text = first["msg"].removeprefix("Value error, ")
    if first["loc"]:
        name = str(first["loc"][0])
        wrong = text if first["type"] == "value_error" else f"is wrong ({text[:1].lower()}{text[1:]})"
        remedy = f"give {allowed(name)}"
    else:  # a relation: its sentence begins with the setting and brings the remedy along
        name, _, rest = text.partition(": ")
        wrong, _, remedy = rest.rpartition("; ")
    value = values.get(name, _text(Settings.model_fields[name].get_default(call_default_factory=True)))
    shown = "the value" if _is_secret(Settings.model_fields[name]) else _shorten(value)
    return one_line(f"{name}: {shown} from {origins.get(name, 'the default')} {wrong}; {remedy}")


def one_line(text: str) -> str:
    """Nothing in it can act on a terminal, or look like another line of a log."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _shorten(value: object) -> str:
    text = value if isinstance(value, str) and value else _text(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- derived from the fields
# ---------------------------------------------------------------------------------------

_UNITS = {  # by suffix; the first that fits, as frames_per_s is no time
    "_per_ms": "ms", "_per_s": "per second", "_per_hour": "per hour",
    "_ms": "ms", "_s": "s", "_days": "days", "_bytes_max": "bytes",
}  # fmt: skip


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unit(name: str) -> str:
    return next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in get_args(field.annotation)


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def allowed(name: str) -> str:
    """What a right value is, for errors and the docs."""
    field = Settings.model_fields[name]
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):
        kind = get_args(kind)[0]
    if _choices(field):
        return "one of " + ", ".join(_choices(field))
    if kind is int:
        low, high = (next(getattr(rule, key) for rule in field.metadata if hasattr(rule, key)) for key in ("ge", "le"))
        return f"an integer from {low} to {high}"
    return shapes.WORDS.get(name) or {bool: "true or false", Path: "a path", SecretStr: "a URL", str: "text"}[kind]


def _default_text(field: FieldInfo) -> str:
    return "the user's data directory" if field.default_factory else _text(field.default) or "unset"


def _text(value: object) -> str:
    """A value as flag or variable would give it, but for passwords."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list():
            return ",".join(map(str, value))
        case SecretStr():
            return mask_password(value.get_secret_value())
        case _:
            return str(value)


def mask_password(url: str) -> str:
    """A URL or libpq string with `***` for its password; where `@` is ambiguous, too much is
    masked.
    """
    url = re.sub(r"(?s)(://[^:/?#@]*):.*@", r"\1:***@", url)
    url = re.sub(r"([?&](?:ssl|sentinel_)?password=)[^&#]*", r"\1***", url)
    return re.sub(r"(?<![?&\w])((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s']+)", r"\1***", url)


def _groups() -> dict[str, list[tuple[str, FieldInfo]]]:
    groups: dict[str, list[tuple[str, FieldInfo]]] = {}
    for name, field in Settings.model_fields.items():
        assert isinstance(field.json_schema_extra, dict)
        groups.setdefault(str(field.json_schema_extra["group"]), []).append((name, field))
    return groups


def add_flags(parser: argparse.ArgumentParser, *, shown: bool = True) -> None:
    """One flag per setting, in groups, in `--help` or not.

    A flag not given is absent from the namespace, so that `load` can tell.
    """
    for title, fields in _groups().items():
        group = parser.add_argument_group(title)
        for name, field in fields:
            default = f"{_default_text(field)} {_unit(name)}".strip()
            text = f"{field.description} (default: {default})".replace("%", "%%")
            options: dict[str, Any] = {
                "dest": name,
                "default": argparse.SUPPRESS,
                "help": text if shown else argparse.SUPPRESS,
            }
            if field.annotation is bool:
                options["action"] = argparse.BooleanOptionalAction
            else:
                options["metavar"] = "|".join(_choices(field)) or name.rsplit("_", 1)[-1].upper()
            group.add_argument(_flag(name), **options)


def effective(settings: Settings) -> list[tuple[str, str, str]]:
    """(name, value without passwords, where it came from) of every setting, in the order of the
    fields.
    """
    origins = settings._origins
    return [(name, _text(getattr(settings, name)), origins.get(name, "default")) for name in Settings.model_fields]


def environment(settings: Settings) -> dict[str, str]:
    """The variables that give these settings to another process: passwords too, as the environment,
    unlike flags, is not shown to everybody.
    """
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {
        ENV_PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else _text(value)
        for name, value in values.items()
    }  # fmt: skip


def docs_table() -> str:
    """Markdown for the docs page: a table per group, the same on every machine."""
    lines = []
    for title, fields in _groups().items():
        lines += [f"### {title}", "", "| setting | default | unit | allowed | meaning |", "|---|---|---|---|---|"]
        for name, field in fields:
            cells = (f"`{name}`", _default_text(field), _unit(name), allowed(name), str(field.description))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)
