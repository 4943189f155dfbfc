"""The feed on a real PostgreSQL: what is written to it and by whom; each row comes once, whatever
the order of commits; and nothing is missed by one that is late or cut off, or when the server has
crashed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from chatd import store
from chatd.cluster import change_feed as feeding
from chatd.cluster.change_feed import NOTHING_PRUNED, ChangeFeed
from chatd.core.batch import Item
from chatd.core.conversation import Conversation
from chatd.core.feed_filter import NO_FILTER, FeedFilter
from chatd.core.frame_rate import FrameRate
from chatd.core.session import Session
from chatd.errors import Unavailable
from chatd.ids import Cid, ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres import change_feed_reader
from chatd.postgres.change_feed_reader import CURSORS, ENTRIES, FeedPage
from chatd.postgres.embedded import Embedded
from chatd.postgres.migrate import migrate
from chatd.postgres.queries import query
from chatd.postgres.rows import BEGIN, ConvRow
from chatd.store import Store
from tests.integration import stores
from tests.integration.logs import (
    FEED_OPTION,
    OLD_SCHEMA,
    READ_OPTIONS,
    Change,
    Message,
    append,
    append_function,
    append_unfenced,
    cid,
    connect,
    conversation,
    one,
    partitions,
)
from tests.integration.stores import StartStore
from tests.integration.test_writer import NoSink, Told
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

ALICE, BOB = UserId("alice"), UserId("bob")
FAR = 2**60  # wanted at any time
EVENT_S_MAX = 20.0
LIMITS = stores.LIMITS._replace(feed=True)


@pytest.fixture
def db(fresh_db: str) -> Iterator[psycopg.Connection[Any]]:
    """What a lane among other nodes has: its session tells the feed."""
    with connect(fresh_db, options=FEED_OPTION) as conn:
        partitions(conn)
        yield conn


@pytest.fixture
async def start(fresh_db: str, db: psycopg.Connection[Any]) -> AsyncIterator[StartStore]:
    """Starts a node's store; keyword arguments replace limits."""
    async with stores.stores(fresh_db, Told(), LIMITS) as start:
        yield start


def rows(db: psycopg.Connection[Any]) -> list[tuple[int, list[int]]]:
    """The whole feed, and it is empty afterwards."""
    return [
        (kind, data)
        for kind, data in db.execute(
            "WITH gone AS (DELETE FROM feed RETURNING *) SELECT kind, data FROM gone ORDER BY xid"
        )
    ]


def pairs(told: FeedPage) -> list[tuple[int, int]]:
    return sorted((conv, head) for conv, head in told.changes.heads)


# ---- what is written -----------------------------------------------------------------------------


def test_a_batch_is_one_row_of_its_conversations_and_heads(db: psycopg.Connection[Any]) -> None:
    x, y = conversation(db), conversation(db, "alice", "carol")
    append(db, [Message(x), Message(y), Message(x, side=1), Message(x)])
    ((kind, data),) = rows(db)
    assert kind == ENTRIES
    assert sorted(zip(data[:2], data[2:], strict=True)) == [(-y, 1), (-x, 3)], "negative: the first entry is among them"
    append(db, [Message(y), Message(x)])
    ((_, data),) = rows(db)
    assert sorted(zip(data[:2], data[2:], strict=True)) == [(x, 4), (y, 2)]


def test_edits_and_deletes_are_told_too(db: psycopg.Connection[Any]) -> None:
    x, y = conversation(db), conversation(db, "alice", "carol")
    append(db, [Message(x), Message(y)])
    rows(db)
    append(db, changes=[Change(x, 1), Change(y, 1, kind=2), Change(x, 1, kind=2), Change(y, 1), Change(x, 9)])
    assert rows(db) == [(ENTRIES, [x, y, x, 2, 2, 3])]
    append(db, [Message(y)], [Change(y, 3)])
    assert sorted(rows(db)) == [(ENTRIES, [y, 3]), (ENTRIES, [y, 4])]


def test_what_makes_no_entry_is_not_told(db: psycopg.Connection[Any]) -> None:
    x, known = conversation(db), cid()
    append(db, [Message(x, cid=known)])
    append(db, changes=[Change(x, 1, kind=2)])
    rows(db)
    append(db, [Message(x, cid=known), Message(x, flags=1)], [Change(x, 1), Change(x, 1, kind=-1), Change(x, 77)])
    assert rows(db) == []
    with contextlib.suppress(psycopg.Error), db.transaction():
        append(db, [Message(x)])
        append(db, [Message(x, body="\x00")])
    assert rows(db) == []


@pytest.mark.parametrize("options", ["", "-c chatd.feed=off"])
def test_a_session_that_does_not_ask_tells_nothing(fresh_db: str, options: str) -> None:
    with connect(fresh_db, options=options) as conn:
        partitions(conn)
        x = conversation(conn)
        append(conn, [Message(x)])
        append(conn, changes=[Change(x, 1)])
        psycopg.RawCursor(conn).execute(query("flush_cursors"), ([x], [1], [1], [1], [0]))
        assert one(conn, "SELECT count(*) FROM cursors") == 1
        assert rows(conn) == []


def test_a_flush_is_one_row_as_the_table_has_it_afterwards(db: psycopg.Connection[Any]) -> None:
    x, y = conversation(db), conversation(db, "alice", "carol")
    append(db, [Message(conv, side=n % 2) for conv in (x, y) for n in range(9)])
    rows(db)
    flush = query("flush_cursors")
    psycopg.RawCursor(db).execute(flush, ([x], [5], [2], [0], [0]))
    assert rows(db) == [(CURSORS, [x, 5, 2, 0, 0])]
    psycopg.RawCursor(db).execute(flush, ([x, y], [3, 1], [3, 0], [4, 9], [0, 9]))
    ((kind, data),) = rows(db)
    assert kind == CURSORS
    assert {data[n]: tuple(data[n + 2 :: 2]) for n in range(2)} == {x: (5, 3, 4, 0), y: (1, 0, 9, 9)}
    psycopg.RawCursor(db).execute(flush, ([], [], [], [], []))
    assert rows(db) == []


async def test_a_store_among_others_tells_and_a_single_one_does_not(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    x = conversation(db)
    for feed, told in ((True, [(ENTRIES, [-x, 1]), (CURSORS, [x, 0, 0, 1, 1])]), (False, [])):
        node = await start(feed=feed)
        conv = Conversation(ConvId(x), ALICE, BOB)
        session = Session(NoSink(), FrameRate(1e6, 1_000_000), 0.0)
        item = Item(session, 1, conv, BOB, 0, Cid(cid()), 0, "hi", None, 0)
        assert node.lanes.choose(item).submit(item)
        await node.lanes.idle()
        conv.advance(1, 1, 1)
        node.cursor_moved(conv)
        await node.flush()
        assert rows(db) == told


def test_append_of_the_release_before_works_on_this_schema(fresh_db: str, db: psycopg.Connection[Any]) -> None:
    """Its nodes are still up while the first new one migrates; they call the function as it is at
    that moment.
    """
    before = (OLD_SCHEMA / "migrations" / "0002_pre_append.sql").read_text()
    with connect(fresh_db) as old:
        x = conversation(old)
        old.execute(
            before[before.index("CREATE FUNCTION append(") : before.index("-- Make the partition")].replace(
                "CREATE", "CREATE OR REPLACE", 1
            )
        )
        append_unfenced(old, [Message(x)])
        old.execute(append_function("0004_pre_append_linear"))
        assert [row.seq for row in append_unfenced(old, [Message(x)])] == [2]
        assert [row.seq for row in append(db, [Message(x)])] == [3]
        assert rows(db) == [(ENTRIES, [x, 3])]


# ---- what is read --------------------------------------------------------------------------------


async def test_a_row_that_commits_late_comes_once_and_in_its_time(
    fresh_db: str, start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    x, y, z = conversation(db), conversation(db, "alice", "carol"), conversation(db, "alice", "dave")
    append(db, [Message(x)])
    first = await node.feed(None, FAR)
    assert (first.rows, first.reconnected) == (0, True)
    with connect(fresh_db, options=FEED_OPTION) as slow:
        with slow.transaction():
            append(slow, [Message(x)])
            append(db, [Message(y)])  # later, and committed first
            second = await node.feed(first.snapshot, FAR)
            assert pairs(second) == [(y, 1)]
            assert second.changes.new == [y]
            append(db, [Message(z)])
            third = await node.feed(second.snapshot, FAR)
            assert pairs(third) == [(z, 1)]
        fourth = await node.feed(third.snapshot, FAR)
        assert pairs(fourth) == [(x, 2)], "a mark at the greatest id seen has missed it"
    assert pairs(await node.feed(fourth.snapshot, FAR)) == []
    assert not fourth.reconnected
    assert abs(fourth.now_ms - one(db, "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")) < 60_000
    assert 0 < fourth.rtt_s < change_feed_reader.DEADLINE_S


async def test_whatever_the_order_each_row_comes_once(
    fresh_db: str, start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    """Ten writers begin, write, commit and roll back in a seeded disorder, some in subtransactions;
    a reader looks now and then.
    """
    node = await start()
    dice = random.Random(7)
    seen: list[int] = []
    committed: set[int] = set()
    snapshot = (await node.feed(None, FAR)).snapshot
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(psycopg.connect(fresh_db)) for _ in range(10)]
        open_: dict[int, list[int]] = {}
        for n in range(1_500):
            who = dice.randrange(len(writers))
            conn = writers[who]
            act = dice.random()
            if act < 0.5:
                conn.execute("SAVEPOINT s")
                conn.execute("INSERT INTO feed (kind, data) VALUES (0, ARRAY[%s, 1]::bigint[])", (n,))
                if dice.random() < 0.1:
                    conn.execute("ROLLBACK TO s")
                    continue
                open_.setdefault(who, []).append(n)
            elif act < 0.8:
                conn.commit()
                committed.update(open_.pop(who, ()))
            elif act < 0.9:
                conn.rollback()
                open_.pop(who, None)
            else:
                page = await node.feed(snapshot, FAR)
                snapshot = page.snapshot
                seen += [conv for conv, _ in page.changes.heads]
                assert sorted(seen) == sorted(committed), f"after step {n}"
        assert len(committed) > 300


def test_a_transaction_of_hours_does_not_make_reading_dear(fresh_db: str, db: psycopg.Connection[Any]) -> None:
    with connect(fresh_db) as slow, slow.transaction(), connect(fresh_db, options=READ_OPTIONS) as reader:
        slow.execute("SELECT pg_current_xact_id()")
        for _ in range(500):
            db.execute("INSERT INTO feed (kind, data) VALUES (0, '{1,1}')")
        snapshot = one(reader, "SELECT pg_current_snapshot()::text")
        db.execute("INSERT INTO feed (kind, data) VALUES (0, '{2,1}')")
        cur = psycopg.RawCursor(reader)
        assert cur.execute(query("feed_since"), (snapshot, FAR, b"")).rowcount == 2
        reader.execute("SELECT pg_stat_force_next_flush()")
        assert one(reader, "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'feed_xid'") == 1, (
            "not all since the old one began"
        )


async def test_who_is_late_gets_a_snapshot_and_no_rows(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    first = await node.feed(None, FAR)
    append(db, [Message(conversation(db))])
    late = await node.feed(first.snapshot, first.now_ms - 1)
    assert (late.rows, late.now_ms >= first.now_ms) == (0, True)
    assert (await node.feed(late.snapshot, FAR)).rows == 0
    assert (await node.feed(first.snapshot, late.now_ms + 60_000)).rows == 1


async def test_reading_waits_behind_no_client(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start(pool_max=1)
    db.execute("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
    reads = [asyncio.create_task(node.seen([ALICE])) for _ in range(100)]
    await asyncio.sleep(0)
    async with asyncio.timeout(EVENT_S_MAX):
        page = await node.feed(None, FAR)
        assert not any(read.done() for read in reads)
    db.execute("COMMIT")
    await asyncio.gather(*reads)
    assert page.snapshot


async def test_states_are_what_changed_since_a_mark_for_either_side_once(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    convs = [
        conversation(db, *pair)
        for pair in (("alice", "bob"), ("aaron", "alice"), ("alice", "alice"), ("bob", "carol"), ("carol", "dave"))
    ]
    append(db, [Message(x) for x in convs])
    empty = conversation(db, "alice", "zoe")

    async def found(*users: str, since: str = "0") -> list[int]:
        return sorted(row.id for row in await node.states([UserId(user) for user in users], since))

    assert await found("alice") == convs[:3]
    assert await found("bob", "alice") == convs[:4]
    mark = one(db, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
    assert await found("alice", "bob", since=mark) == []
    append(db, [Message(convs[1], side=1)])
    psycopg.RawCursor(db).execute(query("flush_cursors"), ([convs[3]], [1], [1], [0], [0]))
    assert await found("alice", "bob", since=mark) == [convs[1], convs[3]]
    (row,) = await node.states([BOB], mark)
    assert row == ConvRow(ConvId(convs[3]), BOB, UserId("carol"), 1, 1, 1, 0, row.ts, 1, 1, 0, 0, 0, 0)
    assert sorted(
        one_row.id for one_row in await node.states_of([ConvId(convs[4]), ConvId(empty), ConvId(12_345)])
    ) == [convs[4], empty]


# ---- old rows ------------------------------------------------------------------------------------


async def test_a_user_is_read_by_pages_each_conversation_once(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right: all of them, with the cursors of both sides; the feed's task ended with the first
    page, and the node with it.
    """
    monkeypatch.setattr(store, "LIST_ROWS_MAX", 2)
    node = await start()
    convs = [conversation(db, *pair) for pair in (("aaron", "alice"), *(("alice", f"p{n}") for n in range(4)))]
    append(db, [Message(x) for x in convs])
    db.execute("INSERT INTO cursors (conv, b_delivered, xid) SELECT id, 1, pg_current_xact_id() FROM conversations")
    got: list[ConvRow] = []
    after: UserId | None = BEGIN
    while after is not None:
        rows, after = await node.states_page(ALICE, after)
        got += rows
    assert [(row.id, row.head, row.b_delivered) for row in got] == [(x, 1, 1) for x in convs]


async def test_rows_that_everybody_has_seen_go_and_others_stay(
    fresh_db: str, start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    x, y, z = conversation(db), conversation(db, "alice", "carol"), conversation(db, "alice", "dave")
    left = "SELECT array_agg(abs(data[1]) ORDER BY abs(data[1])) FROM feed"
    with connect(fresh_db, options=FEED_OPTION) as slow:
        with slow.transaction():
            append(slow, [Message(x)])
            append(db, [Message(y)])
            first = (await node.feed(None, FAR)).snapshot
            append(db, [Message(z)])
            assert await node.feed_prune(NOTHING_PRUNED, first, 100) == 1
        assert one(db, left) == [x, z], "x has begun before and committed later: it is new to those who read at `first`"
        assert await node.feed_prune(NOTHING_PRUNED, first, 100) == 0
        second = (await node.feed(first, FAR)).snapshot
        assert await node.feed_prune(first, second, 1) == 1
        assert await node.feed_prune(first, second, 100) == 1
        assert await node.feed_prune(first, second, 100) == 0
    assert one(db, left) is None


async def test_one_node_takes_them_out_at_a_time(
    fresh_db: str, start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    append(db, [Message(conversation(db))])
    snapshot = (await node.feed(None, FAR)).snapshot
    with connect(fresh_db) as other:
        with other.transaction():
            other.execute(query("feed_prune").replace("$1", "'1:1:'").replace("$2", "'1:1:'").replace("$3", "1"))
            assert await node.feed_prune(NOTHING_PRUNED, snapshot, 100) is None
            assert one(db, "SELECT count(*) FROM feed") == 1
        assert await node.feed_prune(NOTHING_PRUNED, snapshot, 100) == 1


# ---- the whole -----------------------------------------------------------------------------------


class Everything(FeedFilter):
    """Of a node that asks for all rows."""

    def begin(self) -> bytes:
        return NO_FILTER


class Node:
    """A feed at work over a store, and what it was told; `until` waits for a head or cursor."""

    def __init__(self, store: Store, users: list[tuple[UserId, int]], interval_s: float = 0.02) -> None:
        self.heads: dict[int, int] = {}
        self.cursors: dict[int, tuple[int, ...]] = {}
        self.found: dict[int, ConvRow] = {}
        self._told = asyncio.Event()
        self.change_feed = ChangeFeed(
            store,
            store.metrics,
            now=asyncio.get_running_loop().time,
            interval_s=lambda: interval_s,
            heads=self._heads,
            cursors=self._cursors,
            found=self._found,
            clock=lambda ms, rtt: self._told.set(),
            users=lambda: users,
            wanted=Everything({}),
        )

    def _heads(self, heads: list[tuple[ConvId, int]]) -> None:
        self.heads.update(heads)
        self._told.set()

    def _cursors(self, cursors: list[tuple[ConvId, int, int, int, int]]) -> None:
        self.cursors.update((conv, rest) for conv, *rest in cursors)  # type: ignore[misc]

    def _found(self, found: list[ConvRow]) -> None:
        self.found.update((row.id, row) for row in found)

    async def until(self, done: Callable[[], bool]) -> None:
        await until(done, changed=self._told)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.change_feed.run())
        try:
            await self.until(lambda: self.change_feed.pages > 0)
            yield
        finally:
            assert not task.done()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_a_node_hears_what_another_writes(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node, other = Node(await start(), []), await start()
    x = conversation(db)
    async with node.at_work():
        conv = Conversation(ConvId(x), ALICE, BOB)
        session = Session(NoSink(), FrameRate(1e6, 1_000_000), 0.0)
        item = Item(session, 1, conv, BOB, 0, Cid(cid()), 0, "hi", None, 0)
        assert other.lanes.choose(item).submit(item)
        await node.until(lambda: x in node.found)
        assert (node.found[x].a, node.found[x].b, node.heads[x]) == ("alice", "bob", 1)
        conv.advance(1, 1, 1)
        other.cursor_moved(conv)
        await other.flush()
        await node.until(lambda: bool(node.cursors.get(x, ())) and list(node.cursors[x]) == [0, 0, 1, 1])


@pytest.mark.parametrize("nodes", [2, 8])
async def test_what_a_node_reads_depends_on_what_it_holds_and_not_on_the_number_of_nodes(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any], nodes: int
) -> None:
    """Each node's users send 20 messages to themselves, each a batch: one reads its own 20 rows, and
    the others' only where their bits are the same.
    """
    own = [conversation(db, f"own{n}", f"peer{n}") for n in range(20)]
    others = [[conversation(db, f"u{k}-{n}", f"v{k}-{n}") for n in range(20)] for k in range(nodes - 1)]
    for conv in [*own, *(conv for node in others for conv in node)]:
        append(db, [Message(conv)])  # the first entries come to all
    node = await start()
    wanted = FeedFilter(dict.fromkeys(map(ConvId, own)))
    first = await node.feed(None, FAR)
    for conv in [*own, *(conv for node in others for conv in node)]:
        append(db, [Message(conv)])
    page = await node.feed(first.snapshot, FAR, wanted.begin())
    assert (page.rows, pairs(page)) == (20, sorted((conv, 2) for conv in own))
    assert (await node.feed(first.snapshot, FAR)).rows == 20 * nodes, "without the filter"


async def test_short_rows_come_by_their_conversations_and_long_and_first_ones_always(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    x, y, z, new = (conversation(db, "alice", peer) for peer in ("bob", "carol", "dan", "eve"))
    append(db, [Message(x), Message(y), Message(z)])
    node = await start()
    first = await node.feed(None, FAR)
    append(db, [Message(x)])
    append(db, [Message(x), Message(y)])
    append(db, [Message(x), Message(y), Message(z)])
    append(db, [Message(new)])
    psycopg.RawCursor(db).execute(query("flush_cursors"), ([x], [1], [1], [1], [0]))
    psycopg.RawCursor(db).execute(query("flush_cursors"), ([x, y], [1, 1], [1, 1], [2, 1], [0, 0]))
    everything = await node.feed(first.snapshot, FAR)

    async def rows(*held: int) -> tuple[list[tuple[int, int]], list[int]]:
        wanted = FeedFilter(dict.fromkeys(map(ConvId, held)))
        page = await node.feed(first.snapshot, FAR, wanted.begin())
        return pairs(page), sorted(conv for conv, *_ in page.changes.cursors)

    long_and_new = [(x, 4), (y, 3), (z, 2), (new, 1)]
    assert everything.rows == 6
    assert await rows() == (long_and_new, [])
    assert await rows(z) == (long_and_new, [])
    assert await rows(y) == (sorted([*long_and_new, (x, 3), (y, 2)]), [x, y])
    assert await rows(x) == (pairs(everything), [x, x, y])


async def test_who_was_away_too_long_looks_up_all_held_users_also_what_is_new_to_it(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await start()
    node = Node(store, [(ALICE, 2), (BOB, 1)], interval_s=3_600.0)
    x, y, z = conversation(db), conversation(db, "alice", "carol"), conversation(db, "carol", "dave")
    append(db, [Message(x), Message(y), Message(z)])
    async with node.at_work():
        await node.until(lambda: not node.change_feed.catching_up)
        node.heads.clear()
        new = conversation(db, "bob", "dave")
        append(db, [Message(y), Message(z), Message(new)])
        db.execute("DELETE FROM feed")  # as after a minute
        monkeypatch.setattr(feeding, "BEHIND_S", -1.0)  # as if it were long ago
        monkeypatch.setattr(feeding, "XIDS_AGAIN", 0)
        node.change_feed.wake()
        await node.until(lambda: node.change_feed.pages >= 2 and not node.change_feed.catching_up)
        assert node.heads == {y: 2, new: 1}, "neither what did not change nor what nobody here has"
        assert node.found[new].b == "dave"


async def test_an_outage_loses_nothing(start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]) -> None:
    store = await start()
    node = Node(store, [(ALICE, 1)])
    x = conversation(db)
    pid = "SELECT pid FROM pg_stat_activity WHERE application_name = 'chatd feed' AND datname = current_database()"
    async with node.at_work():
        for n in range(1, 6):
            catchups = store.metrics.feed_catchups
            db.execute(f"SELECT pg_terminate_backend(pid) FROM ({pid}) p")
            append(db, [Message(x)])
            await node.until(lambda n=n: node.heads.get(x) == n)  # type: ignore[misc]
            await node.until(lambda n=catchups: store.metrics.feed_catchups > n)  # type: ignore[misc]
        assert store.metrics.feed_failed >= 1


async def test_a_server_that_hangs_holds_it_no_longer_than_its_deadline(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_feed_reader, "DEADLINE_S", 0.2)
    node = await start()
    await node.feed(None, FAR)
    frozen = one(
        db, "SELECT pid FROM pg_stat_activity WHERE application_name = 'chatd feed' AND datname = current_database()"
    )
    os.kill(frozen, signal.SIGSTOP)
    try:
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await node.feed(None, FAR)
            monkeypatch.undo()
            assert (await node.feed(None, FAR)).reconnected
    finally:
        os.kill(frozen, signal.SIGCONT)


async def test_a_crash_that_gives_ids_out_again_hides_nothing() -> None:
    """The server gives the id of a transaction that was rolled back to another one, which the
    snapshot of before takes for seen.
    """
    with tempfile.TemporaryDirectory(prefix="chatd-feed-") as place:
        server = Embedded(Path(place), settings={"wal_writer_delay": "10s"})
        try:
            server.start()
            migrate(server.conninfo)
            with connect(server.conninfo) as conn:
                partitions(conn)
                x = conversation(conn)
                append(conn, [Message(x)])
            store = Store(server.conninfo, LIMITS, Metrics())
            node = Node(store, [(ALICE, 1)], interval_s=3_600.0)
            async with node.at_work():
                await node.until(lambda: not node.change_feed.catching_up)
                lost = roll_back(server.conninfo)
                node.change_feed.wake()
                await node.until(lambda: node.change_feed.pages >= 2)
                before = node.change_feed.position.snapshot
                crash(server.conninfo)
                with connect(server.conninfo, options=FEED_OPTION) as conn:
                    append(conn, [Message(x)])
                    given = one(conn, "SELECT xid::text FROM feed")
                    assert given == lost, "the id was not given out again: the test shows nothing"
                    assert one(conn, "SELECT pg_visible_in_snapshot(xid, %s::pg_snapshot) FROM feed", (before,)), (
                        "reading on would find nothing"
                    )
                node.change_feed.wake()
                await node.until(lambda: node.heads.get(x) == 2)
            await store.stop()
        finally:
            server.stop()


def roll_back(conninfo: str) -> str:
    with connect(conninfo) as conn:
        conn.execute("BEGIN")
        xid = str(one(conn, "SELECT pg_current_xact_id()::text"))
        conn.execute("ROLLBACK")
        return xid


def crash(conninfo: str) -> None:
    """One backend is killed: the server ends all others and starts anew from its log.

    Returns when it answers again.
    """
    with connect(conninfo) as conn, connect(conninfo) as witness:
        os.kill(conn.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            witness.execute("SELECT pg_sleep(60)")
    while True:
        with contextlib.suppress(psycopg.OperationalError), connect(conninfo):
            return
