"""The log of test_plans.py, every statement that is run over it, and the most buffers that each may
read.

The log: 41 partitions; one conversation (DEEP) with 4,000 entries, half of them of today, 400 of 40
over 33 days; 4,000 users; 2,200 conversations without entries; a user with 200 conversations. A
plan with a scan too many, or by the wrong index, reads thousands of buffers here.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import psycopg

from chatd.core.conversation import pair_check
from chatd.ids import UserId
from chatd.postgres.history_reads import AFTER
from chatd.postgres.queries import query

DAYS: Final = 33
AHEAD: Final = 7
PARTITIONS: Final = DAYS + 1 + AHEAD
DEEP: Final = 1
DEEP_ROWS: Final = 4_000
CONVERSATIONS: Final = 401  # with entries; their ids are 1 ... 401, and N is between aN and bN
ROWS: Final = 40
HUB: Final = 200
QUIET: Final = 2_000

SOME: Final = range(100, 120)  # ordinary conversations
N: Final = len(SOME)
PEOPLE: Final = [f"a{n}" for n in SOME]
NEW_CID: Final = 900_000_000
# What one look-up reads: the pages of a small index and the row. A plan on tables that nobody has
# vacuumed must look at the row in any case.
PROBE: Final = 4
EACH_PARTITION: Final = 3 * PARTITIONS
SWEPT: Final = 400  # both tables, from end to end


class Case(NamedTuple):
    """One execution. args: what goes between the brackets of EXECUTE; most: buffers; name: beside
    other cases of the same statement.

    In args {seen} and {now} stand for snapshots of before and after the last rows of the feed,
    {fence} for what `append` is fenced with, {epoch} for the log's.
    """

    session: str
    types: str
    args: str
    most: int
    name: str = ""


def ints(values: Iterable[int]) -> str:
    return "'{" + ",".join(map(str, values)) + "}'"


def texts(values: Iterable[str]) -> str:
    return "'{" + ",".join(values) + "}'"


def cids(numbers: Iterable[int]) -> str:
    """Spread over the index as random ones are."""
    return texts(str(uuid.UUID(hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest())) for n in numbers)


def cid_of(conv: int, seq: int) -> int:
    return conv * 10_000 + seq


def check(conv: int) -> int:
    return pair_check(UserId(f"a{conv}"), UserId(f"b{conv}"))


def batch(
    messages: Sequence[tuple[int, int, int]] = (),
    changes: Sequence[tuple[int, int, int, int]] = (),
    named: Sequence[int] = (),
) -> str:
    """messages:

    (conversation, number of the cid, flags); changes: (conversation, number of the cid, kind, ref);
    named: cids of what they change.
    """
    m, x = messages, changes
    m_any = 0
    for _, _, flags in m:
        m_any |= flags
    return ", ".join([
        "{fence}", str(len({v[0] for v in [*m, *x]})), str(m_any),
        ints(v[0] for v in m), cids(v[1] for v in m), texts("hi" for _ in m), ints(v[2] | check(v[0]) << 3 for v in m),
        ints(v[0] for v in x), ints(0 for _ in x), cids([*(v[1] for v in x), *named]), texts("ho" for _ in x),
        ints(v[2] for v in x), ints(v[3] for v in x),
        ints(check(v[0]) for v in x), "'900 s'",
    ])  # fmt: skip


def each(value: int) -> str:
    return ints(value for _ in SOME)


_BATCH: Final = (
    "text, integer, integer, bigint[], text[], text[], integer[],"
    " bigint[], smallint[], text[], text[], smallint[], bigint[], integer[], interval"
)
_PAGE: Final = "bigint, bigint, bigint, bigint"
_PROVEN: Final = "bigint, bigint, bigint, bigint, text, bigint, bigint, boolean"
_MANY: Final = "bigint[], bigint[], bigint[], bigint"
_HELLO: Final = "text, bigint, text, bigint, boolean, bigint[], bigint"
_SWEEP: Final = "text[], bigint[], bigint[], bigint"
_NOW: Final = (  # marks of now
    "array_fill(pg_snapshot_xmax(pg_current_snapshot())::text::bigint, ARRAY[20]),"
    " array_fill((extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, ARRAY[20])"
)
_CURSORS: Final = "bigint[], bigint[], bigint[], bigint[], bigint[]"
_PAIRS: Final = "text[], text[], text[], text"

# By the name of the file, with all that decides what it reads. The first of `append` plans it as a
# lane that warms up does.
CASES: Final[dict[str, list[Case]]] = {
    "append": [
        Case("lane", _BATCH, batch(), 10, "nothing"),
        Case(
            "lane",
            _BATCH,
            batch([], [(DEEP, NEW_CID + n, 1, 9_999) for n in range(5)]),
            (20 + 5 * PARTITIONS) * 5,
            "edit of nothing",
        ),
        Case(
            "lane",
            _BATCH,
            batch([], [(DEEP, cid_of(DEEP, 3_990 + n), 1, 5) for n in range(5)]),
            (20 + EACH_PARTITION) * 5,
            "edit, dup",
        ),
        Case(
            "lane",
            _BATCH,
            batch([], [(DEEP, NEW_CID + n, 1, DEEP_ROWS - 5 + n) for n in range(5)]),
            (20 + 5 * PARTITIONS) * 5,
            "edit",
        ),
        Case(
            "lane",
            _BATCH,
            batch([], [(DEEP, NEW_CID + n, 1, 0) for n in range(4)], [cid_of(DEEP, 3_991 + n) for n in range(4)]),
            (20 + 5 * PARTITIONS) * 4,
            "edit, named by cid",
        ),
        Case(
            "lane",
            _BATCH,
            batch([], [(DEEP, NEW_CID + n, 2, 5 + n) for n in range(4)]),
            (40 + EACH_PARTITION) * 4,
            "delete",
        ),
        Case(
            "lane",
            _BATCH,
            batch([(DEEP, NEW_CID + n, 3) for n in range(20)]),
            (10 + EACH_PARTITION) * 20,
            "probes for what is not there",
        ),
        Case("lane", _BATCH, batch([(c, cid_of(c, ROWS), 0) for c in SOME]), 12 * N, "dup of today"),
        Case("lane", _BATCH, batch([(c, cid_of(c, 1), 2) for c in SOME]), (20 + EACH_PARTITION) * N, "dup of long ago"),
        Case("lane", _BATCH, batch([(c, NEW_CID + c, 0) for c in SOME]), 30 * N, "fresh"),
        Case("lane", _BATCH, batch([(DEEP, NEW_CID + n, 0) for n in range(20)]), 20 * 20, "fresh, in one conversation"),
    ],
    "entries_after": [
        Case("reads", _PAGE, f"{DEEP}, 1000, {DEEP_ROWS}, 51", EACH_PARTITION + 60),
        Case("reads", _PAGE, f"100, 0, {ROWS}, 51", EACH_PARTITION + 60, "whole"),
    ],
    "entries_before": [
        Case("reads", _PAGE, f"{DEEP}, {DEEP_ROWS + 1}, 1, 51", EACH_PARTITION + 60),
        Case("reads", _PAGE, f"{DEEP}, 60, 1, 51", EACH_PARTITION + 60, "oldest"),
        Case("reads", _PAGE, f"100, {ROWS + 1}, 1, 51", EACH_PARTITION + 60, "whole"),
    ],
    "entries_many": [
        Case("reads", _MANY, f"{ints(SOME)}, {each(ROWS - 10)}, {each(ROWS)}, 200", (EACH_PARTITION + 20) * N),
        Case("reads", _MANY, f"{ints(SOME)}, {each(0)}, {each(ROWS)}, 200", (EACH_PARTITION + 60) * N, "whole"),
        Case(
            "reads",
            _MANY,
            f"'{{{DEEP}}}', '{{3900}}', '{{{DEEP_ROWS}}}', 200",
            EACH_PARTITION + 160,
            "edits in a long one",
        ),
    ],
    "feed_prune": [Case("feed", "text, text, bigint", "{seen}, {now}, 50000", 60)],
    "feed_since": [
        Case("feed", "text, bigint, bytea", f"{{seen}}, {2**60}, ''", 10),
        Case("feed", "text, bigint, bytea", f"{{seen}}, {2**60}, '\\x0102030405060708'", 10, "of some"),
        Case("feed", "text, bigint, bytea", "NULL, 0, ''", 0, "first"),
    ],
    "floors": [Case("retention", "bigint[]", ints(range(1, 101)), 100 * PROBE)],
    "flush_cursors": [
        Case("reads", _CURSORS, f"{ints(SOME)}, {each(ROWS)}, {each(0)}, {each(ROWS)}, {each(0)}", 20 * N, "delivered"),
        Case(
            "reads",
            _CURSORS,
            f"{ints(SOME)}, {each(ROWS)}, {each(30)}, {each(ROWS)}, {each(20)}",
            (20 + 2 * EACH_PARTITION) * N,
            "read",
        ),
    ],
    "flush_users": [Case("reads", "text[], bigint[]", f"{texts(PEOPLE)}, {each(5)}", 2 * PROBE * N)],
    "cursors_locked": [Case("reads", "bigint[]", ints(SOME), 3 * PROBE * N)],
    "users_locked": [Case("reads", "text[]", texts(PEOPLE), 3 * PROBE * N)],
    "backends": [Case("reads", "integer[], bigint[]", "'{1,2}', '{1,2}'", 4)],
    "heads_decided": [Case("reads", "bigint[]", ints(SOME), 3 * PROBE * N)],
    "heads": [Case("reads", "bigint[]", ints(range(1, 101)), 100 * PROBE)],
    "list_changed": [
        Case("reads", _HELLO, "'a110', 0, '', 1000, true, '{}', 0", 4 * PROBE),
        Case("reads", _HELLO, f"'b110', {2**60}, '', 1000, false, '{{110}}', 0", 4 * PROBE, "named"),
        Case("reads", _HELLO, "'hub', 0, '', 1000, true, '{}', 0", PROBE * HUB, "of many"),
        Case("reads", _HELLO, "'hub', 0, 'p50', 10, true, '{}', 0", 2 * PROBE * 10 + 2 * PROBE, "a page of many"),
    ],
    "list_changed_many": [
        Case("reads", _SWEEP, f"{texts(PEOPLE)}, {_NOW}, 1000", SWEPT),
        Case("reads", _SWEEP, f"{texts(PEOPLE)}, {each(0)}, {each(0)}, 1000", SWEPT + PROBE * 3_000, "all"),
    ],
    "table_sizes": [Case("reads", "", "", 4 * PROBE)],
    "list_conversations": [
        Case("reads", "bigint[]", "'{110}'", 2 * PROBE),
        Case("reads", "bigint[]", ints(range(10_001, 10_051)), 2 * PROBE * 50, "a page"),
    ],
    "list_recent": [
        Case("reads", "text", "'b110'", 4 * PROBE),
        Case("reads", "text", "'hub'", 2 * PROBE * HUB, "of many"),
    ],
    "load_conversations": [
        Case(
            "reads",
            "bigint[], text[], text[]",
            f"{ints(SOME)}, {texts(PEOPLE)}, {texts(f'b{n}' for n in SOME)}",
            2 * 3 * PROBE * N,
        ),
    ],
    "open_pairs": [
        Case("reads", "text[], text[]", f"{texts(PEOPLE)}, {texts(f'b{n}' for n in SOME)}", 2 * PROBE * N),
    ],
    "user_report": [
        Case("reads", "text, bigint", "'b110', 20", 4 * PROBE),
        Case("reads", "text, bigint", "'hub', 20", PROBE * HUB, "of many"),
    ],
    "history_proven": [
        Case("reads", _PROVEN, f"{DEEP}, {DEEP_ROWS + 1}, 1, 51, {{epoch}}, 1, 1, false", EACH_PARTITION + 70),
        Case("reads", _PROVEN, f"{DEEP}, 60, 1, 51, {{epoch}}, 1, 1, false", EACH_PARTITION + 70, "oldest"),
        Case(
            "reads", _PROVEN, f"{DEEP}, {DEEP_ROWS + 1}, 1, 51, {{epoch}}, 1000000, 1, false", 2 * PROBE + 2, "behind"
        ),
        Case("reads", _PROVEN, f"{DEEP}, {DEEP_ROWS + 1}, 1, 51, 'other', 1, 1, false", 2 * PROBE + 2, "another log"),
    ],
    "meta": [Case("reads", "", "", 3)],
    "partitions": [Case("retention", "float8, float8", "2592000, 86400", 6 * PARTITIONS)],
    "partitions_left": [Case("reads", "bigint", "86400", 6 * PARTITIONS)],
    "raise_floors": [Case("retention", "bigint, bigint", "100, 20", 20 * 20)],
    "resolve": [
        Case(
            "reads", _PAIRS, f"{texts(PEOPLE)}, {texts(f'b{n}' for n in SOME)}, {texts(PEOPLE)}, '300'", 3 * PROBE * N
        ),
        Case(
            "reads",
            _PAIRS,
            f"{texts(PEOPLE)}, {texts(f'n{n}' for n in SOME)}, array_fill(NULL::text, ARRAY[{N}]), '0'",
            6 * PROBE * N,
            "new",
        ),
    ],
    "seen": [Case("reads", "text[]", texts(PEOPLE), N * PROBE)],
    "user_known": [Case("reads", "text", "'a110'", 3 * PROBE), Case("reads", "text", "'nobody'", 3 * PROBE, "new")],
    "states": [
        Case("feed", "text[], text", f"{texts([*PEOPLE, *(f'b{n}' for n in range(120, 140))])}, '0'", 40 * 2 * PROBE)
    ],
    "states_of": [Case("feed", "bigint[]", ints(range(1, 101)), 100 * PROBE)],
    "nodes": [Case("watch", "bigint, float8", "1667787364, 3", 20)],
    "replica_position": [Case("reads", "", "", 0)],
    "replica_sight": [Case("reads", "", "", 15)],
    "restamp": [Case("watch", "bigint", "20", 40 + 3 * PROBE * 20)],
    "watch": [Case("watch", "bigint, bigint, integer", f"100, {ROWS}, {check(100)}", 15 + PROBE)],
}
# Statements that are too short for a file, and functions.
_MAKE: Final = "SELECT make_partition(clock_timestamp() + make_interval(secs => $1))"
INLINE: Final[dict[str, tuple[str, Case]]] = {
    "make_partition, there": (_MAKE, Case("making", "float8", "0", 20)),
    "make_partition": (_MAKE, Case("making", "float8", f"{(AHEAD + 1) * 86_400}", 50 * PARTITIONS)),
    "history_proven, forwards": (
        AFTER,
        Case("reads", _PROVEN, f"{DEEP}, 1000, {DEEP_ROWS}, 51, {{epoch}}, 1, 1, false", EACH_PARTITION + 70),
    ),
    "ping": ("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint", Case("reads", "", "", 0)),
}
# (label, statement, case)
ALL: Final = [
    (f"{name}: {case.name}" if case.name else name, query(name), case)
    for name, cases in CASES.items()
    for case in cases
] + [(name, text, case) for name, (text, case) in INLINE.items()]

# ---- the log -------------------------------------------------------------------------------------

DAY: Final = "date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
# Seqs and times of a conversation rise together; every tenth entry is an edit of the one before. Of
# today are the deep one's second half, and the last three entries of each other one.
_LOG: Final = f"""
    INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body, ref, ref_ts)
    SELECT e.conv, e.seq, e.ts, md5((e.conv * 10000 + e.seq)::text)::uuid, e.seq, 0, 0,
        CASE WHEN e.is_edit THEN 1 ELSE 0 END, CASE WHEN NOT e.is_edit THEN repeat('x', 80) END,
        CASE WHEN e.is_edit THEN e.seq - 1 END, CASE WHEN e.is_edit THEN e.before END
    FROM (
        SELECT d.*, d.seq %% 10 = 0 AS is_edit, lag(d.ts) OVER (PARTITION BY d.conv ORDER BY d.seq) AS before
        FROM (
            SELECT v.conv, s.seq, {DAY} + interval '1 ms' * s.seq
                - CASE WHEN s.seq > v.before_today THEN interval '0' ELSE
                interval '1 day' * ceil(%(days)s * (1 - s.seq / (v.before_today + 1.0))) END AS ts
            FROM (
                SELECT c AS conv, CASE c WHEN %(deep)s THEN %(deep_rows)s ELSE %(rows)s END AS rows,
                    CASE c WHEN %(deep)s THEN %(deep_rows)s / 2 ELSE %(rows)s - 3 END AS before_today
                FROM generate_series(1, %(convs)s) c
            ) v, generate_series(1, v.rows) s (seq)
        ) d
    ) e
    WHERE CASE WHEN e.ts < {DAY} THEN %(old)s ELSE %(today)s END"""


def people(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "INSERT INTO users (id, seen_ms) SELECT s || i, 1 FROM generate_series(1, 2000) i, unnest(ARRAY['a', 'b']) s"
        " ON CONFLICT DO NOTHING"
    )
    conn.execute(
        "INSERT INTO conversations (id, a, b, head, na) OVERRIDING SYSTEM VALUE"
        " SELECT i, 'a' || i, 'b' || i, 0, 0 FROM generate_series(1, %(convs)s) i"
        " UNION ALL SELECT 10000 + i, 'hub', 'p' || i, 1, 1 FROM generate_series(1, %(hub)s / 2) i"
        " UNION ALL SELECT 20000 + i, 'a' || i, 'hub', 1, 1 FROM generate_series(301, 300 + %(hub)s / 2) i"
        " UNION ALL SELECT 30000 + i, 'q' || i, 'r' || i, 0, 0 FROM generate_series(1, %(quiet)s) i ON CONFLICT DO"
        " NOTHING",
        {"convs": CONVERSATIONS, "hub": HUB, "quiet": QUIET},
    )
    conn.execute("SELECT setval(pg_get_serial_sequence('conversations', 'id'), 100000)")
    conn.execute(
        "INSERT INTO cursors (conv, a_delivered, xid) SELECT id, 1, pg_current_xact_id() FROM conversations ON"
        " CONFLICT DO NOTHING"
    )
    conn.execute("INSERT INTO feed (kind, data) SELECT 0, ARRAY[i, i] FROM generate_series(1, 3000) i")


def log(conn: psycopg.Connection[Any], *, old: bool = True, today: bool = True) -> None:
    conn.execute(
        _LOG,
        {
            "deep": DEEP,
            "deep_rows": DEEP_ROWS,
            "rows": ROWS,
            "convs": CONVERSATIONS,
            "days": DAYS,
            "old": old,
            "today": today,
        },
    )
    conn.execute(
        f"UPDATE conversations SET head = rows, na = rows, last_ts = {DAY} + interval '1 ms' * rows"
        " FROM (SELECT CASE id WHEN %s THEN %s ELSE %s END AS rows, id AS conv FROM conversations) r WHERE conv = id"
        " AND id <= %s",
        (DEEP, DEEP_ROWS, ROWS, CONVERSATIONS),
    )


def full(conn: psycopg.Connection[Any]) -> None:
    people(conn)
    log(conn)


def one_user(conn: psycopg.Connection[Any]) -> None:
    """All conversations are of one user, and all entries of one conversation."""
    conn.execute("INSERT INTO conversations (a, b) VALUES ('a1', 'b1')")
    conn.execute(
        "INSERT INTO conversations (id, a, b) OVERRIDING SYSTEM VALUE SELECT 40000 + i, 'a1', 'z' || i FROM"
        " generate_series(1, 1000) i"
    )
    conn.execute("INSERT INTO users VALUES ('a1', 1), ('b1', 1)")
    conn.execute("INSERT INTO cursors (conv, xid) VALUES (1, pg_current_xact_id())")
    conn.execute(
        "INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body)"
        " SELECT 1, 10000 + i, now() - interval '1 s' * i, gen_random_uuid(), i, 0, 0, 0, 'hi' FROM generate_series(1,"
        " 300) i"
    )
    analyse(conn)


def nothing(conn: psycopg.Connection[Any]) -> None:
    pass


def analyse(conn: psycopg.Connection[Any]) -> None:
    conn.execute("VACUUM ANALYZE")


def full_and_analysed(conn: psycopg.Connection[Any]) -> None:
    full(conn)
    analyse(conn)


def all_but_today(conn: psycopg.Connection[Any]) -> None:
    people(conn)
    log(conn, old=True, today=False)
    analyse(conn)


def today(conn: psycopg.Connection[Any]) -> None:
    log(conn, old=False, today=True)


def with_an_old_partition(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SELECT make_partition(now() - interval '50 days')")
    full(conn)


def another_day(conn: psycopg.Connection[Any]) -> None:
    """A partition is attached and the oldest one detached, as retention does it."""
    conn.execute("SELECT make_partition(now() + interval '20 days')")
    row = conn.execute("SELECT partition_name(partition_start(now() - interval '50 days', 86400))").fetchone()
    assert row is not None
    conn.execute(f"ALTER TABLE entries DETACH PARTITION {row[0]} CONCURRENTLY")


# What a database or a role may set for its sessions; with it costs mean nothing.
HOSTILE: Final = {
    "plan_cache_mode": "force_custom_plan",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
    "enable_nestloop": "off",
    "enable_partition_pruning": "off",
    "enable_tidscan": "off",
    "max_parallel_workers_per_gather": "8",
    "parallel_setup_cost": "0",
    "parallel_tuple_cost": "0",
    "min_parallel_table_scan_size": "0",
    "min_parallel_index_scan_size": "0",
    "jit": "on",
    "jit_above_cost": "0",
    "random_page_cost": "0.1",
    "work_mem": "64kB",
}


def hostile(conn: psycopg.Connection[Any]) -> None:
    for name, value in HOSTILE.items():
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {name} = '{value}'")
    analyse(conn)


# name -> (before the statements are planned, after that)
STATES: Final[dict[str, tuple[Callable[..., None], Callable[..., None]]]] = {
    "planned on empty tables": (nothing, full),
    "planned on tables that were vacuumed empty": (analyse, full),
    "planned when one user had all": (one_user, full),
    "never analysed": (full, nothing),
    "analysed": (full_and_analysed, nothing),
    "planned when today's partition was empty": (all_but_today, today),
    "in a database that is set otherwise": (hostile, full),
    "partitions came and went": (with_an_old_partition, another_day),
}
