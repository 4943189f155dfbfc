"""`chatd doctor`: checks what would keep chatd from running well here, and says what to do.

It only reads. Each check returns Findings: "ok", "warn" (chatd runs, but not as well as it could)
or "bad" (chatd does not run, or does not keep its guarantees).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psycopg

from chatd.chat.auth import KeySet
from chatd.cluster.redis.client import RedisClient, RedisUnavailable
from chatd.config import Settings, mask_password
from chatd.errors import ChatdError, SettingError
from chatd.ops import descriptors, nodes, replica_check
from chatd.postgres import census, faults, hosts, migrate
from chatd.postgres.connection import Opener
from chatd.postgres.embedded import Embedded, visit
from chatd.postgres.faults import Outage
from chatd.postgres.watch import NODES, READ_ONLY
from chatd.unicode_ids import new_user_id

CONNECT_S: Final = 5
SKEW_S_MAX: Final = 1.0  # between this machine's clock and the database's
PG_VERSION_MIN: Final = 15
NAMES_MAX: Final = 100_000  # non-ASCII user ids that are checked: some 2 s and 30 MB
NAMES_SHOWN: Final = 3
CONNECTIONS_SPARE: Final = 3  # PostgreSQL reserves as many for superusers by default


class Finding(NamedTuple):
    """One line of the output."""

    level: str
    about: str
    what: str

    @property
    def bad(self) -> bool:
        return self.level == "bad"

    def __str__(self) -> str:
        return f"{self.level:<5} {self.about}: {self.what}"


def examine(settings: Settings) -> list[Finding]:
    """Run all checks. None of them disturbs a running node."""
    findings = list(_limits(settings))
    findings += _redis(settings)
    try:
        if settings.database_url is not None:
            findings += _database(settings, settings.database_url.get_secret_value())
        else:
            findings += _embedded(settings)
    except ChatdError as e:
        findings.append(Finding("bad", "database", str(e)))
    findings += _keys(settings)
    return findings


def _keys(settings: Settings) -> Iterator[Finding]:
    if settings.keys_file is None:
        yield Finding(
            "warn", "keys", "development mode: anybody can be anybody; set keys_file before others can reach this"
        )
        return
    try:
        keys = KeySet.load(settings.keys_file)
    except SettingError as e:
        yield Finding("bad", "keys", str(e).removeprefix("keys_file: "))
        return
    most_s = settings.token_ttl_max_s
    bound = (
        f"those valid for over {most_s} s are refused"
        if most_s
        else "their `exp` may be any time away, as token_ttl_max_s is not set"
    )
    yield Finding("ok", "keys", f"tokens are checked with the keys of {settings.keys_file}; {bound}")
    for warning in keys.warnings:
        yield Finding("warn", "keys", warning.removeprefix("keys_file: "))


def _limits(settings: Settings) -> Iterator[Finding]:
    hard = descriptors.limit()  # this command has raised the limit, as a node does
    need = settings.connections_max + descriptors.own(settings)
    if hard < need:
        yield Finding(
            "warn",
            "file limit",
            f"{hard} descriptors, connections_max needs {need}: raise LimitNOFILE (systemd) or lower connections_max",
        )
    else:
        yield Finding("ok", "file limit", "enough for connections_max")


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        yield Finding("ok", "redis", "not set: a single node needs none")
        return
    try:
        yield from asyncio.run(_ask_redis(settings.redis_url.get_secret_value(), settings.redis_prefix))
    except SettingError as e:
        yield Finding("bad", "redis", str(e).removeprefix("redis_url: "))


async def _ask_redis(url: str, prefix: str) -> list[Finding]:
    """Checks of Redis. Raises SettingError."""
    redis_client = RedisClient(url, connect_s=CONNECT_S)
    try:
        await redis_client.check(prefix)
        versions = sorted({hello["version"] for hello in await redis_client.run(redis_client.hello)})
        return [Finding("ok", "redis", f"version {', '.join(versions)}"), *await _eviction(redis_client)]
    except RedisUnavailable as e:
        where = redis_client.url.masked
        return [Finding("bad", "redis", f"{where} does not answer ({e}): start it, or correct redis_url")]
    finally:
        await redis_client.close()


async def _eviction(redis_client: RedisClient) -> list[Finding]:
    """A warning if Redis evicts keys when it is full, because presence and limits are such keys.

    Nothing is known where INFO is not allowed.
    """
    try:
        info = await redis_client.readable(lambda redis: redis.execute_command("INFO", "memory"))
    except RedisUnavailable:
        return []
    facts = info if isinstance(info, dict) else {}
    policy = str(facts.get("maxmemory_policy", "noeviction"))
    if facts.get("maxmemory") and policy != "noeviction":
        what = (
            f"maxmemory-policy is {policy}: a full Redis forgets who is online and what was sent; "
            "set noeviction, and a maxmemory that is enough"
        )
        return [Finding("warn", "redis", what)]
    return []


def _embedded(settings: Settings) -> list[Finding]:
    embedded = Embedded(settings.data_dir)
    where = f"embedded, in {embedded.cluster}"
    if not embedded.made:
        where += ", which the first start makes"
    elif embedded.running() is not None:
        where += ", in use by a running chatd"
    findings = [Finding("ok", "database", where)]
    if not _can_be_written(embedded.data_dir):
        findings = [Finding("bad", "database", f"{where}: may not be written by this user; give another --data-dir")]
    with visit(settings.data_dir) as conninfo:
        return findings + _database(settings, conninfo)


def _can_be_written(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _database(settings: Settings, conninfo: str) -> list[Finding]:
    try:
        with psycopg.connect(
            Opener(conninfo).conninfo("doctor", CONNECT_S), autocommit=True, prepare_threshold=None
        ) as conn:
            return [*_hosts(conninfo), *_server(settings, conn, conninfo)]
    except psycopg.Error as e:
        remedy = "" if faults.kind(e) == "standby" else ": start it, or correct database_url"
        return [Finding("bad", "database", mask_password(faults.sentence(e)) + remedy)]


def _hosts(conninfo: str) -> list[Finding]:
    """If several servers are named, exactly one must accept writes."""
    names = hosts.each(conninfo)
    if len(names) == 1:
        return []
    found = hosts.primaries(conninfo)
    if len(found) > 1:
        what = (
            f"{len(found)} servers take writes: {', '.join(found)}; "
            "stop the old primary, or make it a standby, before a node starts"
        )
        return [Finding("bad", "servers", what)]
    return [Finding("ok", "servers", f"{', '.join(found)} of {len(names)} takes writes")]


def _server(settings: Settings, conn: psycopg.Connection[tuple[object, ...]], conninfo: str) -> Iterator[Finding]:
    def show(name: str) -> str:
        row = conn.execute("SELECT current_setting(%s)", (name,)).fetchone()
        assert row is not None
        return str(row[0])

    version = conn.info.server_version // 10_000
    if version < PG_VERSION_MIN:
        yield Finding("bad", "database", f"PostgreSQL {version}: {PG_VERSION_MIN} or later is needed")
    else:
        yield Finding("ok", "database", f"PostgreSQL {show('server_version')}")
    row = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    yield asyncio.run(_sessions(conninfo))
    if show("transaction_read_only") == "on" and show("in_hot_standby") == "off":
        yield Finding(
            "bad", "database", f"{READ_ONLY}; `SHOW default_transaction_read_only` and the server's log say which"
        )
    for name in ("fsync", "full_page_writes"):
        if show(name) != "on":
            yield Finding(
                "bad",
                name,
                "is off: a crash of the machine can lose or break acked messages; turn it on in postgresql.conf",
            )
    if show("synchronous_commit") == "off":
        yield Finding("ok", "synchronous_commit", "is off by default; chatd's writers turn it on for themselves")
    if show("wal_init_zero") == "on":
        yield Finding(
            "warn",
            "wal_init_zero",
            "is on: p99 is tens of ms while new WAL segments are made; where the file system allows, turn it off",
        )
    need = settings.workers * (settings.lanes + settings.pool_max + 2) + CONNECTIONS_SPARE
    if not settings.embedded and int(show("max_connections")) < need:
        yield Finding("bad", "max_connections", f"is {show('max_connections')}; these settings need {need}")
    skew = abs(float(str(row[0])) - time.time())
    if skew > SKEW_S_MAX:
        yield Finding(
            "warn",
            "clock",
            f"this machine and the database are {skew:.1f} s apart, and chatd uses the database's clock; "
            "run an NTP client on both",
        )
    else:
        yield Finding("ok", "clock", "agrees with the database's")
    yield from _rights(conn)
    if settings.database_replica_url is not None:
        there = settings.workers * settings.replica_connections + CONNECTIONS_SPARE
        url = settings.database_replica_url.get_secret_value()
        yield from (Finding(level, "replica", what) for level, what in replica_check.examine(url, conn, there))
    yield _nodes(settings, conn)
    yield from _names(conn)
    yield from _schema(conninfo)


def _schema(conninfo: str) -> Iterator[Finding]:
    """Whether tables and functions are those of this release."""
    pending = migrate.pending(conninfo)
    now = [name for name in pending if not migrate.is_post(name)]
    if now:
        yield Finding("warn", "schema", f"pending: {', '.join(now)}; `chatd serve` or `chatd migrate` applies them")
    elif pending:
        what = f"pending: {', '.join(pending)}; `chatd migrate --post` applies them, once every node runs this release"
        yield Finding("warn", "schema", what)
    else:
        yield Finding("ok", "schema", "up to date")
    if newer := migrate.newer_functions(conninfo):
        what = f"{'; '.join(newer)}: a newer chatd works here, and this one does not replace them; upgrade it"
        yield Finding("warn", "functions", what)


def _rights(conn: psycopg.Connection[tuple[object, ...]]) -> Iterator[Finding]:
    """chatd makes and drops tables, so its role must own them or be a member of their owner."""
    row = conn.execute(
        """SELECT current_user, coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),
        (SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = to_regclass('entries'))"""
    ).fetchone()
    assert row is not None
    name, may_create, owns = row
    if owns is False:
        yield Finding(
            "bad",
            "rights",
            f"the role {name} does not own the tables: name their owner in database_url, or ALTER TABLE ... OWNER TO",
        )
    elif not may_create:
        yield Finding(
            "bad",
            "rights",
            f"the role {name} may not make tables here: ALTER DATABASE ... OWNER TO, or GRANT CREATE ON SCHEMA",
        )


def _names(conn: psycopg.Connection[tuple[object, ...]]) -> Iterator[Finding]:
    """A warning about users whose ids are not allowed (any more).

    They keep what they have, but no new conversation with them can begin.
    """
    row = conn.execute("SELECT to_regclass('users') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return
    # ASCII ids are allowed in all versions. The database's text is UTF-8, so other ids have more
    # bytes than characters.
    found = conn.execute(
        "SELECT id FROM users WHERE octet_length(id) > char_length(id) LIMIT %s", (NAMES_MAX,)
    ).fetchall()
    refused = [id for (id,) in found if not _may_be_new(str(id))]
    if not refused:
        return
    some = ", ".join(ascii(id) for id in sorted(map(str, refused))[:NAMES_SHOWN])
    what = (
        f"{len(refused)} could not be taken today ({some}): they stay as they are, "
        "but nobody new can write to them (docs/protocol.md section 2)"
    )
    yield Finding(
        "warn", "user ids", what if len(found) < NAMES_MAX else f"of the first {NAMES_MAX:,} beyond ASCII, {what}"
    )


def _may_be_new(id: str) -> bool:
    try:
        new_user_id(id)
    except ValueError:
        return False
    return True


async def _sessions(conninfo: str) -> Finding:
    """Whether connections have the session settings that chatd needs."""
    try:
        await Opener(conninfo).try_out("doctor", CONNECT_S)
    except Outage as e:
        return Finding("bad", "pooler" if e.kind == "pooler" else "sessions", str(e))
    return Finding("ok", "sessions", "settings hold, commits are durable, text is UTF-8")


def _nodes(settings: Settings, conn: psycopg.Connection[tuple[object, ...]]) -> Finding:
    """Whether the nodes that use this database receive each other's messages."""
    cur = psycopg.RawCursor(conn)
    cur.execute(NODES, (census.CLASS, census.FRESH_S))
    others = census.decode(cur.fetchall())
    heard: set[int] = set()
    if settings.redis_url is None:
        unheard = others if len(others) > 1 else []  # a single one is that of these settings
    else:
        try:
            heard = {census.key_of(row.boot) for row in asyncio.run(nodes.read(settings))}
        except (ChatdError, ValueError) as e:
            return Finding(
                "warn",
                "nodes",
                f"{len(others)} at work on this database; whether they hear each other cannot be told: {e}",
            )
        unheard = [other for other in others if other.key not in heard]
    if unheard:
        names = ", ".join(other.name for other in unheard[: census.NAMES_MAX])
        where = (
            "no redis_url is set" if settings.redis_url is None else "the Redis of these settings does not list them"
        )
        return Finding("bad", "nodes", f"{len(others)} work on this database, and {where} ({names}): {census.REMEDY}")
    return Finding("ok", "nodes", f"{len(others)} at work on this database")
