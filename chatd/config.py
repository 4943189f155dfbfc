"""Settings: each is written once, as a typed field; everything else about it is derived.

    port: int = _listen(8080, "TCP port of the chat server; ...", 0, 65535)
     |           |       |     |                                  └ bounds: validation, help, docs
     |           group   |     help: `--help` and the docs page
     |                   default
     └ name: flag `--port`, variable `CHATD_PORT`, TOML key `port`; its suffix is the unit

`Settings(...)` reads its arguments and nothing else, so what a test builds does not depend on the
machine. `config_sources.load` reads flags, environment and file; that module also derives flags,
errors and docs. argparse passes text on and pydantic alone checks it, so that the error for a wrong
flag reads like that for a wrong file.

Rejected: pydantic-settings. Its sources lose where a value comes from, ignore unknown names without
an error, read `os.environ` themselves, and want JSON for lists. Rejected: TOML tables; a flat name
is the same in all four places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)

from chatd import setting_checks
from chatd.addresses import Networks

ESCAPE_FACTOR = 6  # the most bytes JSON can make of one byte of text: \u00XX
ENVELOPE_BYTES_MAX = 1024  # a frame without its body: mostly user ids (64 x 12 bytes, all escaped)
DAY_S = 86_400
TOKEN_TTL_S_MAX = 10 * 366 * DAY_S
NO_HOME = Path("/nonexistent/chatd")  # if no home folder is known


def _group(title: str) -> Callable[..., Any]:
    """Makes fields of one group, from a default (or factory), help, and bounds of an integer."""

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
    """All settings, frozen. Use `config_sources.load`; tests may call it with keyword arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _warnings: list[str] = PrivateAttr(default_factory=list)

    host: str = _listen("127.0.0.1", "Address the chat server listens on")
    port: int = _listen(8080, "TCP port of the chat server; 0 takes any free one", 0, 65535)
    admin_host: str = _listen("127.0.0.1", "Address of the admin port (health, metrics); keep it private")
    admin_port: int = _listen(8081, "TCP port of health and metrics; 0 takes any free one, -1 none", -1, 65535)
    allow_remote_dev: bool = _listen(
        False, "Lets development mode (no keys_file) listen on addresses other than loopback"
    )

    data_dir: Path = _storage(_user_data_dir, "Folder of the embedded PostgreSQL and the development key")
    database_url: SecretStr | None = _storage(
        None, "PostgreSQL as a libpq URL; unset runs the embedded one. Flags show in process lists: prefer the file"
    )
    database_replica_url: SecretStr | None = _storage(
        None, "A standby of database_url, or several, from which history is read; unset: from the primary"
    )
    redis_url: SecretStr | None = _storage(
        None,
        "Redis: redis[s]://host, unix:///socket, redis+sentinel://host,host/service or "
        "redis+cluster://host,host; unset: a single node",
    )

    keys_file: Path | None = _access(
        None, "JSON file of the keys that sign users' tokens; unset: development mode, with a key of its own"
    )
    jwt_audience: str | None = _access(None, "The `aud` that tokens must have; unset: tokens with one are refused")
    jwt_issuer: str | None = _access(None, "The `iss` that tokens must have; unset: any")
    jwt_leeway_s: int = _access(5, "How far the clock of the tokens' issuer may differ from ours", 0, 300)
    token_ttl_max_s: int = _access(
        0,
        "Longest time that a token may be valid: `exp` minus `iat`, or without `iat` the time left; 0: any",
        0,
        TOKEN_TTL_S_MAX,
    )
    page: Literal["off", "on", "development"] = _access(
        "development",
        "The page at `/`. off: none; on: it takes a token; "
        "development: in development mode (no keys_file) it takes a name, else as on",
    )
    origins: list[str] = _access([], "More web origins to allow, such as https://chat.example.org, separated by commas")
    embed_origins: list[str] = _access(
        [], "Web origins whose pages may show the page in a frame, and give it their user's token, separated by commas"
    )

    trusted_proxies: list[str] = _proxy(
        [],
        "Networks (CIDR) of the proxies in front, separated by commas: "
        "only a proxy in them may name a client's address",
    )
    forwarded_header: Literal["auto", "x-forwarded-for", "forwarded"] = _proxy(
        "auto",
        "The header in which the proxy names the client; auto: the one that is present, none if both are and differ",
    )
    proxy_protocol: bool = _proxy(
        False, "Each connection is from a trusted proxy, and begins with a PROXY header (version 1 or 2)"
    )

    heartbeat_ms: int = _limit(20_000, "A client that is silent for this long is closed", 1000, 600_000)
    hello_ms: int = _limit(5000, "Time from the handshake to `hello`", 100, 60_000)
    handshake_ms: int = _limit(5000, "Time for the WebSocket handshake", 100, 60_000)
    connections_max: int = _limit(100_000, "Connections of this node", 1, 10_000_000)
    connections_per_address_max: int = _limit(10_000, "Connections from one address", 1, 10_000_000)
    unauthenticated_max: int = _limit(
        2000, "Connections without a `hello` yet; one more closes the oldest of them", 1, 1_000_000
    )
    unauthenticated_per_address_max: int = _limit(
        400, "Such connections of one address (IPv6: of one /64); one more closes its oldest", 1, 1_000_000
    )
    devices_max: int = _limit(10, "Devices of a user at a time; one more closes the one idle for longest", 1, 100)
    frame_bytes_max: int = _limit(16_384, "Longest frame that a client may send", 1024, 1 << 24)
    body_bytes_max: int = _limit(2048, "Longest message, in bytes of UTF-8", 1, 1 << 20)
    out_queue_bytes_max: int = _limit(
        1_048_576, "Bytes that may wait for a client that does not read; with more the client is closed", 1024, 1 << 28
    )

    rate_messages: int = _rate(10, "Messages that a user may send in any rate_per_ms", 1, 10_000)
    rate_per_ms: int = _rate(5000, "The period of rate_messages", 10, 3_600_000)
    rate_penalties_max: int = _rate(
        8, "Sends during the `retry_ms` of a refusal, until the connection is closed", 1, 64
    )
    frames_per_s: int = _rate(100, "Frames that a connection may send, on average", 1, 1_000_000)
    frames_burst: int = _rate(400, "Frames that a connection may send at once after a pause", 1, 1_000_000)
    new_conversations_per_hour: int = _rate(100, "Conversations that a user may open", 1, 10_000)
    unknown_recipients: Literal["keep", "refuse"] = _rate(
        "keep", "A message to a user never seen here: keep it for the user, or refuse it with no_user"
    )

    lanes: int = _write(4, "Writer lanes, each with a connection to PostgreSQL", 1, 64)
    batch_rows_max: int = _write(1024, "Rows that a lane writes in one transaction", 1, 10_000)
    lane_queue_max: int = _write(4096, "Rows that may wait for a lane; more are refused with overloaded", 1, 1 << 20)
    lane_deadline_ms: int = _write(5000, "A batch without an answer for this long has an unknown outcome", 100, 60_000)
    pool_max: int = _write(4, "Connections to PostgreSQL for reading", 1, 64)
    reads_queue_max: int = _write(
        1000, "Reads that may wait for a connection; more are refused with overloaded", 1, 1 << 20
    )
    edit_window_ms: int = _write(900_000, "How long a message can be edited", 0, 366 * DAY_S * 1000)
    retention_days: int = _write(30, "Days that messages are kept", 1, 3660)
    partition_s: int = _write(DAY_S, "Time span of one partition of the log", 1, 31 * DAY_S)
    partitions_ahead: int = _write(7, "Partitions made before they are needed", 1, 100)
    cursor_flush_ms: int = _write(
        500, "Time between two writes of cursors; a crash loses up to this much of them", 10, 1000
    )

    presence_grace_ms: int = _deliver(500, "A user who reconnects within this time does not look offline", 0, 1000)
    watch_max: int = _deliver(200, "Users whose presence one session may watch", 0, 10_000)
    resync_entries_max: int = _deliver(500, "Missed entries of a conversation pushed after `hello`", 0, 100_000)
    history_max: int = _deliver(100, "Messages in one page of history", 1, 1000)

    node_name: str | None = _nodes(None, "Name of this node in logs and `chatd nodes`; unset: its host and port")
    redis_prefix: str = _nodes("chatd", "Prefix of all keys and channels in Redis; each database needs its own")
    lease_ms: int = _nodes(
        5000, "A node that does not renew its lease for this long is dead, and its users are offline", 1000, 60_000
    )

    other_nodes: Literal["warn", "refuse"] = _nodes(
        "warn",
        "Another node on this database that shares no Redis with this one (redis_url forgotten, another prefix): "
        "warn, or refuse to start",
    )

    workers: int = _run(
        1,
        "Nodes that `chatd serve` runs on this port, each a process; more than 1 need redis_url, or share an embedded "
        "Valkey beside the embedded PostgreSQL",
        1,
        64,
    )
    drain_ms: int = _run(10_000, "Time for clients to leave when the server stops", 0, 600_000)
    log_level: Literal["debug", "info", "warning", "error"] = _run("info", "Least severe events to log")
    log_format: Literal["auto", "json", "pretty", "journal"] = _run(
        "auto",
        "journal: json with each line's priority before it; "
        "auto: pretty on a terminal, journal under systemd, json elsewhere",
    )

    @property
    def development(self) -> bool:
        """Whether there is no keys_file: tokens are signed by a key that chatd makes itself."""
        return self.keys_file is None

    @property
    def gives_tokens(self) -> bool:
        """Whether anybody gets a token for any name, by the page at `/dev/token`."""
        return self.development and self.page == "development"

    def token_ttl_s(self, wanted_s: int) -> int:
        """How long a token made here is valid: as wanted, but at most `token_ttl_max_s`."""
        return min(wanted_s, self.token_ttl_max_s or wanted_s)

    @property
    def replica_connections(self) -> int:
        """Connections of a node to the replica: a read of a client that may go there has one."""
        return 0 if self.database_replica_url is None else reads_at_once(self.pool_max)

    @property
    def homeless(self) -> bool:
        """Whether no home folder is known, so that data_dir must be given."""
        return self.data_dir == NO_HOME

    @property
    def embedded(self) -> bool:
        """Whether there is no database_url: PostgreSQL is the wheel's, its data in data_dir."""
        return self.database_url is None

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: object, info: Any) -> object:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("is true or false")  # pydantic would read TOML's `port = true` as 1
        if info.field_name in (*setting_checks.ORIGIN_LISTS, "trusted_proxies") and isinstance(value, str):
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
                setting_checks.check(
                    info.field_name, text.get_secret_value() if isinstance(text, SecretStr) else str(text)
                )
        if isinstance(value, Path):
            return _expanded(value)
        if info.field_name in setting_checks.ORIGIN_LISTS:
            return [setting_checks.canonical_origin(origin) for origin in value]
        return value

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        for sentence in self._contradictions():
            raise ValueError(sentence)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Sentences `setting: what is wrong; remedy` on values that do not fit together."""
        need = self.body_bytes_max * ESCAPE_FACTOR + ENVELOPE_BYTES_MAX
        if self.frame_bytes_max <= need:
            yield f"frame_bytes_max: cannot hold body_bytes_max with every byte escaped; give more than {need}"
        page = self.history_max * (self.body_bytes_max * 2 + ENVELOPE_BYTES_MAX)  # our own escapes double it at most
        if self.out_queue_bytes_max < page:
            yield f"out_queue_bytes_max: cannot hold a page of history_max entries; give {page} or more"
        if self.lane_queue_max < self.batch_rows_max:
            yield f"lane_queue_max: is less than one batch; give {self.batch_rows_max} or more"
        if self.edit_window_ms > self.retention_days * DAY_S * 1000:
            yield f"edit_window_ms: is longer than messages are kept; give {self.retention_days * DAY_S * 1000} or less"
        if self.partition_s > self.retention_days * DAY_S:
            yield f"partition_s: is longer than messages are kept; give {self.retention_days * DAY_S} or less"
        last = self.admin_port + self.workers - 1  # each worker has its own admin port
        if 0 < self.admin_port <= self.port <= last and setting_checks.overlap(self.host, self.admin_host):
            ports = f"{self.workers} from {self.admin_port} on"
            yield f"admin_port: takes the chat server's port, too ({ports}); give another"
        if last > 65_535:
            most = 65_536 - self.workers
            yield f"admin_port: is the first of the workers' ports, which end at {last}; give {most} or less"
        if self.proxy_protocol and not self.trusted_proxies:
            yield (
                "proxy_protocol: needs proxies that may send its header, and trusted_proxies is not set; "
                "name them by --trusted-proxies"
            )
        if self.database_replica_url is not None and self.database_url is None:
            yield (
                "database_replica_url: is of a standby of database_url, which is not set; the embedded PostgreSQL has "
                "none: give --database-url, or leave it out"
            )
        if self.workers > 1 and self.redis_url is None and not self.embedded:
            yield (
                "workers: are nodes that must hear of each other, and redis_url is not set (only without database_url, "
                "too, do they have a Redis of their own); give --redis-url, or 1"
            )
        for name, host in (("host", self.host), ("admin_host", self.admin_host)):
            if self.development and not self.allow_remote_dev and not setting_checks.is_loopback(host):
                yield (
                    f"{name}: can be reached from outside, and without keys_file anybody can be anybody; "
                    "give --keys-file, or --allow-remote-dev if you mean it"
                )


def reads_at_once(pool_max: int) -> int:
    """Reads of clients at the database at a time: they leave half of the pool to the rest."""
    return max(pool_max // 2, 1)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("begins with a home folder that is not known here") from None


# ---- text that may be shown ----------------------------------------------------------------------


def one_line(text: str) -> str:
    """The text on one line, without characters that act on a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def mask_password(url: str) -> str:
    """A URL or libpq string with `***` for its password; masks too much if an `@` is ambiguous."""
    url = re.sub(r"(?s)(://[^:/?#@]*):.*@", r"\1:***@", url)
    url = re.sub(r"([?&](?:ssl|sentinel_)?password=)[^&#]*", r"\1***", url)
    return re.sub(r"(?<![?&\w])((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s']+)", r"\1***", url)
