"""`chatd nodes`: lists the nodes, from what each reports to Redis once per beat.

cluster/presence_sync.py writes the reports. `read` reads them by one script, so that one clock
gives the age of each lease; `table` and `as_json` show them. Anybody with access to Redis can write
these texts. So what cannot be parsed is shown as `?`, and so is each control character.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from chatd.cluster.redis.client import RedisClient, RedisUnavailable
from chatd.config import Settings
from chatd.errors import ChatdError
from chatd.wire import presence_codec

TEXT_CHARS_MAX: Final = 64
HEADS: Final = ("name", "boot", "address", "pid", "version", "sessions", "users", "pg", "redis", "lease", "started")

# KEYS: nodes, info. Returns for each node: incarnation, age of its lease in ms by Redis's clock,
# info.
LIST: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local nodes = {}
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
    nodes[#nodes + 1] = { all[i], now - all[i + 1], redis.call('HGET', KEYS[2], all[i]) or '' }
end
return nodes
"""


class NodeRow(NamedTuple):
    """One node. None: it does not report this. The names are the keys of `chatd nodes --json`."""

    name: str | None
    boot: str  # its incarnation
    host: str | None
    port: int | None
    pid: int | None
    version: str | None
    sessions: int | None
    users: int | None
    started_ms: int | None
    lease_age_ms: int
    stands: bool  # its lease is valid
    left: bool = False  # it has drained
    admin_host: str | None = None  # as set; may be a loopback address
    admin_port: int | None = None
    postgres_connections: int | None = None  # that are open
    redis_connections: int | None = None


async def read(settings: Settings) -> list[NodeRow]:
    """All nodes that Redis lists, by name. Raises ChatdError."""
    if settings.redis_url is None:
        raise ChatdError("redis_url is not set: a single node is in no list; give the --redis-url of the nodes to list")
    redis_client = RedisClient(settings.redis_url.get_secret_value())
    try:
        keys = [f"{{{settings.redis_prefix}}}:{name}" for name in ("nodes", "info")]
        found = await redis_client.script(LIST)(keys, [])
    except RedisUnavailable as e:
        where = redis_client.url.masked
        raise ChatdError(f"Redis at {where} does not answer: {e}; start it, or correct --redis-url") from None
    finally:
        await redis_client.close()
    rows = [row(boot.decode(errors="replace"), int(age_ms), info, settings.lease_ms) for boot, age_ms, info in found]
    return sorted(rows, key=lambda one: (one.name or "", one.boot))


def row(boot: str, lease_age_ms: int, info: bytes, lease_ms: int) -> NodeRow:
    """One node, from what it reports of itself (JSON in `info`)."""
    facts = presence_codec.decode_info(info)

    def text(name: str) -> str | None:
        value = facts.get(name)
        return _printable(value) if isinstance(value, str) else None

    def number(name: str) -> int | None:
        value = facts.get(name)
        return value if type(value) is int else None

    admin = facts.get("admin")
    host, port = admin if isinstance(admin, list) and len(admin) == 2 else (None, None)
    return NodeRow(
        name=text("name"),
        boot=_printable(boot),
        host=text("host"),
        port=number("port"),
        pid=number("pid"),
        version=text("version"),
        sessions=number("sessions"),
        users=number("users"),
        started_ms=number("started_ms"),
        lease_age_ms=lease_age_ms,
        stands=lease_age_ms <= lease_ms,
        left=facts.get("left") is True,
        admin_host=_printable(host) if isinstance(host, str) else None,
        admin_port=port if type(port) is int else None,
        postgres_connections=number("postgres_connections"),
        redis_connections=number("redis_connections"),
    )


def as_json(rows: Iterable[NodeRow]) -> str:
    """A JSON array with one object per node; keys as in NodeRow."""
    return json.dumps([one._asdict() for one in rows], indent=2)


def table(rows: Iterable[NodeRow]) -> str:
    """Columns for people. Times are in this machine's local time."""
    lines = [HEADS, *(_cells(one) for one in rows)]
    widths = [max(len(cells[n]) for cells in lines) for n in range(len(HEADS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in lines
    )


def _cells(one: NodeRow) -> tuple[str, ...]:
    address = f"{one.host}:{one.port}" if one.host is not None and one.port is not None else None
    age = f"{max(0, one.lease_age_ms) / 1000:.1f} s"
    lease = f"left, {age}" if one.left else age if one.stands else f"lapsed, {age}"
    cells = (
        one.name, one.boot, address, one.pid, one.version, one.sessions, one.users,
        one.postgres_connections, one.redis_connections, lease, _time(one.started_ms),
    )  # fmt: skip
    return tuple("?" if cell is None else str(cell) for cell in cells)


def _time(ms: int | None) -> str | None:
    try:
        return None if ms is None else datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return None


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:TEXT_CHARS_MAX])
