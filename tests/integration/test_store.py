"""The store beside the lanes: what a hello lists, cursors written behind, conversations made once,
and reads through an outage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from chatd import errors, store
from chatd.core.conversation import Conversation
from chatd.ids import ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres import mark, read_pool
from chatd.postgres.rows import BEGIN
from chatd.store import Store
from tests.integration.logs import Change, Message, age, append, connect, conversation, one, only, partitions
from tests.integration.stores import LIMITS, NoLane, StartStore, stores
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

ALICE, BOB, CAROL = UserId("alice"), UserId("bob"), UserId("carol")


@pytest.fixture
def db(fresh_db: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(fresh_db) as conn:
        partitions(conn, back=33)
        yield conn


@pytest.fixture
async def start(fresh_db: str, db: psycopg.Connection[Any]) -> AsyncIterator[StartStore]:
    """Starts a node's store; keyword arguments replace limits."""
    async with stores(fresh_db, NoLane(), LIMITS) as start:
        yield start


def conv(id: int, a: UserId = ALICE, b: UserId = BOB) -> Conversation:
    return Conversation(ConvId(id), a, b)


# ---- what a hello lists --------------------------------------------------------------------------


async def listed(node: Store, user: UserId, since: str) -> set[int]:
    page = await node.list_changed(user, since, BEGIN, False, [])
    return {row.id for row in page.rows}


async def test_a_mark_does_not_miss_a_transaction_that_began_before_it_and_committed_after(
    fresh_db: str, start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    x, y, z = conversation(db), conversation(db, "alice", "carol"), conversation(db, "alice", "dave")
    append(db, [Message(x), Message(y), Message(z)])
    with connect(fresh_db) as slow:
        with slow.transaction():
            append(slow, [Message(x)])
            append(db, [Message(y)])  # later, and committed first
            first = await node.list_changed(ALICE, "0", BEGIN, True, [])
        assert {row.id: row.head for row in first.rows} == {x: 1, y: 2, z: 1}
        assert x in await listed(node, ALICE, first.mark)
        newest = one(db, "SELECT max(xid::text::bigint) FROM conversations WHERE id = %s", (y,))
        mine = mark.read(first.mark, node.epoch)
        assert mine is not None
        assert x not in await listed(node, ALICE, str(mine._replace(xid=newest + 1))), (
            "a mark behind the newest change seen would miss it"
        )
        assert z not in await listed(node, ALICE, first.mark), "what did not change is not listed"


async def test_a_cursor_that_moved_is_a_change_for_both(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node, other = await start(), await start()
    x = conversation(db)
    append(db, [Message(x), Message(x, side=1)])
    last = (await node.list_changed(ALICE, "0", BEGIN, True, [])).mark
    last = (await node.list_changed(ALICE, last, BEGIN, True, [])).mark
    assert await listed(node, BOB, last) == set()
    moved = conv(x)
    moved.advance(1, 1, 1)
    other.cursor_moved(moved)
    await other.flush()
    for user in (ALICE, BOB):
        (row,) = (await node.list_changed(user, last, BEGIN, False, [])).rows
        assert (row.id, row.b_delivered, row.b_read, row.b_read_n, row.changed) == (x, 1, 1, 1, True)


@pytest.mark.parametrize("side", [0, 1])
async def test_until_both_have_sent_a_cursor_that_moved_is_a_change_for_its_own_user_alone(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any], side: int
) -> None:
    """Right: who wrote and was not answered cannot tell from a listing since a mark that the other
    one got it or read it.
    """
    node = await start()
    x, notes = conversation(db), conversation(db, *[(ALICE, BOB)[side]] * 2)
    append(db, [Message(x, side=1 - side), Message(x, side=1 - side), Message(notes)])
    own, stranger = (ALICE, BOB) if side == 0 else (BOB, ALICE)
    moved, note = conv(x), conv(notes, own, own)

    async def move(delivered: int, read: int) -> None:
        moved.advance(side, delivered, read)
        node.cursor_moved(moved)
        await node.flush()

    async def mark_of(user: UserId) -> str:
        return (await node.list_changed(user, "0", BEGIN, True, [])).mark

    for delivered, read in ((1, 0), (1, 1), (2, 1)):  # the row is new; it is there
        before = {user: await mark_of(user) for user in (own, stranger)}
        await move(delivered, read)
        assert await listed(node, own, before[own]) == {x}
        assert await listed(node, stranger, before[stranger]) == set()
    before = {user: await mark_of(user) for user in (own, stranger)}
    moved.advance(1 - side, 2, 0)
    note.advance(0, 1, 1)
    node.cursor_moved(moved)
    node.cursor_moved(note)
    await node.flush()
    assert await listed(node, stranger, before[stranger]) == {x}
    assert await listed(node, own, before[own]) == {notes}, "notes to oneself have one side"
    before = {user: await mark_of(user) for user in (own, stranger)}
    append(db, [Message(x, side=side)])
    await move(2, 2)
    assert [await listed(node, user, before[user]) for user in (own, stranger)] == [{x}, {x}]


async def test_a_row_of_the_release_before_is_a_change_for_both_until_it_is_written_again(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    """Right: no own move is missed for not knowing whose it was; from the next one on it is known."""
    node = await start()
    x = conversation(db)
    append(db, [Message(x), Message(x)])
    marks = [(await node.list_changed(user, "0", BEGIN, True, [])).mark for user in (ALICE, BOB)]
    db.execute("INSERT INTO cursors (conv, b_delivered, xid) VALUES (%s, 1, pg_current_xact_id())", (x,))
    assert [await listed(node, user, last) for user, last in zip((ALICE, BOB), marks, strict=True)] == [{x}, {x}]
    marks = [(await node.list_changed(user, "0", BEGIN, True, [])).mark for user in (ALICE, BOB)]
    moved = conv(x)
    moved.advance(1, 2, 2)
    node.cursor_moved(moved)
    await node.flush()
    assert [await listed(node, user, last) for user, last in zip((ALICE, BOB), marks, strict=True)] == [set(), {x}]


async def test_pages_hold_all_once_and_named_ones_come_unchanged(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LIST_ROWS_MAX", 3)
    node = await start()
    convs = [
        conversation(db, *pair)
        for pair in (("alice", "alice"), ("aaron", "alice"), *(("alice", f"p{n}") for n in range(5)))
    ]
    empty = conversation(db, "alice", "nobody wrote")
    append(db, [Message(x) for x in convs])
    got: list[str] = []
    after: UserId | None = BEGIN
    while after is not None:
        page = await node.list_changed(ALICE, "0", after, True, [])
        got += [row.a if row.b == ALICE else row.b for row in page.rows]
        assert len(page.rows) <= 3
        after = page.next
    assert got == sorted(["aaron", "alice", *(f"p{n}" for n in range(5))]), (
        "each once, notes to oneself too, and none without an entry"
    )
    monkeypatch.setattr(store, "LIST_ROWS_MAX", 100)
    last = (await node.list_changed(ALICE, "0", BEGIN, True, [])).mark
    named = await node.list_changed(ALICE, last, BEGIN, False, [ConvId(convs[2]), ConvId(empty), ConvId(12_345)])
    assert [(row.id, row.changed) for row in named.rows] == [(convs[2], False)]
    foreign = await node.list_changed(BOB, "0", BEGIN, True, [ConvId(convs[2])])
    assert foreign.rows == []
    assert mark.read(foreign.mark, node.epoch) is not None, "the mark comes also when no conversation does"


# ---- cursors -------------------------------------------------------------------------------------


def cursors(db: psycopg.Connection[Any], x: int) -> tuple[Any, ...]:
    return only(
        db, "SELECT a_delivered, a_read, a_read_n, b_delivered, b_read, b_read_n FROM cursors WHERE conv = %s", (x,)
    )


async def test_read_counts_are_the_peers_messages_up_to_the_cursor(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    x = conversation(db)
    append(db, [Message(x, side=side) for side in (0, 1, 1, 0, 1)])
    append(db, changes=[Change(x, 2, side=1)])  # seq 6 is no message
    append(db, [Message(x, side=1)])
    mine = conv(x)
    for read, n in ((1, 0), (3, 2), (5, 3), (6, 3), (7, 4)):
        mine.advance(0, read, read)
        node.cursor_moved(mine)
        await node.flush()
        assert cursors(db, x) == (read, read, n, 0, 0, 0)
    mine.advance(1, 7, 4)
    node.cursor_moved(mine)
    await node.flush()
    assert cursors(db, x) == (7, 7, 4, 7, 4, 2)


async def test_cursors_only_go_forward_whichever_node_writes_last(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node, stale = await start(), await start()
    x = conversation(db)
    append(db, [Message(x, side=1) for _ in range(9)])
    ahead, behind = conv(x), conv(x)
    ahead.advance(0, 8, 6)
    behind.advance(0, 3, 2)
    behind.advance(1, 9, 0)
    node.cursor_moved(ahead)
    await node.flush()
    stale.cursor_moved(behind)
    await stale.flush()
    assert cursors(db, x) == (8, 6, 6, 9, 0, 0)


async def test_a_read_cursor_below_the_floor_leaves_what_is_kept_unread(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    """Nothing tells any more how many messages there were up to it: all that is gone counts as
    read.
    """
    node = await start()
    x = conversation(db)
    append(db, [Message(x, side=side) for side in (1, 1, 1, 0, 1, 1)])
    db.execute("DELETE FROM entries WHERE seq <= 4")  # as a dropped partition
    late = conv(x)
    late.advance(0, 2, 2)
    node.cursor_moved(late)
    await node.flush()
    assert cursors(db, x)[2] == 3, "4 messages and more are known to be gone, 5 and 6 are unread"
    db.execute("DELETE FROM entries; DELETE FROM cursors")
    node.cursor_moved(late)
    await node.flush()
    assert cursors(db, x)[2] == 5


# ---- conversations -------------------------------------------------------------------------------


async def test_a_pair_that_two_nodes_make_at_once_is_made_once(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    nodes = [await start() for _ in range(3)]
    pairs = [(ALICE, UserId(f"p{n}")) for n in range(20)]
    made = await asyncio.gather(*(node.resolve(some, [None] * 20) for node in nodes for some in (pairs, pairs[::-1])))
    assert len({tuple(sorted((row.b, row.id) for row in rows)) for rows in made}) == 1
    assert one(db, "SELECT count(*) FROM conversations") == 20


@pytest.mark.parametrize("known", [None, BOB])
async def test_a_pair_that_another_transaction_is_making_is_waited_for(
    fresh_db: str, start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any], known: UserId | None
) -> None:
    node = await start()
    node.user_seen(BOB, 1)
    await node.flush()
    with connect(fresh_db) as other:
        with other.transaction():
            x = conversation(other)
            task = asyncio.create_task(node.resolve([(ALICE, BOB)], [known]))
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            await until(lambda: one(db, waits))
        assert [row.id for row in await task] == [x]


async def test_who_has_never_been_here_may_be_refused(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    assert await node.resolve([(ALICE, BOB)], [BOB]) == []
    assert one(db, "SELECT count(*) FROM conversations") == 0
    node.user_seen(BOB, 1)  # not written yet
    assert [row.b for row in await node.resolve([(ALICE, BOB), (ALICE, CAROL)], [BOB, CAROL])] == [BOB]
    assert await node.seen([ALICE, BOB]) == {BOB: 1}


# ---- history -------------------------------------------------------------------------------------


async def test_history_shows_messages_as_they_stand_now(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    x = conversation(db)
    append(db, [Message(x, "kept"), Message(x, "wrong"), Message(x, "secret")])
    append(db, changes=[Change(x, 2, body="right"), Change(x, 3, body="more secret"), Change(x, 3, kind=2)])
    want = [
        (1, "kept", None, None),
        (2, "right", None, 4),
        (3, None, None, 6),
        (4, "right", 2, None),
        (5, None, 3, None),
        (6, None, 3, None),
    ]
    forwards = await node.entries_after(ConvId(x), 0, 6, 10)
    assert [(e.seq, e.body, e.ref, e.rev) for e in forwards] == want
    assert await node.entries_before(ConvId(x), 7, 1, 10) == forwards[::-1]
    assert await node.entries_many([(ConvId(x), 0, 6), (ConvId(99), 0, 5)], 10) == [(ConvId(x), e) for e in forwards]
    assert [e.seq for e in await node.entries_after(ConvId(x), 2, 5, 2)] == [3, 4]
    assert [e.seq for e in await node.entries_before(ConvId(x), 5, 2, 2)] == [4, 3]


async def test_an_edit_whose_message_is_gone_has_no_text_and_a_stale_floor_finds_what_is_left(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    x = conversation(db)
    append(db, [Message(x, "old")])
    age(db, x, 32)
    append(db, changes=[Change(x, 1, body="new")], edit_window="40 days")
    old = one(db, "SELECT tableoid::regclass::text FROM entries WHERE seq = 1")
    db.execute("UPDATE conversations SET floor = 2")
    db.execute(f"ALTER TABLE entries DETACH PARTITION {old} CONCURRENTLY")
    for rows in (await node.entries_before(ConvId(x), 3, 1, 10), await node.entries_after(ConvId(x), 0, 2, 10)):
        assert [(e.seq, e.body, e.ref) for e in rows] == [(2, None, 1)]


# ---- partitions and outages ----------------------------------------------------------------------


async def test_partitions_ahead_are_counted_and_made(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    assert await node.partitions_left() == 1
    assert not await node.make_partition()
    assert await node.make_partition(days_ahead=2)
    assert await node.partitions_left() == 2
    assert node.metrics.partitions_made == 1


async def test_reads_outlive_the_death_of_all_their_connections(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start()
    x = conversation(db)
    await asyncio.gather(*(node.heads([ConvId(x)]) for _ in range(8)))
    killed = one(
        db,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'chatd reads' AND"
        " datname = current_database()",
    )
    assert killed >= 1
    assert [head[:4] for head in await node.heads([ConvId(x)])] == [(x, 0, 0, 0)]


async def test_a_server_that_hangs_holds_a_read_no_longer_than_its_time(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_pool, "READ_TIMEOUT_S", 0.2)
    node = await start(pool_max=1)
    await node.ping()
    frozen = one(
        db, "SELECT pid FROM pg_stat_activity WHERE application_name = 'chatd reads' AND datname = current_database()"
    )
    os.kill(frozen, signal.SIGSTOP)
    try:
        async with asyncio.timeout(4):
            with pytest.raises(errors.Unavailable):
                await node.ping()
            while True:  # the pool makes another connection by itself
                with contextlib.suppress(errors.Unavailable):
                    await node.ping()
                    break
    finally:
        os.kill(frozen, signal.SIGCONT)


async def test_without_a_database_reads_are_unavailable_and_cursors_stay_dirty(
    fresh_db: str, start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_pool, "READ_TIMEOUT_S", 0.3)
    node = await start()
    x = conversation(db)
    append(db, [Message(x)])
    name = db.info.dbname
    with connect(psycopg.conninfo.make_conninfo(fresh_db, dbname="postgres")) as admin:
        db.close()
        await gone(admin, name)
        admin.execute(f"ALTER DATABASE {name} RENAME TO {name}_away")
        moved = conv(x)
        moved.advance(0, 1, 1)
        node.cursor_moved(moved)
        for call in (node.heads([ConvId(x)]), node.flush(), node.ping(), node.partitions_left()):
            with pytest.raises(errors.Unavailable):
                await call
        admin.execute(f"ALTER DATABASE {name}_away RENAME TO {name}")
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(errors.Unavailable):
                await node.flush()
                break
    with connect(fresh_db) as again:
        assert cursors(again, x)[:3] == (1, 1, 0)


async def gone(admin: psycopg.Connection[Any], name: str) -> None:
    """Until nobody is connected to that database."""
    admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    async with asyncio.timeout(20):
        while one(
            admin, "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = %s", (name,)
        ):
            await asyncio.sleep(0)
    admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


async def test_a_store_that_finds_no_database_says_so(postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_pool, "READ_TIMEOUT_S", 0.3)
    away = Store(psycopg.conninfo.make_conninfo(postgres.conninfo, dbname="nowhere"), LIMITS, Metrics())
    with pytest.raises(errors.Unavailable):
        await away.start(NoLane())
    await away.stop()


async def test_too_many_waiting_reads_are_refused_and_the_others_answered(
    start: Callable[..., Awaitable[Store]], db: psycopg.Connection[Any]
) -> None:
    node = await start(pool_max=1, reads_queue_max=2)
    done = await asyncio.gather(*(node.ping() for _ in range(10)), return_exceptions=True)
    assert {type(result) for result in done} == {int, errors.Overloaded}


async def test_a_read_that_is_cancelled_while_it_gives_its_connection_back_does_not_take_it_along(
    start: Callable[..., Awaitable[Store]], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(read_pool, "READ_TIMEOUT_S", 0.3)  # how long the last one would wait in vain
    node = await start(pool_max=1)
    await node.ping()
    busy = asyncio.Event()
    fetchall = psycopg.AsyncRawCursor.fetchall

    async def told(self: Any) -> Any:
        rows = await fetchall(self)
        await node.read_pool._pool._lock.acquire()  # somebody is at the pool when it would be given back
        busy.set()
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.AsyncRawCursor, "fetchall", told)
        reading = asyncio.create_task(node.ping())
        await busy.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        node.read_pool._pool._lock.release()
    await node.ping()
