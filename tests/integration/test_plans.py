"""What every statement reads does not depend on the day: buffers, in all states that the tables can
be in when a session plans it.

A session keeps its plans. They are made on the tables as they are at that moment: empty on a fresh
install, vacuumed while empty by an operator's nightly job, holding one conversation, never
analysed, or with a partition of today that has nothing in it yet. Then they fill up, and the plan
stays.

    state: prepare the tables ► plan every statement, in sessions set as the product's
           ► fill up ► EXPLAIN (ANALYZE, BUFFERS) EXECUTE there

`append` and `make_partition` are counted as a whole: what the statements inside them read is
counted in. Statements and log: plan_cases.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from chatd.core.conversation import Conversation
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres import change_feed_reader, connection, mark
from chatd.postgres import partitions as retention
from chatd.postgres.history_reads import BEFORE
from chatd.postgres.partitions import Retention
from chatd.postgres.planner import PLANNER
from chatd.postgres.queries import folder, query
from chatd.postgres.rows import BEGIN
from chatd.store import Store
from tests.integration.logs import FENCE, append_function, connect, fenced_as_before, nodes, one, options, partitions
from tests.integration.plan_cases import AHEAD, ALL, CASES, DAYS, PARTITIONS, STATES, Case, analyse, full, hostile
from tests.integration.stores import LIMITS, NoLane
from tests.sweeping import sweeping

pytestmark = pytest.mark.slow

# A partition that is attached, even if that is rolled back, makes its own session plan again:
# `making` keeps that from the reads.
SESSIONS: Final = {
    "reads": connection.READ,
    "lane": connection.LANE,
    "feed": change_feed_reader.SETTINGS,
    "watch": connection.READ,
    "retention": retention.SESSION,
    "making": connection.READ,
}
# Statements that read the one row of `meta`, or nothing.
TRIVIAL: Final = re.compile(
    r"SET .*|UPDATE meta SET [^()]*|SELECT [^()]*(log_identity\(\))? FROM meta( FOR UPDATE)?|SELECT"
    r" (clock_timestamp|pg_try_advisory_lock)\(.*"
)


WRITERS: Final = ("append", "flush", "resolve: new", "feed_prune", "make_partition")


class Read(NamedTuple):
    """What a case read, and scans that do not know where to look: (node, table)."""

    buffers: int
    strays: list[tuple[str, str]]


class Session:
    """Statements are prepared once, however many cases there are: one statement, one plan."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn
        self._names: dict[str, str] = {}

    def execute(self, text: str, case: Case) -> str:
        """The statement that executes the case."""
        if (name := self._names.get(text)) is None:
            name = self._names[text] = f"s{len(self._names)}"
            self.conn.execute(f"PREPARE {name} {f'({case.types})' if case.types else ''} AS {text}")
        return f"EXECUTE {name} ({case.args})" if case.args else f"EXECUTE {name}"


def place(conn: psycopg.Connection[Any], text: str, case: Case) -> tuple[str, Case]:
    """Fills in what only the database knows."""
    args = case.args
    if "FROM PARTITION" in text:
        text = text.replace("PARTITION", one(conn, "SELECT partition_name(partition_start(clock_timestamp(), 86400))"))
    if "PAGE" in text.split():
        text = BEFORE
    if "{epoch}" in args:
        args = args.replace("{epoch}", f"'{one(conn, 'SELECT epoch FROM meta')}'")
    if "{fence}" in args:
        args = args.replace("{fence}", f"'{one(conn, FENCE)}'")
    if "{seen}" in args:
        seen = one(conn, "SELECT pg_current_snapshot()::text")
        conn.execute("INSERT INTO feed (kind, data) SELECT 0, '{2,2}' FROM generate_series(1, 10)")
        args = args.replace("{seen}", f"'{seen}'").replace(
            "{now}", f"'{one(conn, 'SELECT pg_current_snapshot()::text')}'"
        )
    return text, case._replace(args=args)


def plan_all(admin: psycopg.Connection[Any], sessions: dict[str, Session]) -> None:
    """Execute everything once; what it writes is rolled back, and comes last: a table that was
    written to is no longer an empty one.

    `append` refuses a batch whose conversation is not there, so they are made for it.
    """
    readers = [entry for entry in ALL if not entry[0].startswith(WRITERS) or entry[0] == "append: nothing"]
    writers = [entry for entry in ALL if entry not in readers]
    for entry in [*readers, *(entry for entry in writers if not entry[0].startswith("append"))]:
        plan(admin, sessions, *entry)
    lane = sessions["lane"].conn
    with lane.transaction(force_rollback=True):
        lane.execute(
            "INSERT INTO conversations (id, a, b) OVERRIDING SYSTEM VALUE"
            " SELECT i, 'a' || i, 'b' || i FROM generate_series(1, 120) i ON CONFLICT DO NOTHING"
        )
        for entry in writers:
            if entry[0].startswith("append"):
                plan(admin, sessions, *entry)


def plan(admin: psycopg.Connection[Any], sessions: dict[str, Session], label: str, text: str, case: Case) -> None:
    session = sessions[case.session]
    with session.conn.transaction(force_rollback=True):
        session.conn.execute(session.execute(*place(admin, text, case)))


def read_all(admin: psycopg.Connection[Any], sessions: dict[str, Session]) -> dict[str, Read]:
    found = {}
    for label, text, case in ALL:
        session = sessions[case.session]
        text, case = place(admin, text, case)
        found[label] = read(session.conn, session.execute(text, case))
    return found


def read(conn: psycopg.Connection[Any], execute: str) -> Read:
    """The second execution: the first one leaves hints, and finds room for rows."""
    with conn.transaction(force_rollback=True):
        conn.execute(execute)
    with conn.transaction(force_rollback=True):
        plan = one(conn, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}")[0]["Plan"]
    scans = [node for node in nodes(plan) if "Relation Name" in node and node["Node Type"] != "ModifyTable"]
    strays = [
        (node["Node Type"], node["Relation Name"])
        for node in scans
        if "Index Cond" not in node and "TID Cond" not in node
    ]
    # A node counts what is below it; but a statement in WITH that nobody reads runs after the node
    # above is done, and counts for itself.
    return Read(max(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in nodes(plan)), strays)


@pytest.fixture(scope="module")
def template(postgres: Any, template_db: str) -> Iterator[str]:
    """A database with partitions and nothing in them, which autovacuum leaves alone: it would
    analyse a table at a moment of its own.
    """
    name = "chatd_plans"
    with connect(make_conninfo(postgres.conninfo, dbname="postgres")) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template_db}")
        try:
            with connect(make_conninfo(postgres.conninfo, dbname=name)) as conn:
                partitions(conn, back=DAYS, ahead=AHEAD)
                tables = (
                    "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace ="
                    " 'public'::regnamespace AND relname !~ '^_'"
                )
                for (table,) in conn.execute(tables).fetchall():
                    conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
                for (table,) in conn.execute(
                    "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname ~ '^pg_'"
                ).fetchall():
                    conn.execute(f"VACUUM {table}")  # what the making of partitions left there
            yield name
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Database:
    """One of the tests', made from the template."""

    def __init__(self, postgres: Any, template: str, stack: ExitStack) -> None:
        self.admin = stack.enter_context(connect(make_conninfo(postgres.conninfo, dbname="postgres")))
        self.name = f"{template}_one"
        self.admin.execute(f"CREATE DATABASE {self.name} TEMPLATE {template}")
        stack.callback(self.admin.execute, f"DROP DATABASE {self.name} WITH (FORCE)")
        self.conninfo = make_conninfo(postgres.conninfo, dbname=self.name)
        self.stack = stack
        self.conn = self.connect("")

    def connect(self, settings: str) -> psycopg.Connection[Any]:
        return self.stack.enter_context(connect(self.conninfo, options=settings, prepare_threshold=None))

    def sessions(self) -> dict[str, Session]:
        """One of each kind that the product has, set as it sets them."""
        return {name: Session(self.connect(options(settings))) for name, settings in SESSIONS.items()}


@pytest.fixture(scope="module")
def reads(postgres: Any, template: str) -> dict[str, dict[str, Read]]:
    """By state and case."""
    found = {}
    for state, (before, after) in STATES.items():
        with ExitStack() as stack:
            database = Database(postgres, template, stack)
            before(database.conn)
            sessions = database.sessions()
            plan_all(database.conn, sessions)
            after(database.conn)
            found[state] = read_all(database.conn, sessions)
    return found


# ---- the tests -----------------------------------------------------------------------------------


def test_every_query_of_the_folder_has_its_cases() -> None:
    assert set(CASES) == {path.stem for path in (folder() / "queries").glob("*.sql")}


@pytest.mark.parametrize("state", STATES)
def test_no_statement_reads_more_than_it_must(reads: dict[str, dict[str, Read]], state: str) -> None:
    most = {label: case.most for label, _, case in ALL}
    assert {
        label: (found.buffers, most[label]) for label, found in reads[state].items() if found.buffers > most[label]
    } == {}


@pytest.mark.parametrize("state", STATES)
def test_every_scan_knows_where_to_look(reads: dict[str, dict[str, Read]], state: str) -> None:
    strays = {(label, *stray) for label, found in reads[state].items() for stray in found.strays}
    # Once for many users, and only there (chatd/postgres/sweep.py)
    passes = {stray for stray in strays if stray[0].startswith("list_changed_many")}
    assert {stray[1:] for stray in passes} == {("Seq Scan", "conversations"), ("Seq Scan", "cursors")}
    strays -= passes
    assert {stray for stray in strays if stray[2] != "meta" and not stray[2].startswith("pg_")} == set(), (
        "meta has one row"
    )


def test_the_state_makes_no_difference(reads: dict[str, dict[str, Read]]) -> None:
    """Within what the layout of a table makes of it: pages that rows and index entries happen to
    share.
    """
    # In one state the tables have more rows, and a pass reads them all
    labels = [label for label, _, _ in ALL if not label.startswith("list_changed_many")]
    table = {label: [found[label].buffers for found in reads.values()] for label in labels}
    for label, buffers in table.items():
        print(f"{label:45}", *(f"{n:6}" for n in buffers))
    assert {label: buffers for label, buffers in table.items() if max(buffers) > 1.25 * min(buffers) + 15} == {}


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
OLD_SETTINGS: Final = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "jit": "off"}


def test_what_was_wrong_would_be_seen(postgres: Any, template: str) -> None:
    """The resync as it was, with the settings of then: planned on empty tables, it joined with all
    entries.

    `append` as it was, with today's.
    """
    resync = CASES["entries_many"][0]
    edit = next(case for case in CASES["append"] if case.name == "edit of nothing")
    with ExitStack() as stack:
        database = Database(postgres, template, stack)
        fenced_as_before(database.conn, append_function("0005_pre_fence"))
        analyse(database.conn)
        old, lane = (
            Session(database.connect(options(OLD_SETTINGS))),
            Session(database.connect(options(connection.LANE))),
        )
        old.conn.execute(old.execute(OLD_ENTRIES_MANY, resync))
        for case in CASES["append"][:2]:
            text, case = place(database.conn, query("append"), case)
            with lane.conn.transaction(force_rollback=True):
                lane.conn.execute("INSERT INTO conversations (id, a, b) OVERRIDING SYSTEM VALUE VALUES (1, 'a1', 'b1')")
                lane.conn.execute(lane.execute(text, case))
        full(database.conn)
        found = read(old.conn, old.execute(OLD_ENTRIES_MANY, resync))
        assert len(found.strays) == PARTITIONS
        assert found.buffers > reads_now(database, resync).buffers
        found = read(lane.conn, lane.execute(*place(database.conn, query("append"), edit)))
        print(found)
        assert found.buffers > 2 * edit.most


def reads_now(database: Database, case: Case) -> Read:
    session = database.sessions()[case.session]
    return read(session.conn, session.execute(query("entries_many"), case))


async def test_sessions_of_the_product_are_set_so_and_run_no_other_statements(fresh_db: str) -> None:
    """In a database that is set otherwise. Every statement that a node has prepared is a case here."""
    with connect(fresh_db) as conn:
        partitions(conn)
        hostile(conn)
    limits = LIMITS._replace(pool_max=1, feed=True)
    node = Store(fresh_db, limits, Metrics())
    works = await node.start(NoLane())
    keeper = Retention(
        node.opener,
        retention_s=1e6,
        partition_s=86_400,
        ahead=1,
        metrics=Metrics(),
        held=lambda: [ConvId(1)],
        floors=lambda found: None,
    )
    try:
        alice, bob = UserId("alice"), UserId("bob")
        (row,) = await node.resolve([(alice, bob)], [None])
        await node.list_changed(alice, None, BEGIN, True, [])
        sweeping(node)
        sweeps = asyncio.create_task(node.sweeps.run())
        assert await node.swept(alice, str(mark.of_all(node.epoch))) is not None
        await node.list_conversations(alice, [row.id])
        await node.entries_before(row.id, 10, 1, 10)
        await node.entries_after(row.id, 0, 10, 10)
        await node.entries_after(ConvId(2**40), 2**20, 2**40, 10)
        await node.entries_many([(row.id, 0, 10)], 10)
        await node.heads([row.id])
        node.cursor_moved(Conversation(row.id, alice, bob))
        node.user_seen(alice, 1)
        await node.flush()
        await node.seen([bob])
        await node.ping()
        await node.partitions_left()
        await node.make_partition()
        page = await node.feed(None, 2**60)
        await node.states([alice], "0")
        await node.states_of([row.id])
        await node.feed_prune(page.snapshot, page.snapshot, 10)
        lane, feed, watch = node.lanes.all[0]._conn, node._feed._conn, node.watch._conn
        async with node.read_pool._pool.connection() as reads, keeper._connect() as dropper:
            await keeper._partitions(dropper)
            await keeper._refresh(dropper)
            for one_of in (reads, lane, feed, watch, dropper):
                await assert_as_tested(one_of)
        sweeps.cancel()
    finally:
        for work in works:
            work.close()
        await node.stop()


async def assert_as_tested(conn: psycopg.AsyncConnection[Any] | None) -> None:
    assert conn is not None
    cur = await conn.execute("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", (list(PLANNER),))
    assert dict(await cur.fetchall()) == PLANNER
    cur = await conn.execute(
        "SELECT statement FROM pg_prepared_statements WHERE statement !~ 'pg_settings|pg_prepared_statements'"
    )
    known = {text for _, text, _ in ALL}
    prepared = [text for (text,) in await cur.fetchall()]
    assert {text for text in prepared if text not in known and not TRIVIAL.fullmatch(text)} == set()
    assert len(prepared) == len(set(prepared)), "a plan a statement, whatever its parameters"
