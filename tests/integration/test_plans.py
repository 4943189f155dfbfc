"""What every statement reads does not depend on the day: buffers, in all states that the tables can be in when a session plans it.

A session keeps its plans. They are made on the tables as they are at that moment: empty on a fresh install, vacuumed while empty by an operator's nightly
job, holding one conversation, never analysed, or with a partition of today that has nothing in it yet. Then the tables fill up, and the plan stays.

    state: prepare the tables ► plan every statement in sessions as the product opens them ► fill up ► EXPLAIN (ANALYZE, BUFFERS) EXECUTE there

The log: 41 partitions; one conversation with 4,000 entries, half of them of today, 400 of 40; 10,000 users, 5,000 conversations without entries. A plan
with a scan too many, or by the wrong index, reads thousands of buffers here. `append` and `make_partition` are counted as a whole: what the statements
inside them read is counted in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from chatd import feedreader, retention, store, writer
from chatd.metrics import Metrics
from chatd.queries import folder, query
from chatd.store import Limits, Store
from tests.integration.logs import connect, nodes, one, only, partitions

pytestmark = pytest.mark.slow

DAYS, AHEAD = 33, 7
PARTITIONS: Final = DAYS + 1 + AHEAD
DEEP, DEEP_ROWS = 1, 4_000
CONVERSATIONS, ROWS = 401, 40  # with entries, the deep one among them; entries of each other one
QUIET = 5_000  # conversations without entries
HUB = 200  # conversations of one user, half of them on either side
FEED = 3_000
# What one look-up costs: pages of a small index and the row, which a plan on unvacuumed tables must look at in the heap as well.
PROBE = 4
EACH_PARTITION = 3 * PARTITIONS


class Case(NamedTuple):
    """One execution. args: what goes between the brackets of EXECUTE; most: buffers."""

    session: str
    types: str
    args: str
    most: int
    name: str = ""


def ints(values: Any) -> str:
    return "'{" + ",".join(map(str, values)) + "}'"


def texts(values: Any) -> str:
    return "'{" + ",".join(map(str, values)) + "}'"


def cids(*numbers: int) -> str:
    return "'{" + ",".join(f"00000000-0000-0000-0000-{n:012d}" for n in numbers) + "}'"


def append_args(messages: list[tuple[int, int, int]] = (), changes: list[tuple[int, int, int, int]] = ()) -> str:  # type: ignore[assignment]
    """messages: (conversation, number of the cid, flags); changes: (conversation, number of the cid, kind, ref)."""
    m, x = messages, changes
    return ", ".join([
        ints(v[0] for v in m), ints(0 for _ in m), cids(*(v[1] for v in m)), texts("hi" for _ in m), ints(v[2] for v in m),
        ints(v[0] for v in x), ints(0 for _ in x), cids(*(v[1] for v in x)), texts("ho" for _ in x), ints(v[2] for v in x), ints(v[3] for v in x),
        "'900 s'",
    ])  # fmt: skip


SOME: Final = range(100, 120)  # ordinary conversations
PEOPLE: Final = [f"a{n}" for n in SOME]
HEADS: Final = [ROWS for _ in SOME]
APPEND: Final = "bigint[], smallint[], text[], text[], smallint[], bigint[], smallint[], text[], text[], smallint[], bigint[], interval"
LATEST: Final = f"bigint, bigint, bigint, bigint"
FIRST_CID, NEW_CID = 1, 900_000_000

# By the name of the file; each with everything that decides what it reads.
CASES: Final[dict[str, list[Case]]] = {
    "append": [
        Case("lane", APPEND, append_args([(conv, NEW_CID + conv, 0) for conv in SOME]), 40 * len(SOME), "fresh"),
        Case("lane", APPEND, append_args([(DEEP, NEW_CID + n, 0) for n in range(20)]), 30 * 20, "fresh, one conversation"),
        Case("lane", APPEND, append_args([(conv, conv * 10_000 + ROWS, 0) for conv in SOME]), 30 * len(SOME), "dup of today"),
        Case("lane", APPEND, append_args([(conv, conv * 10_000 + 1, 2) for conv in SOME]), (60 + EACH_PARTITION) * len(SOME), "dup of long ago"),
        Case("lane", APPEND, append_args([(DEEP, NEW_CID + n, 3) for n in range(20)]), (30 + EACH_PARTITION) * 20, "retries over the rate, unknown"),
        Case("lane", APPEND, append_args([], [(DEEP, NEW_CID + n, 1, DEEP_ROWS - n) for n in range(5)]), (60 + 2 * EACH_PARTITION) * 5, "edit"),
        Case("lane", APPEND, append_args([], [(DEEP, NEW_CID + n, 2, DEEP_ROWS - n) for n in range(5)]), (60 + 2 * EACH_PARTITION) * 5, "delete"),
        Case("lane", APPEND, append_args([], [(DEEP, 10_000 + 30 + n, 1, 5) for n in range(5)]), (20 + EACH_PARTITION) * 5, "edit, dup"),
        Case("lane", APPEND, append_args([], [(DEEP, NEW_CID + n, 1, 9_999) for n in range(5)]), (20 + 2 * EACH_PARTITION) * 5, "edit of nothing"),
        Case("lane", APPEND, append_args(), 10, "nothing, as a lane that warms up"),
    ],
    "entries_after": [Case("reads", LATEST, f"{DEEP}, 1000, {DEEP_ROWS}, 51", EACH_PARTITION + 60), Case("reads", LATEST, "100, 0, 40, 51", 2 * EACH_PARTITION + 60, "whole")],
    "entries_before": [
        Case("reads", LATEST, f"{DEEP}, {DEEP_ROWS + 1}, 1, 51", EACH_PARTITION + 60),
        Case("reads", LATEST, f"{DEEP}, 60, 1, 51", EACH_PARTITION + 60, "oldest"),
        Case("reads", LATEST, f"100, {ROWS + 1}, 1, 51", 2 * EACH_PARTITION + 60, "whole"),
    ],
    "entries_many": [
        Case("reads", "bigint[], bigint[], bigint[], bigint", f"{ints(SOME)}, {ints(ROWS - 10 for _ in SOME)}, {ints(HEADS)}, 200", len(SOME) * (EACH_PARTITION + 20)),
        Case("reads", "bigint[], bigint[], bigint[], bigint", f"{ints(SOME)}, {ints(0 for _ in SOME)}, {ints(HEADS)}, 200", len(SOME) * (EACH_PARTITION + 80), "whole"),
    ],
    "feed_prune": [Case("feed", "text, text, bigint", "{seen}, {now}, 50000", 200)],
    "feed_since": [Case("feed", "text, bigint", f"{{seen}}, {2**60}", 30), Case("feed", "text, bigint", "NULL, 0", 0, "first")],
    "floors": [Case("retention", "bigint[]", ints(range(1, 101)), 100 * PROBE)],
    "flush_cursors": [
        Case("reads", "bigint[], bigint[], bigint[], bigint[], bigint[]", ", ".join([ints(SOME), ints(HEADS), ints(0 for _ in SOME), ints(HEADS), ints(0 for _ in SOME)]), 20 * len(SOME), "delivered"),
        Case("reads", "bigint[], bigint[], bigint[], bigint[], bigint[]", ", ".join([ints(SOME), ints(HEADS), ints(30 for _ in SOME), ints(HEADS), ints(20 for _ in SOME)]), (20 + 2 * EACH_PARTITION) * len(SOME), "read"),
    ],
    "flush_users": [Case("reads", "text[], bigint[]", f"{texts(PEOPLE)}, {ints(5 for _ in PEOPLE)}", 8 * len(PEOPLE))],
    "heads": [Case("reads", "bigint[]", ints(range(1, 101)), 100 * PROBE)],
    "list_changed": [
        Case("reads", "text, text, bigint, bigint, boolean, bigint[]", "'a100', '0', 0, 1000, true, '{}'", 5 * PROBE),
        Case("reads", "text, text, bigint, bigint, boolean, bigint[]", f"'b100', '{2**60}', 0, 1000, false, '{{100}}'", 5 * PROBE, "named"),
        Case("reads", "text, text, bigint, bigint, boolean, bigint[]", "'hub', '0', 0, 1000, true, '{}'", 2 * PROBE * HUB, "of many"),
    ],
    "list_conversations": [
        Case("reads", "text, bigint, bigint, bigint", "'b100', NULL, NULL, 50", 5 * PROBE),
        Case("reads", "text, bigint, bigint, bigint", "'hub', NULL, NULL, 50", PROBE * (HUB + 50), "of many"),
    ],
    "meta": [Case("reads", "", "", 2)],
    "partitions": [Case("retention", "float8, float8", "2592000, 86400", 8 * PARTITIONS)],
    "partitions_left": [Case("reads", "integer", "86400", 8 * PARTITIONS)],
    "raise_floors": [Case("retention", "bigint, bigint", "100, 20", 30 * 20)],
    "resolve": [
        Case("reads", "text[], text[], text[], text", f"{texts(PEOPLE)}, {texts(f'b{n}' for n in SOME)}, {texts(PEOPLE)}, '300'", 4 * PROBE * len(SOME)),
        Case("reads", "text[], text[], text[], text", f"{texts(PEOPLE)}, {texts(f'n{n}' for n in SOME)}, array_fill(NULL::text, ARRAY[{len(SOME)}]), '0'", 8 * PROBE * len(SOME), "new"),
    ],
    "seen": [Case("reads", "text[]", texts(PEOPLE), len(PEOPLE) * PROBE)],
    "states": [Case("feed", "text[], text", f"{texts([*PEOPLE, *(f'b{n}' for n in range(200, 220))])}, '0'", 40 * 3 * PROBE)],
    "states_of": [Case("feed", "bigint[]", ints(range(1, 101)), 100 * 2 * PROBE)],
}  # fmt: skip
# Statements that are too short for a file.
INLINE: Final[dict[str, tuple[str, Case]]] = {
    "make_partition": ("SELECT make_partition(clock_timestamp() + make_interval(secs => $1))", Case("reads", "float8", f"{(AHEAD + 1) * 86_400}", 3_000)),
    "make_partition, there": ("SELECT make_partition(clock_timestamp() + make_interval(secs => $1))", Case("reads", "float8", "0", 100)),
    "ping": ("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint", Case("reads", "", "", 0)),
}
ALL: Final = [(name, f"{name}: {case.name}" if case.name else name, query(name), case) for name, cases in CASES.items() for case in cases] + [
    (name, name, text, case) for name, (text, case) in INLINE.items()
]

# What a database may set for all sessions; with it costs mean nothing.
HOSTILE: Final = {
    "plan_cache_mode": "force_custom_plan", "enable_indexscan": "off", "enable_nestloop": "off", "enable_partition_pruning": "off", "enable_tidscan": "off",
    "max_parallel_workers_per_gather": "8", "parallel_setup_cost": "0", "parallel_tuple_cost": "0", "min_parallel_table_scan_size": "0",
    "min_parallel_index_scan_size": "0", "jit": "on", "jit_above_cost": "0", "random_page_cost": "0.1", "work_mem": "64kB",
    "default_statistics_target": "1",
}  # fmt: skip


# ---- the log -----------------------------------------------------------------------------------------------------------------------------


def quieten(conn: psycopg.Connection[Any]) -> None:
    """No autovacuum: it would analyse a table at a moment of its own."""
    tables = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname !~ '^_yoyo|^yoyo'"
    for (table,) in conn.execute(tables).fetchall():
        conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")


def people(conn: psycopg.Connection[Any]) -> None:
    conn.execute("INSERT INTO users (id, seen_ms) SELECT s || i, 1 FROM generate_series(1, 5000) i, unnest(ARRAY['a', 'b']) s ON CONFLICT DO NOTHING")
    insert = "INSERT INTO conversations (a, b) SELECT {}, {} FROM generate_series(1, %s) i ON CONFLICT DO NOTHING"
    conn.execute(insert.format("'a' || i", "'b' || i"), (CONVERSATIONS,))
    conn.execute(insert.format("'hub'", "'p' || i"), (HUB // 2,))
    conn.execute(insert.format("'a' || i", "'hub'"), (HUB // 2,))
    conn.execute(insert.format("'q' || i", "'r' || i"), (QUIET,))
    conn.execute("UPDATE conversations SET head = 1, na = 1 WHERE 'hub' IN (a, b)")
    conn.execute("INSERT INTO cursors (conv, a_delivered, xid) SELECT id, 1, pg_current_xact_id() FROM conversations ON CONFLICT DO NOTHING")


def log(conn: psycopg.Connection[Any], *, old: bool = True, today: bool = True) -> None:
    """Entries: seqs and times of a conversation rise together; every tenth is an edit of the one before. Half of the deep one is of today."""
    conn.execute(
        """
        INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body, ref, ref_ts)
        SELECT e.conv, e.seq, e.ts, ('00000000-0000-0000-0000-' || lpad((e.conv * 10000 + e.seq)::text, 12, '0'))::uuid, e.seq, 0, 0,
            (e.seq %% 10 = 0)::integer, CASE WHEN e.seq %% 10 > 0 THEN repeat('x', 80) END,
            CASE WHEN e.seq %% 10 = 0 THEN e.seq - 1 END, CASE WHEN e.seq %% 10 = 0 THEN e.before END
        FROM (
            SELECT v.conv, s.seq, at.ts, lag(at.ts) OVER (PARTITION BY v.conv ORDER BY s.seq) AS before
            FROM (SELECT c AS conv, CASE c WHEN %(deep)s THEN %(deep_rows)s ELSE %(rows)s END AS rows FROM generate_series(1, %(convs)s) c) v,
                generate_series(1, v.rows) s (seq),
                LATERAL (SELECT CASE WHEN s.seq > v.rows / 2 AND v.conv = %(deep)s OR s.seq > v.rows - 3 THEN clock.day
                    ELSE clock.day - %(days)s * interval '1 day' * (1 - s.seq::float8 / v.rows) - interval '1 day' * (s.seq < v.rows)::integer END
                    + interval '1 ms' * s.seq AS ts) at
        ) e
        WHERE CASE WHEN e.ts < clock.day THEN %(old)s ELSE %(today)s END
        """.replace("clock.day", "date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"),
        {"deep": DEEP, "deep_rows": DEEP_ROWS, "rows": ROWS, "convs": CONVERSATIONS, "days": DAYS - 1, "old": old, "today": today},
    )
    conn.execute(
        "UPDATE conversations v SET head = e.seq, na = e.seq, last_ts = e.ts"
        " FROM (SELECT DISTINCT ON (conv) conv, seq, ts FROM entries ORDER BY conv, seq DESC) e WHERE e.conv = v.id"
    )


def feed(conn: psycopg.Connection[Any]) -> None:
    for _ in range(3):
        conn.execute("INSERT INTO feed (kind, data) SELECT 0, ARRAY[i, i] FROM generate_series(1, %s) i", (FEED // 3,))


def full(conn: psycopg.Connection[Any]) -> None:
    people(conn)
    log(conn)
    feed(conn)


def one_conversation(conn: psycopg.Connection[Any]) -> None:
    conn.execute("INSERT INTO conversations (a, b, head) VALUES ('a1', 'b1', 300)")
    conn.execute("INSERT INTO users VALUES ('a1', 1), ('b1', 1)")
    conn.execute("INSERT INTO cursors (conv, xid) VALUES (1, pg_current_xact_id())")
    conn.execute(
        "INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body)"
        " SELECT 1, 10000 + i, now() - interval '1 s' * i, gen_random_uuid(), i, 0, 0, 0, 'hi' FROM generate_series(1, 300) i"
    )
    conn.execute("VACUUM ANALYZE")


def nothing(conn: psycopg.Connection[Any]) -> None:
    pass


def analyse(conn: psycopg.Connection[Any]) -> None:
    conn.execute("VACUUM ANALYZE")


def all_but_today(conn: psycopg.Connection[Any]) -> None:
    people(conn)
    log(conn, today=False)
    feed(conn)
    analyse(conn)


def hostile(conn: psycopg.Connection[Any]) -> None:
    for name, value in HOSTILE.items():
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {name} = '{value}'")
    analyse(conn)


# name -> (before the statements are planned, after that)
STATES: Final[dict[str, tuple[Callable[..., None], Callable[..., None]]]] = {
    "planned on empty tables": (nothing, full),
    "planned on tables that were vacuumed empty": (analyse, full),
    "planned when there was one conversation": (one_conversation, full),
    "never analysed": (full, nothing),
    "analysed": (lambda conn: (full(conn), analyse(conn)), nothing),
    "today's partition was new": (all_but_today, lambda conn: log(conn, old=False)),
    "a database that is set otherwise": (hostile, full),
}


# ---- sessions ------------------------------------------------------------------------------------------------------------------------------


class Sessions:
    """One of each kind that the product opens, with what it prepares in it."""

    def __init__(self, conninfo: str, stack: ExitStack) -> None:
        kinds = {"reads": store.READ_OPTIONS, "lane": writer.LANE_OPTIONS, "feed": feedreader.OPTIONS, "retention": ""}
        self.conns = {name: stack.enter_context(connect(conninfo, options=options, prepare_threshold=None)) for name, options in kinds.items()}
        for name, value in retention.SESSION.items():
            self.conns["retention"].execute(f"SET {name} = '{value}'")
        self._texts: dict[tuple[str, str], str] = {}

    def prepare(self, text: str, case: Case) -> tuple[psycopg.Connection[Any], str]:
        """The session and the name of the statement in it: one statement, and one plan, however many cases."""
        conn = self.conns[case.session]
        if (found := self._texts.get((case.session, text))) is None:
            found = self._texts[case.session, text] = f"s{len(self._texts)}"
            conn.execute(f"PREPARE {found} {f'({case.types})' if case.types else ''} AS {text}")
        return conn, found


class Read(NamedTuple):
    """What a case read, and scans that do not know where to look: (node, table)."""

    buffers: int
    strays: list[tuple[str, str]]


def place(conninfo: str, text: str, args: str) -> tuple[str, str]:
    """Fills in what only the database knows: today's partition, snapshots of before and after the last rows of the feed."""
    with connect(conninfo) as conn:
        if "PARTITION p" in text or "PARTITION e" in text:
            text = text.replace("PARTITION", one(conn, "SELECT partition_name(partition_start(clock_timestamp(), 86400))"))
        if "{seen}" in args:
            seen = one(conn, "SELECT pg_current_snapshot()::text")
            for _ in range(10):
                conn.execute("INSERT INTO feed (kind, data) VALUES (0, '{2,2}')")
            args = args.replace("{seen}", f"'{seen}'").replace("{now}", f"'{one(conn, 'SELECT pg_current_snapshot()::text')}'")
    return text, args


def plan_all(conninfo: str, sessions: Sessions) -> None:
    """Execute everything once; what it writes is rolled back."""
    for _, _, text, case in ALL:
        text, args = place(conninfo, text, case.args)
        conn, name = sessions.prepare(text, case)
        with conn.transaction(force_rollback=True):
            conn.execute(f"EXECUTE {name} ({args})" if args else f"EXECUTE {name}")


def read_all(conninfo: str, sessions: Sessions) -> dict[str, Read]:
    found = {}
    for _, label, text, case in ALL:
        text, args = place(conninfo, text, case.args)
        conn, name = sessions.prepare(text, case)
        execute = f"EXECUTE {name} ({args})" if args else f"EXECUTE {name}"
        with conn.transaction(force_rollback=True):
            conn.execute(execute)  # pages that only the first look writes to: hints, free space
        with conn.transaction(force_rollback=True):
            found[label] = read(conn, execute)
    return found


def read(conn: psycopg.Connection[Any], execute: str) -> Read:
    plan = one(conn, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}")[0]["Plan"]
    scans = [node for node in nodes(plan) if "Relation Name" in node and node["Node Type"] != "ModifyTable"]
    strays = [(node["Node Type"], node["Relation Name"]) for node in scans if "Index Cond" not in node and "TID Cond" not in node]
    # A node counts what is below it; but a statement in WITH that nobody reads runs after the node above is done, and counts for itself.
    return Read(max(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in nodes(plan)), strays)


# ---- the tests -----------------------------------------------------------------------------------------------------------------------------

# As it was: the message of an edit was found by a join.
OLD_ENTRIES_MANY: Final = """
SELECT w.conv, e.seq, coalesce(e.body, m.body)
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS w (conv, after, upto)
CROSS JOIN LATERAL (
    SELECT * FROM entries p WHERE p.conv = w.conv AND p.seq > w.after AND p.seq <= w.upto ORDER BY p.seq LIMIT $4
) e LEFT JOIN LATERAL (
    SELECT t.body FROM entries t WHERE e.kind = 1 AND t.conv = e.conv AND t.seq = e.ref AND t.ts = e.ref_ts
) m ON true
ORDER BY w.conv, e.seq"""
OLD_OPTIONS: Final = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c jit=off"


class Measured(NamedTuple):
    reads: dict[str, dict[str, Read]]  # by state and case
    old: dict[str, Read]  # the statement as it was, in the first two states: with the settings of today, and of then


@pytest.fixture(scope="module")
def measured(postgres: Any, template_db: str) -> Measured:
    """Everything in every state; some 10 s."""
    reads: dict[str, dict[str, Read]] = {}
    old: dict[str, Read] = {}
    with connect(make_conninfo(postgres.conninfo, dbname="postgres")) as admin:
        for n, (state, (before, after)) in enumerate(STATES.items()):
            database = f"chatd_plans_{n}"
            admin.execute(f"CREATE DATABASE {database} TEMPLATE {template_db}")
            conninfo = make_conninfo(postgres.conninfo, dbname=database)
            try:
                with ExitStack() as stack:
                    conn = stack.enter_context(connect(conninfo))
                    partitions(conn, back=DAYS, ahead=AHEAD)
                    quieten(conn)
                    before(conn)
                    sessions = Sessions(conninfo, stack)
                    plan_all(conninfo, sessions)
                    faulty = {}
                    case = CASES["entries_many"][0]
                    for label, options in {"then": OLD_OPTIONS, "today": store.READ_OPTIONS}.items() if n < 2 else ():
                        faulty[label] = stack.enter_context(connect(conninfo, options=options, prepare_threshold=None))
                        faulty[label].execute(f"PREPARE old ({case.types}) AS {OLD_ENTRIES_MANY}")
                        faulty[label].execute(f"EXECUTE old ({case.args})")
                    after(conn)
                    reads[state] = read_all(conninfo, sessions)
                    old |= {f"{state}, settings of {label}": read(faulty[label], f"EXECUTE old ({case.args})") for label in faulty}
            finally:
                admin.execute(f"DROP DATABASE {database} WITH (FORCE)")
    return Measured(reads, old)


def test_every_query_of_the_folder_has_its_cases() -> None:
    assert set(CASES) == {path.stem for path in (folder() / "queries").glob("*.sql")}


@pytest.mark.parametrize("state", STATES)
def test_no_statement_reads_more_than_it_must(measured: Measured, state: str) -> None:
    most = {label: case.most for _, label, _, case in ALL}
    over = {label: (found.buffers, most[label]) for label, found in measured.reads[state].items() if found.buffers > most[label]}
    assert over == {}


@pytest.mark.parametrize("state", STATES)
def test_every_scan_knows_where_to_look(measured: Measured, state: str) -> None:
    """`meta` has one row."""
    found = measured.reads[state]
    assert {label: one.strays for label, one in found.items() if any(table != "meta" for _, table in one.strays)} == {}


def test_the_state_makes_no_difference(measured: Measured) -> None:
    for _, label, _, _ in ALL:
        buffers = {state: reads[label].buffers for state, reads in measured.reads.items()}
        print(f"{label:45} {list(buffers.values())}")
    for _, label, _, case in ALL:
        buffers = {state: reads[label].buffers for state, reads in measured.reads.items()}
        assert max(buffers.values()) <= 1.5 * min(buffers.values()) + 20, (label, buffers)


def test_the_old_resync_would_be_seen(measured: Measured) -> None:
    most = CASES["entries_many"][0].most
    for label, found in measured.old.items():
        print(label, found)
