"""What each statement reads from a log of --rows messages over 30 days, in buffers: planned on
empty tables, and planned again when it is analysed.

Sessions are set as a node sets them and plan every statement on the empty database; then the log is
filled by COPY (10M rows take some minutes), with autovacuum off. Each statement is explained in
these sessions, and what it writes is rolled back. `empty`: as planned on empty tables; `analysed`:
after VACUUM ANALYZE, when PostgreSQL has planned again. `ratio` is the largest of empty to
analysed: 1 where it makes no difference. Buffers say no time: the figures are the same on every
machine, and for an index one page more for each level that it gains.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from bench import fill, report
from bench.report import say
from bench.target import Target
from chatd.core.conversation import pair_check
from chatd.ids import UserId
from chatd.postgres import change_feed_reader, connection
from chatd.postgres.queries import query

EXAMPLES = """\
  python -m bench plans                     10M messages, some 8 minutes
  python -m bench plans --rows 100k         a quick look"""
SOME: Final = 20  # conversations of a statement that takes several
RATIO_MAX: Final = 1.1
NO_CONVERSATION: Final = "CH002"  # sql/functions/append.sql
SLACK: Final = 15  # buffers: what the layout of a table makes of it
FENCE: Final = (
    "SELECT epoch || ' ' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || '/' || tableoid FROM meta"
)


class Probe(NamedTuple):
    """One statement: a query by name, the session's settings, its parameters' types and values, and
    the most buffers.
    """

    name: str
    settings: Any
    types: str
    args: tuple[Any, ...]
    most: int


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows",
        type=fill.rows,
        default=10_000_000,
        metavar="N",
        help="messages in the database, such as 500k (default: 10M)",
    )


async def run(options: argparse.Namespace) -> int:
    logs, now = fill.plan(options.rows), time.time()
    async with Target(options) as target:
        target.need_own("plans: what a node's statements read")
        empty, analysed, partitions = await asyncio.to_thread(_measure, options, target.conninfo, logs, now)
        figures: dict[str, Any] = {
            "rows": options.rows,
            "partitions": partitions,
            "statements": len(empty),
            "over": sorted(name for name, (buffers, most) in {**empty, **analysed}.items() if buffers > most),
            "ratio": max(round(empty[name][0] / max(analysed[name][0], SLACK), 3) for name in empty),
            "buffers": {name: [empty[name][0], analysed[name][0], most] for name, (_, most) in empty.items()},
            **report.context(options, target),
        }
    figures["over_n"] = len(figures.pop("over"))
    print(
        report.columns(
            [("statement", "empty", "analysed", "most"), *((n, *map(str, b)) for n, b in figures["buffers"].items())],
            left={0},
        )
    )
    return report.finish(options, figures, {"over_n": 0.0, "ratio": RATIO_MAX})


Found = dict[str, tuple[int, int]]


def _measure(options: argparse.Namespace, conninfo: str, logs: list[fill.Log], now: float) -> tuple[Found, Found, int]:
    """(buffers, most) by name: planned on empty tables, and on analysed ones."""
    sessions: dict[int, psycopg.Connection[Any]] = {}
    try:
        with psycopg.connect(conninfo, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET autovacuum = off")
            conn.execute("SELECT pg_reload_conf()")
            fill.make_partitions(conn, now)
            partitions = _one(conn, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'entries'::regclass")
            fence = _one(conn, FENCE)
        probes = _probes(logs, partitions, fence)
        for n, probe in enumerate(probes):
            if (session := sessions.get(id(probe.settings))) is None:
                session = sessions[id(probe.settings)] = psycopg.connect(
                    conninfo, autocommit=True, prepare_threshold=None
                )
                for name, value in probe.settings.items():
                    session.execute("SELECT set_config(%s, %s, false)", (name, value))
            session.execute(f"PREPARE s{n} ({probe.types}) AS {query(probe.name.split(',')[0])}")
            _explain(session, n, probe, is_empty=True)
        fill.fill(conninfo, options.rows, options.seed, now, analyse=False)
        empty = {
            probe.name: (_explain(sessions[id(probe.settings)], n, probe), probe.most) for n, probe in enumerate(probes)
        }
        say("vacuum, analyze")
        with psycopg.connect(conninfo, autocommit=True) as conn:
            conn.execute("VACUUM (ANALYZE)")
        analysed = {
            probe.name: (_explain(sessions[id(probe.settings)], n, probe), probe.most) for n, probe in enumerate(probes)
        }
        return empty, analysed, partitions
    finally:
        for session in sessions.values():
            session.close()


def _one(conn: psycopg.Connection[Any], statement: str) -> Any:
    row = conn.execute(statement).fetchone()
    assert row is not None
    return row[0]


def _explain(conn: psycopg.Connection[Any], n: int, probe: Probe, is_empty: bool = False) -> int:
    """Buffers of the second execution: the first one reads the catalog.

    On empty tables `append` refuses what it does not know, planned by then.
    """
    execute = sql.SQL("EXECUTE {}({})").format(sql.Identifier(f"s{n}"), sql.SQL(", ").join(map(_literal, probe.args)))
    row = None
    for _ in range(2):
        try:
            with conn.transaction(force_rollback=True):
                row = conn.execute(sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}").format(execute)).fetchone()
        except psycopg.DatabaseError as e:
            if not is_empty or e.sqlstate != NO_CONVERSATION:
                raise
            return 0
    assert row is not None
    return max(int(node["Shared Hit Blocks"] + node["Shared Read Blocks"]) for node in _nodes(row[0][0]["Plan"]))


def _literal(value: Any) -> sql.Composable:
    if isinstance(value, list):
        return sql.Literal("{" + ",".join(map(str, value)) + "}")
    return sql.Literal(value)


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


def _probes(logs: list[fill.Log], partitions: int, fence: str) -> list[Probe]:
    """Every statement of the message path and of reads, on logs of each size."""
    sizes = {size: [log for log in logs if log.size == size and not log.base] for size in ("deep", "middle", "small")}
    reads, feed, lane = connection.READ, change_feed_reader.SETTINGS, connection.LANE
    each = 4 * partitions  # three pages of an index and a row
    page = each + 60
    some = sizes["small"][:SOME]
    n, ids, people = len(some), [log.id for log in some], [log.b if log.a == fill.HUB else log.a for log in some]
    probes = []
    for size, found in sizes.items():
        log, paged = found[0], "bigint, bigint, bigint, bigint"
        probes += [
            Probe(f"entries_before, {size}, newest", reads, paged, (log.id, log.head + 1, 1, 51), page),
            Probe(f"entries_before, {size}, oldest", reads, paged, (log.id, 60, 1, 51), page),
            Probe(f"entries_after, {size}, middle", reads, paged, (log.id, log.head // 2, log.head, 51), page),
        ]
    heads = [log.head for log in some]
    probes += [
        Probe(
            "entries_many",
            reads,
            "bigint[], bigint[], bigint[], bigint",
            (ids, [head - 10 for head in heads], heads, 200),
            (each + 20) * n,
        ),
        Probe("heads", reads, "bigint[]", (ids,), 4 * n),
        Probe("floors", reads, "bigint[]", (ids,), 4 * n),
        Probe("seen", reads, "text[]", (people,), 4 * n),
        Probe("states_of", feed, "bigint[]", (ids,), 8 * n),
        Probe("states", feed, "text[], text", (people, "0"), 8 * n),
        Probe(
            "resolve",
            reads,
            "text[], text[], text[], text",
            ([log.a for log in some], [log.b for log in some], people, "0"),
            12 * n,
        ),
        Probe(
            "list_changed",
            reads,
            "text, bigint, bigint, bigint, boolean, bigint[], bigint",
            (people[0], 0, 0, 1000, True, [], 0),
            20,
        ),
        Probe("list_conversations", reads, "text, bigint, bigint, bigint", (people[0], None, None, 50), 20),
        Probe(
            "flush_cursors",
            reads,
            "bigint[], bigint[], bigint[], bigint[], bigint[]",
            (ids, heads, [0] * n, heads, [0] * n),
            20 * n,
        ),
        Probe(
            "flush_cursors, read",
            reads,
            "bigint[], bigint[], bigint[], bigint[], bigint[]",
            (ids, heads, [head - 1 for head in heads], heads, [head - 1 for head in heads]),
            (20 + 2 * each) * n,
        ),
        Probe("flush_users", reads, "text[], bigint[]", (people, [2**52] * n), 10 * n),
        *_batches(lane, sizes, fence, each),
    ]
    return probes


def _batches(lane: Any, sizes: dict[str, list[fill.Log]], fence: str, each: int) -> list[Probe]:
    """Fresh messages, retries that are probed for in all of the log, edits of a long conversation's
    last and first message.
    """
    messages_types, changes_types = (
        "bigint[], text[], text[], integer[]",
        "bigint[], smallint[], text[], text[], smallint[], bigint[], integer[]",
    )
    types = f"text, integer, integer, {messages_types}, {changes_types}, interval"
    some, deep = sizes["small"][:SOME], sizes["deep"][0]

    def flags_of(log: fill.Log, flags: int) -> int:
        return flags | pair_check(UserId(log.a), UserId(log.b)) << 3

    def messages(flags: int) -> tuple[Any, ...]:
        cids = [str(uuid.UUID(int=n + 1)) for n in range(len(some))]
        batch = [[log.id for log in some], cids, ["hi"] * len(some), [flags_of(log, flags) for log in some]]
        return (fence, len(some), flags, *batch, *([[]] * 7), "900 s")

    refs = [deep.head - 50 - n for n in range(5) if (deep.head - 50 - n) % fill.PERIOD]
    edits = [
        [deep.id] * len(refs),
        [fill.side_of(ref) for ref in refs],
        [str(uuid.UUID(int=99 + n)) for n in range(len(refs))],
        ["ho"] * len(refs),
    ]
    edits += [[2] * len(refs), refs, [flags_of(deep, 0) >> 3] * len(refs)]
    return [
        Probe("append, nothing", lane, types, (fence, 0, 0, *([[]] * 11), "900 s"), 10),
        Probe("append, fresh", lane, types, messages(0), 40 * len(some)),
        Probe("append, retries", lane, types, messages(2), (40 + each) * len(some)),
        Probe("append, deletes", lane, types, (fence, 1, 0, *([[]] * 4), *edits, "900 s"), (60 + 2 * each) * len(refs)),
    ]
