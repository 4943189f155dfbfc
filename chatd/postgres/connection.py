"""The one opener of connections to PostgreSQL, and the settings of their sessions.

    open ─► connect ─► SET what correctness and plans rest on
         ─► read it back, in another statement ─► compare the log with the one that is known

Settings are sent as statements, not as the startup packet's `options`, which poolers refuse or drop
silently. Then `synchronous_commit` would be what the role or the database says. A setting that
cannot be set, or does not hold in the next statement, is an outage: nothing is written over such a
connection. The operator's own `options` in the URL (a search_path) stay and are applied first.

A pooler by transaction runs a client's statements in sessions that other clients use, too. Each of
our connections leaves a mark in its session: a connection that finds the mark of another live
connection of this process shares its session with it.

A firewall that forgets idle connections drops what is sent without an answer, not even a reset.
Keepalives well under 4 minutes keep the path open, and `tcp_user_timeout` ends a connection whose
data is not acknowledged. That takes seconds. So a connection that was not used for `PROVE_AFTER_S`
is probed first (`is_alive`), and replaced if no answer arrives within `PROVE_S`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import weakref
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import psycopg
import structlog
from psycopg import waiting
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chatd.postgres import arrays, faults, hosts
from chatd.postgres.faults import Outage
from chatd.postgres.log_state import LogState, LogVerdict, Sight
from chatd.postgres.planner import PLANNER
from chatd.postgres.queries import query

log = structlog.get_logger("database")

CONNECT_S: Final = 3
VERSION_MIN: Final = 15
DEFAULT_PORT: Final = "5432"
HOSTS_MAX: Final = 8
KEEPALIVES: Final = {"keepalives": 1, "keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 3}
PROVE_AFTER_S: Final = 5.0  # without an answer; in a busy connection no statement is added
PROVE_S: Final = 0.5
STATEMENT_S: Final = 10.0  # of reads: twice what a client waits for

# For every connection. Isolation: `append` looks for duplicates in a snapshot newer than its locks.
# DateStyle, TimeZone: psycopg reads only these. row_security: rows that a policy hides are an
# error, not holes in the log.
COMMON: Final[Mapping[str, str]] = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "row_security": "off",
    "statement_timeout": f"{int(STATEMENT_S * 1000)}ms",
    "lock_timeout": "0",
}
# Setting -> value, and the first version of PostgreSQL that has it
NEWER: Final = {"transaction_timeout": ("0", 17_00_00)}
READ: Final[Mapping[str, str]] = {**COMMON, **PLANNER}
LANE: Final[Mapping[str, str]] = {**READ, "client_min_messages": "warning", "lock_timeout": "300ms"}
# What this session writes is recorded for other nodes (sql/migrations/0003_pre_feed.sql)
FEED: Final[Mapping[str, str]] = {"chatd.feed": "on"}
MARK: Final = "chatd.connection"

# synchronous_commit: on, or what is stronger: remote_apply stays if the operator has set it
_SET: Final = """SELECT current_setting($3::text, true), set_config($3::text, $4::text, false), pg_backend_pid(),
    CASE WHEN $5::boolean THEN set_config('synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false) END,
    (SELECT array_agg(set_config(s.name, s.value, false) ORDER BY s.ord)
     FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS s (name, value, ord)),
    (SELECT (extract(epoch FROM a.backend_start) * 1000000)::bigint FROM pg_stat_get_activity(pg_backend_pid()) a)"""
_READ_BACK: Final = """SELECT current_setting($2::text, true), current_setting('synchronous_commit'),
    current_setting('server_encoding'),
    (SELECT array_agg(current_setting(s.name) ORDER BY s.ord) FROM unnest($1::text[]) WITH ORDINALITY AS s (name, ord)),
    pg_is_in_recovery(), current_setting('transaction_read_only'), pg_backend_pid()"""
HEADS: Final = query("heads")
SIGHT: Final = "SELECT epoch, identity, log_identity() FROM meta"

# The source file of the warning that an administrator has cancelled the wait for a synchronous
# standby: the transaction is committed, but not on the standby. Other warnings come from
# statements, as from a trigger (pl_exec.c), or with each transaction id once few are left
# (varsup.c): what was written stands.
SYNC_SOURCE: Final = "syncrep.c"
WARN_AGAIN_S: Final = 600.0
_warned_at: dict[str, float] = {}  # source file of a warning -> when it was logged (s, monotonic)

_numbers = itertools.count(1)
_life = os.urandom(6).hex()


class Backend(NamedTuple):
    """A process of PostgreSQL. `started`: us since 1970; pids are reused."""

    pid: int
    started: int


class PgConnection(psycopg.AsyncConnection[Any]):
    """psycopg's, but a wait that is cancelled ends at once and closes the connection.

    psycopg first asks the server to cancel and waits up to 10 s for that. A server that hangs would
    hold a lane or a reader that long past its deadline. The statement ends at `statement_timeout`.
    """

    backend: Backend | None = None  # its server process; None: PostgreSQL does not say
    generation = 0  # the generation of the log that it was compared with
    opened_at = 0.0  # monotonic
    used_at = 0.0  # monotonic: the last answer; for connections of the pool
    warnings = 0  # server warnings that a commit may not be on the standby
    warning = ""  # the text of the last one

    async def wait(self, gen: Any, interval: float = 1.0, timeout: float | None = None) -> Any:
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise

    def note(self, diag: psycopg.errors.Diagnostic) -> None:
        """Handle a notice of the server.

        A warning that is not known to come from a statement may speak of its commit.
        """
        if diag.severity_nonlocalized != "WARNING":
            return
        source = diag.source_file
        if source is None or source == SYNC_SOURCE:
            self.warnings += 1
            self.warning = diag.message_primary or ""
        elif (now := time.monotonic()) - _warned_at.get(source, -WARN_AGAIN_S) > WARN_AGAIN_S:
            _warned_at[source] = now
            log.warning("database.warns", reason=diag.message_primary, hint=diag.message_hint)


_open: weakref.WeakValueDictionary[str, PgConnection] = weakref.WeakValueDictionary()  # by mark


class Opener:
    """Opens connections to one database. `state`: the log that all of them must have.

    `standbys`: a standby will do. Only for reads, whose caller compares the log (standby.py).
    """

    def __init__(self, conninfo: str, state: LogState | None = None, *, standbys: bool = False) -> None:
        self._conninfo = conninfo
        self.state = state or LogState()
        self._standbys = standbys
        # (host, port) of hosts that are tried last: an old primary, a standby
        self._last: list[tuple[str, str]] = []
        self._made: weakref.WeakSet[PgConnection] = weakref.WeakSet()

    @property
    def connections(self) -> int:
        """How many connections of this process are open."""
        return sum(not conn.closed for conn in self._made)

    def conninfo(self, name: str, deadline_s: float) -> str:
        """The conninfo for libpq, with keepalives and deadlines.

        Of several hosts it takes the primary (a standby first, where one will do), unless the
        operator's URL says otherwise.
        """
        own = conninfo_to_dict(self._conninfo)
        extra: dict[str, str | int] = {"connect_timeout": CONNECT_S, **KEEPALIVES}
        if "," in str(own.get("host") or "") + str(own.get("hostaddr") or ""):
            extra["target_session_attrs"] = "prefer-standby" if self._standbys else "primary"
        extra = {key: value for key, value in extra.items() if own.get(key) is None}
        return make_conninfo(
            self._conninfo,
            **extra,
            **self._in_order(own),
            client_encoding="UTF8",
            tcp_user_timeout=int(deadline_s * 1000),
            application_name=f"chatd {name}",
        )

    def _in_order(self, own: Mapping[str, Any]) -> dict[str, str]:
        """libpq's host, address and port lists, with the hosts in `_last` at the end.

        Empty if there is one host alone.
        """
        lists = {key: str(own[key]).split(",") for key in ("host", "hostaddr", "port") if own.get(key) is not None}
        places = _places(lists)
        if len(places) == 1 or not self._last:
            return {}
        if len(ports := lists.get("port", [""])) == 1:  # libpq: one port is for all hosts
            lists["port"] = ports * len(places)
        order = sorted(
            range(len(places)), key=lambda i: self._last.index(places[i]) + 1 if places[i] in self._last else 0
        )
        return {key: ",".join(values[i] for i in order) for key, values in lists.items()}

    def each(self) -> dict[tuple[str, str], Opener]:
        """One opener for each host of the URL, by (host or address, port)."""
        found = {}
        for name, alone in hosts.each(self._conninfo).items():
            host, _, port = name.rpartition(":")
            found[(host, port)] = Opener(alone)
        return found

    def ordered(self) -> str:
        """The URL with its hosts in the order in which they are tried."""
        return make_conninfo(self._conninfo, **self._in_order(conninfo_to_dict(self._conninfo)))

    def avoid(self, place: tuple[str, str]) -> None:
        """Try this host last from now on."""
        self._last = [*[one for one in self._last if one != place][-HOSTS_MAX:], place]

    def _learn(self, conn: PgConnection) -> None:
        """Hosts that were tried before this one did not serve: try them last from now on.

        One that hangs costs each new connection `CONNECT_S`.
        """
        own = conninfo_to_dict(self._conninfo)
        own |= self._in_order(own)
        places = _places(
            {key: str(own[key]).split(",") for key in ("host", "hostaddr", "port") if own.get(key) is not None}
        )
        if own.get("load_balance_hosts") != "random" and (place := _place(conn)) in places:
            for before in places[: places.index(place)]:
                self.avoid(before)

    async def open(
        self, name: str, settings: Mapping[str, str], deadline_s: float, *, compare: bool = True
    ) -> PgConnection:
        """A connection that is set, read back and, if `compare`, compared with the known log.

        Raises Outage.
        """
        try:
            async with asyncio.timeout(deadline_s):
                conn = await PgConnection.connect(self.conninfo(name, deadline_s), autocommit=True, prepare_threshold=0)
                try:
                    await self.prepare(conn, settings, compare=compare)
                except BaseException:
                    conn.pgconn.finish()
                    raise
                return conn
        except (psycopg.Error, OSError, TimeoutError) as e:
            raise faults.outage(e, is_unknown=False) from e

    async def try_out(self, name: str, deadline_s: float) -> None:
        """Check that connections work as chatd needs them. Raises Outage.

        Opens two at a time: one alone does not show a pooler by transaction.
        """
        first = await self.open(name, LANE, deadline_s, compare=False)
        try:
            await close(await self.open(name, LANE, deadline_s, compare=False))
        finally:
            await close(first)

    async def prepare(self, conn: PgConnection, settings: Mapping[str, str], *, compare: bool = True) -> None:
        """Set a new connection and check it. Raises Outage, psycopg.Error."""
        arrays.register(conn)
        self._made.add(conn)
        conn.opened_at = conn.used_at = time.monotonic()
        self._learn(conn)
        conn.add_notice_handler(conn.note)
        check_encoding(conn)
        await set_session(conn, settings, standbys=self._standbys)
        if compare and self.state.is_known:
            self.compare(conn, await sight(conn))
        conn.generation = self.state.generation

    def compare(self, conn: PgConnection, seen: Sight) -> None:
        """Raises Outage if this is not the log that is known, and has the watch look."""
        verdict = self.state.look(seen)
        if verdict is LogVerdict.STANDBY:
            raise Outage(STANDBY, "standby", is_unknown=False)
        if verdict is LogVerdict.LEFT:
            self.avoid(_place(conn))
            raise Outage(
                "this server has a log that was left for another one: an old primary is back; stop it,"
                " or make its log the one to use with `chatd epoch --renew`",
                "old-primary",
                is_unknown=False,
            )
        if verdict is LogVerdict.MOVED:
            self.state.suspect()
            raise Outage("the log is at another place than before: a failover or a restore", "moved", is_unknown=False)

    async def compare_heads(self, conn: PgConnection, acked: Mapping[int, int]) -> None:
        """Raises Outage if the log does not have what was acked, and has the watch look.

        `acked`: conversation -> seq. Storage that was set back shows in nothing else.
        """
        if not acked:
            return
        cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(conn)
        await cur.execute(HEADS, (arrays.BigintArray(list(acked)),), binary=True)
        heads = {row[0]: row[1] for row in await cur.fetchall()}
        if any(heads.get(id, 0) < seq for id, seq in acked.items()):
            # else that was found already, and these are acks of the log before
            if conn.generation == self.state.generation:
                self.state.suspect(is_behind=True)
            raise Outage("entries that were acked are not in the log", "moved", is_unknown=False)

    async def holds(self, conn: PgConnection, id: int, a: str, b: str, head: int) -> bool:
        """Whether the log has this conversation, of these two users, with `head` or a later entry.

        Raises Outage, psycopg.Error.
        """
        cur: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(conn)
        await cur.execute(HEADS, (arrays.BigintArray([id]),), binary=True)
        return any(row[1] >= head and (row[5], row[6]) == (a, b) for row in await cur.fetchall())


def _place(conn: PgConnection) -> tuple[str, str]:
    return conn.info.host, str(conn.info.port)


def _places(lists: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    """(host or address, port) of each host in libpq's lists."""
    names = lists.get("host") or lists.get("hostaddr") or [""]
    ports = lists.get("port") or [""]
    return [
        (name, port or DEFAULT_PORT)
        for name, port in zip(names, ports * len(names) if len(ports) == 1 else ports, strict=False)
    ]


STANDBY: Final = "the database is a standby and takes no writes: point database_url at the primary, or promote it"


async def close(conn: PgConnection, within_s: float = 1.0) -> None:
    """Close a connection, whatever state it is in. Never raises."""
    try:
        async with asyncio.timeout(within_s):
            await conn.close()
    except Exception as e:  # a connection in an unknown state may fail in any way
        log.debug("connection.close", error=repr(e))


def is_stale(conn: PgConnection, e: BaseException) -> bool:
    """Whether the session may be at fault, so that a new one could give another answer.

    A session keeps plans, which no longer fit after a column's type has changed. A session younger
    than `RENEW_S` has fresh plans: so connections are not replaced without end.
    """
    return faults.kind(e) in OF_SESSION and time.monotonic() - conn.opened_at > RENEW_S


OF_SESSION: Final = ("schema", "pooler", "internal", "other")
RENEW_S: Final = 5.0


async def is_alive(conn: PgConnection) -> bool:
    """Whether it answers within `PROVE_S`. If not, it is closed: no statement is under way."""
    try:
        async with asyncio.timeout(PROVE_S):
            await psycopg.AsyncRawCursor(conn).execute(PROVE, prepare=False)
    except (psycopg.Error, OSError, TimeoutError) as e:
        log.info("connection.silent", reason=faults.sentence(e))
        conn.pgconn.finish()
        return False
    return True


PROVE: Final = "SELECT"


async def sight(conn: PgConnection) -> Sight:
    """What this connection sees of the log."""
    cur = await psycopg.AsyncRawCursor(conn).execute(SIGHT)
    row = await cur.fetchone()
    if row is None:
        raise Outage("the table `meta` has no row; restore the database", "schema", is_unknown=False)
    return Sight(*row)


def check_encoding(conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    """Raises Outage if the database's encoding is not UTF-8: text is stored byte for byte."""
    encoding = conn.info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):  # None: a pooler does not say
        raise Outage(ENCODING.format(encoding), "encoding", is_unknown=False)


ENCODING: Final = "the database's encoding is {}, chatd needs UTF8: create it with ENCODING 'UTF8' TEMPLATE template0"


async def set_session(conn: PgConnection, settings: Mapping[str, str], *, standbys: bool = False) -> None:
    """Set the session, and read the settings back in another statement.

    `standbys`: a standby will do. Raises Outage where a setting does not hold, psycopg.Error where
    it cannot be set.
    """
    wanted = {
        **settings,
        **{name: value for name, (value, since) in NEWER.items() if conn.info.server_version >= since},
    }
    mark = f"{_life}.{next(_numbers)}"
    names = arrays.TextArray(list(wanted))
    is_durable = "synchronous_commit" not in wanted
    values = arrays.TextArray(list(wanted.values()))
    cur = await psycopg.AsyncRawCursor(conn).execute(_SET, (names, values, MARK, mark, is_durable), prepare=False)
    row = await cur.fetchone()
    assert row is not None
    before, _, pid, commit, then_values, started = row
    conn.backend = None if started is None else Backend(pid, started)
    shared = before and before in _open
    cur = await psycopg.AsyncRawCursor(conn).execute(_READ_BACK, (names, MARK), prepare=False)
    row = await cur.fetchone()
    assert row is not None
    if shared or row[0] != mark or row[6] != pid:
        raise Outage(faults.POOLER, "pooler", is_unknown=False)
    for name, now, then in (
        *zip(wanted, row[3], then_values, strict=True),
        ("synchronous_commit", row[1], commit or row[1]),
    ):
        if now != then:
            raise Outage(
                f"{name} is {now!r} although it was set to {then!r}: something between changes it",
                "settings",
                is_unknown=False,
            )
    if row[2] != "UTF8":
        raise Outage(ENCODING.format(row[2]), "encoding", is_unknown=False)
    if row[4] and not standbys:
        raise Outage(STANDBY, "standby", is_unknown=False)
    _open[mark] = conn
