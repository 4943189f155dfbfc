"""What each query reads, by EXPLAIN, on 1,000,000 messages in 10,000 conversations over 30 days:
index scans alone, and no more the deeper it goes.

As the store runs them: with its session options, prepared, and with the plan that does not know the
parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest

from chatd.chat import new_conversations
from chatd.postgres.queries import query
from tests.integration.logs import READ_OPTIONS, Change, Message, append, connect, nodes, one, only, partitions

pytestmark = pytest.mark.slow

DAYS = 30
DEEP, DEEP_ROWS, ROWS = 1, 100_000, 90  # the conversation with a long log; messages of each other one
HUB = 1_000  # conversations of one user
CONVERSATIONS = 10_000
PAGE = 51
PARTITIONS = DAYS + 7
# A page opens the index of each partition (2 pages each, and 2 for the join of edits) and reads its
# rows.
PAGE_BUFFERS_MAX = PARTITIONS * 2 + PAGE + 20
PER_CONVERSATION = 4  # buffers to list one: of its row, its cursors and their index; some 3 us each


class Plan(NamedTuple):
    buffers: int
    rows: int
    scans: dict[str, set[str]]  # how -> tables


@pytest.fixture(scope="module")
def big(postgres: Any, template_db: str) -> Iterator[str]:
    """The conninfo of the filled database; 20 s."""
    name = "chatd_big"
    with connect(psycopg.conninfo.make_conninfo(postgres.conninfo, dbname="postgres")) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template_db}")
        conninfo = psycopg.conninfo.make_conninfo(postgres.conninfo, dbname=name)
        try:
            with connect(conninfo) as conn:
                fill(conn)
            yield conninfo
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def fill(conn: psycopg.Connection[Any]) -> None:
    partitions(conn, back=DAYS - 1, ahead=7)
    users = "INSERT INTO conversations (a, b) SELECT {a}, {b} FROM generate_series(1, %s) i"
    conn.execute(users.format(a="'hub'", b="'p' || i"), (HUB // 2,))
    conn.execute(users.format(a="'a' || i", b="'hub'"), (HUB // 2,))
    conn.execute(users.format(a="'x' || i", b="'y' || i"), (CONVERSATIONS - HUB,))
    first, span = only(
        conn, "SELECT now() - make_interval(days => %s), make_interval(days => %s)", (DAYS - 1, DAYS - 1)
    )
    # As text that is made once for all conversations of a length: a row each by psycopg takes
    # longer than PostgreSQL does.
    with conn.cursor().copy("COPY entries (conv, seq, ts, cid, na, nb, side, kind, body) FROM STDIN") as copy:
        for convs, n in (([DEEP], DEEP_ROWS), (range(DEEP + 1, CONVERSATIONS + 1), ROWS)):
            rows = [
                (
                    f"\t{i}\t{first + span * (i / n)}\t",
                    f"{i:016x}\t{(i + 1) // 2}\t{i // 2}\t{(i + 1) % 2}\t0\tmessage {i} {'x' * 80}\n",
                )
                for i in range(1, n + 1)
            ]
            for conv in convs:
                high = f"{conv:016x}"
                copy.write("".join([f"{conv}{middle}{high}{end}" for middle, end in rows]))
    conn.execute(
        "UPDATE conversations v SET head = e.seq, na = e.na, nb = e.nb, last_ts = e.ts FROM"
        " (SELECT DISTINCT ON (conv) conv, seq, na, nb, ts FROM entries ORDER BY conv, seq DESC) e WHERE e.conv = v.id"
    )
    conn.execute(
        "INSERT INTO cursors (conv, a_delivered, a_read, a_read_n, xid) SELECT id, head, head - 5, nb - 2,"
        " pg_current_xact_id() FROM conversations"
    )
    conn.execute("VACUUM ANALYZE")
    assert one(conn, "SELECT count(*) FROM entries") == DEEP_ROWS + (CONVERSATIONS - 1) * ROWS


@pytest.fixture
def db(big: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(big, options=READ_OPTIONS, prepare_threshold=None) as conn:
        yield conn


def explain(db: psycopg.Connection[Any], name: str, types: str, args: str, custom: bool = False) -> Plan:
    """Run a query by name with literal arguments, first to warm up, and read the plan of the second
    run.

    What they write is rolled back.
    """
    with db.transaction(force_rollback=True):
        db.execute(f"SET LOCAL plan_cache_mode = force_{'custom' if custom else 'generic'}_plan")
        db.execute(f"PREPARE q ({types}) AS {query(name)}")
        try:
            with db.transaction(force_rollback=True):
                db.execute(f"EXECUTE q ({args})")
            explained = one(db, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE q ({args})")[0]
        finally:
            db.execute("DEALLOCATE q")
    plan = explained["Plan"]
    scans: dict[str, set[str]] = {}
    for node in nodes(plan):
        if "Relation Name" in node and node["Node Type"] != "ModifyTable":
            scans.setdefault(node["Node Type"], set()).add(node["Relation Name"])
    # A node counts what is below it; but a statement in WITH that nobody reads runs after the node
    # above is done, and counts for itself.
    buffers = max(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in nodes(plan))
    return Plan(buffers, int(plan["Actual Rows"]), scans)


def array(values: Any) -> str:
    return "'{" + ",".join(map(str, values)) + "}'"


def assert_index_scans_only(plan: Plan) -> None:
    assert set(plan.scans) <= {"Index Scan", "Index Only Scan"}, plan.scans


@pytest.mark.parametrize("custom", [False, True])
def test_a_page_of_history_costs_the_same_at_any_depth(db: psycopg.Connection[Any], custom: bool) -> None:
    buffers = []
    for depth in (1, 60, 1_000, 30_000, 70_000, DEEP_ROWS - 60):
        for name, args in (
            ("entries_before", f"{DEEP}, {DEEP_ROWS - depth + 2}, 1"),
            ("entries_after", f"{DEEP}, {depth - 1}, {DEEP_ROWS}"),
        ):
            plan = explain(db, name, "bigint, bigint, bigint, bigint", f"{args}, {PAGE}", custom)
            assert plan.rows == PAGE
            assert_index_scans_only(plan)
            buffers.append(plan.buffers)
    assert max(buffers) <= PAGE_BUFFERS_MAX
    assert max(buffers) - min(buffers) <= PAGE, "a page may lie on one heap page or on many; the indexes cost the same"


def test_the_first_page_of_an_ordinary_conversation_is_as_cheap(db: psycopg.Connection[Any]) -> None:
    plan = explain(db, "entries_before", "bigint, bigint, bigint, bigint", f"5000, {ROWS + 1}, 1, {PAGE}")
    assert plan.rows == PAGE
    assert_index_scans_only(plan)
    assert plan.buffers <= PAGE_BUFFERS_MAX


def test_a_resync_of_many_conversations_is_one_query_of_index_scans(db: psycopg.Connection[Any]) -> None:
    convs = range(5_000, 5_050)
    plan = explain(
        db, "entries_many", "bigint[], bigint[], bigint[], bigint",
        f"{array(convs)}, {array(ROWS - 10 for _ in convs)}, {array(ROWS for _ in convs)}, 200",
    )  # fmt: skip
    assert plan.rows == 500
    assert_index_scans_only(plan)
    assert plan.buffers <= 50 * (PARTITIONS * 2 + 20)


def test_a_page_of_the_list_reads_as_many_conversations_as_it_shows(db: psycopg.Connection[Any]) -> None:
    for ids in (range(500, 501), range(500, 550)):
        plan = explain(db, "list_conversations", "bigint[]", array(ids))
        assert plan.rows == len(ids)
        assert plan.buffers <= 10 * len(ids)
        assert_index_scans_only(plan)


def test_a_page_of_a_hello_reads_a_page_of_either_index_wherever_it_begins(db: psycopg.Connection[Any]) -> None:
    types = "text, bigint, text, bigint, boolean, bigint[], bigint"
    for after in ("", "a3", "b", "p40"):
        plan = explain(db, "list_changed", types, f"'hub', 0, '{after}', 20, true, '{{}}', 0")
        assert plan.rows == 20
        assert plan.buffers <= 20 * PER_CONVERSATION * 2, "20 of each half, and their cursors"
        assert_index_scans_only(plan)


def test_a_hello_of_that_user_reads_each_conversation_once(db: psycopg.Connection[Any]) -> None:
    types = "text, bigint, text, bigint, boolean, bigint[], bigint"
    now, started = only(
        db,
        "SELECT pg_snapshot_xmax(pg_current_snapshot())::text, (extract(epoch FROM pg_postmaster_start_time()) *"
        " 1000000)::bigint",
    )
    everything = explain(db, "list_changed", types, f"'hub', 0, '', {HUB}, true, '{{}}', {started}")
    nothing = explain(db, "list_changed", types, f"'hub', {now}, '', {HUB}, false, '{{1,2}}', {started}")
    other = explain(db, "list_changed", types, f"'x77', {now}, '', {HUB}, false, '{{}}', {started}")
    assert (everything.rows, nothing.rows, other.rows) == (HUB, 2, 1)
    for plan in (everything, nothing, other):
        assert plan.buffers <= HUB * PER_CONVERSATION
        assert_index_scans_only(plan)
    assert other.buffers <= 20


def test_reads_by_key_are_index_scans(db: psycopg.Connection[Any]) -> None:
    assert_index_scans_only(explain(db, "heads", "bigint[]", array(range(1, 2_000))))
    assert_index_scans_only(explain(db, "floors", "bigint[]", array(range(1, 2_000))))
    assert_index_scans_only(explain(db, "seen", "text[]", "'{a1,p2}'"))
    assert_index_scans_only(explain(db, "states_of", "bigint[]", array(range(1, 2_000))))
    resolve = explain(db, "resolve", "text[], text[], text[], text", "'{a1,n1}', '{hub,n2}', '{NULL,NULL}', '300'")
    assert_index_scans_only(resolve)
    assert resolve.buffers <= 40
    many = [f"'{{{','.join(f'{name}{n}' for n in range(new_conversations.MAKE_MAX))}}}'" for name in ("m", "n")]
    resolve = explain(
        db,
        "resolve",
        "text[], text[], text[], text",
        f"{many[0]}, {many[1]}, array_fill(NULL::text, ARRAY[{new_conversations.MAKE_MAX}]), '300'",
    )
    assert_index_scans_only(resolve)
    assert resolve.rows == new_conversations.MAKE_MAX
    assert resolve.buffers <= new_conversations.MAKE_MAX * 20


def test_cursors_that_only_moved_delivered_do_not_read_the_log(db: psycopg.Connection[Any]) -> None:
    """The common flush: the peer's device got entries, and nobody has read.

    Looking up the read cursor's entry would cost 80 buffers each.
    """
    convs = range(2_000, 2_100)
    types = "bigint[], bigint[], bigint[], bigint[], bigint[]"
    same = [
        array(convs),
        array(ROWS for _ in convs),
        array(ROWS - 5 for _ in convs),
        array(ROWS for _ in convs),
        array(0 for _ in convs),
    ]
    plan = explain(db, "flush_cursors", types, ", ".join(same))
    assert_index_scans_only(plan)
    assert plan.buffers <= 100 * 20
    moved = [*same[:2], array(ROWS - 2 for _ in convs), *same[3:]]
    assert plan.buffers < explain(db, "flush_cursors", types, ", ".join(moved)).buffers / 3


def test_the_feed_is_read_and_pruned_by_its_index(big: str, db: psycopg.Connection[Any]) -> None:
    """Both read what is new to a snapshot, and nothing of the 20,000 rows before."""
    with connect(big) as conn, connect(big) as slow:
        conn.execute("SELECT pg_current_xact_id()")
        for _ in range(20):
            conn.execute("INSERT INTO feed (kind, data) SELECT 0, ARRAY[i, i] FROM generate_series(1, 1000) i")
        with slow.transaction():
            slow.execute("INSERT INTO feed (kind, data) VALUES (0, '{1,1}')")
            seen = one(conn, "SELECT pg_current_snapshot()::text")
        for _ in range(50):
            conn.execute("INSERT INTO feed (kind, data) VALUES (0, '{2,2}')")
        now = one(conn, "SELECT pg_current_snapshot()::text")
        conn.execute("VACUUM ANALYZE feed")
    since = explain(db, "feed_since", "text, bigint, bytea", f"'{seen}', {2**60}, ''")
    assert since.rows == 52, "the snapshot's, the slow one's and 50"
    assert since.buffers <= 20
    few = explain(db, "feed_since", "text, bigint, bytea", f"'{seen}', {2**60}, '\\x02'")
    assert (few.rows, few.buffers) == (2, since.buffers), "the snapshot's and the slow one's, of conversation 1"
    assert_index_scans_only(few)
    late = explain(db, "feed_since", "text, bigint, bytea", f"'{seen}', 0, ''")
    assert (late.rows, late.buffers) == (1, 0)
    prune = explain(db, "feed_prune", "text, text, bigint", f"'{seen}', '{now}', 50000")
    assert 51 <= prune.buffers <= 51 * 3 + 20
    assert_index_scans_only(since)
    assert_index_scans_only(late)
    assert set(prune.scans) <= {"Index Scan", "Index Only Scan", "Tid Scan"}


def test_catching_up_reads_what_the_users_have(db: psycopg.Connection[Any]) -> None:
    users = "'{" + ",".join([f"x{n}" for n in range(1, 401)] + [f"y{n}" for n in range(301, 701)] + ["hub"]) + "}'"
    everything = explain(db, "states", "text[], text", f"{users}, '0'")
    nothing = explain(db, "states", "text[], text", f"{users}, '{2**60}'")
    assert (everything.rows, nothing.rows) == (700 + HUB, 0), "each once, though 100 have both of their users here"
    for plan in (everything, nothing):
        assert_index_scans_only(plan)
        assert plan.buffers <= (700 + HUB) * PER_CONVERSATION


def test_an_edit_in_history_is_joined_by_its_partition(big: str, db: psycopg.Connection[Any]) -> None:
    with connect(big) as conn:
        append(conn, [Message(77, "a"), Message(77, "b")])
        append(conn, changes=[Change(77, ROWS + 1, body="edited")])
    plan = explain(db, "entries_before", "bigint, bigint, bigint, bigint", f"77, {ROWS + 4}, 1, 3")
    assert plan.rows == 3
    assert plan.buffers <= PAGE_BUFFERS_MAX
