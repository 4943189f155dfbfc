"""A lane on a real PostgreSQL: what its owner is told, whatever the database does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from chatd import errors
from chatd.core.batch import Batch, Item, LaneQueue
from chatd.core.conversation import Conversation
from chatd.core.frame_rate import FrameRate
from chatd.core.session import Session
from chatd.ids import Cid, ConvId, UserId
from chatd.metrics import Metrics
from chatd.postgres.append_answer import Answer
from chatd.postgres.connection import Backend, Opener
from chatd.postgres.faults import Outage
from chatd.postgres.health import Health
from chatd.postgres.lane import Lane
from chatd.postgres.lane_connection import RETRIES_MAX
from chatd.postgres.lanes import Lanes, LaneSettings
from chatd.protocol import DELETE, EDIT, MESSAGE
from tests.integration.logs import cid, connect, conversation, entries, one, only, partitions
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

EVENT_S_MAX = 20.0
QUEUE_MAX = 10_000


class NoSink:
    """Sessions here are only asked what stands in front of an item."""

    address = "test"
    is_paused = False

    def send(self, frame: bytes) -> None:
        raise AssertionError("a lane sends nothing")

    def close(self, code: int, reason: str) -> None:
        raise AssertionError("a lane closes nothing")

    async def drained(self) -> None:
        raise AssertionError("a lane waits for no client")


class Told:
    """An Outcome that keeps what it is told, and lets a test wait until every item has its answer."""

    def __init__(self) -> None:
        self.seqs: dict[str, int] = {}  # by cid
        # By cid: None (written), a note of `append`, "failed", "refused", "blocked"
        self.notes: dict[str, str | None] = {}
        self.doubts: set[int] = set()
        self.waiters: list[asyncio.Event] = []

    def _note(self, item: Item, note: str | None, seq: int | None = None) -> None:
        assert item.cid not in self.notes, "told twice"
        self.notes[item.cid] = note
        if seq is not None:
            self.seqs[item.cid] = seq
        for waiter in self.waiters:
            waiter.set()

    def committed(self, batch: Batch, answer: Answer, now: float) -> None:
        next_seq = {conv: first.seq for conv, first in answer.firsts.items()}
        for n, item in enumerate(batch.messages):
            if (result := answer.messages.get(n)) is not None:
                self._note(item, result.what.value, result.seq or None)
            else:
                self._note(item, None, next_seq[item.conv.id])
                next_seq[item.conv.id] += 1
        for item, result in zip(batch.changes, answer.changes, strict=True):
            self._note(item, result.what.value, result.seq or None)

    def failed(self, items: list[Item], error: errors.Retryable, *, is_unknown: bool = False) -> None:
        for item in items:
            self._note(item, "failed")

    def refused(self, item: Item) -> None:
        self._note(item, "refused")

    def blocked(self, items: list[Item]) -> None:
        for item in items:
            self._note(item, "blocked")

    def outcome_unknown(self, convs: set[ConvId], writers: set[Backend]) -> None:
        self.doubts |= convs
        for waiter in self.waiters:
            waiter.set()

    async def until(self, done: Callable[[], bool]) -> None:
        waiter = asyncio.Event()
        self.waiters.append(waiter)
        await until(done, changed=waiter)


class Bench:
    """A lane at work, its conversations, and a connection to look at what it did."""

    def __init__(self, conninfo: str, db: psycopg.Connection[Any], **lane: Any) -> None:
        self.db, self.told, self.metrics = db, Told(), Metrics()
        self.conninfo = db.info.dsn
        self.session = Session(NoSink(), FrameRate(1e6, 1_000_000), 0.0)
        self.conv = Conversation(ConvId(conversation(db)), UserId("alice"), UserId("bob"))
        self.made = 0
        self.lane = self._make(0, conninfo, **lane)
        self._id = 0

    def _make(self, number: int, conninfo: str, **lane: Any) -> Lane:
        usual = {
            "queue_max": QUEUE_MAX, "deadline_s": 5.0, "edit_window_s": 900.0, "partition": self.make_partition,
            "now": time.monotonic,
        }  # fmt: skip
        lane = {**usual, **lane}
        opener = Opener(conninfo)
        with connect(self.conninfo) as conn:
            epoch, identity = only(conn, "SELECT epoch, log_identity() FROM meta")
            conn.execute("UPDATE meta SET identity = log_identity()")
        opener.state.adopt(epoch, identity)
        return Lane(number, opener, LaneQueue(256), self.told, self.metrics, Health(time.monotonic), **lane)

    def beside(self, conninfo: str) -> Lane:
        """A second lane, which shares with the first."""
        second = self._make(1, conninfo)
        self.lane.others, second.others = [second], [self.lane]
        return second

    def among(self, lanes: list[Lane]) -> Lanes:
        """These as the lanes of a node, which choose."""
        settings = LaneSettings(len(lanes), 256, QUEUE_MAX, 5.0, 900.0, feed=False)
        node = Lanes(self.lane._opener, self.metrics, Health(time.monotonic), settings, self.make_partition)
        node.all = lanes
        return node

    async def make_partition(self) -> None:
        self.made += 1
        await asyncio.to_thread(self.db.execute, "SELECT make_partition(clock_timestamp())")

    def put(
        self, body: str | None = "hi", *, kind: int = MESSAGE, ref: int | None = None, known: str = "", flags: int = 0
    ) -> str:
        """Queue an item; gives its cid."""
        self._id += 1
        known = known or cid()
        item = Item(self.session, self._id, self.conv, UserId("bob"), 0, Cid(known), kind, body, ref, flags)
        assert self.lane.submit(item)
        return known

    async def answered(self, *cids: str) -> list[str | None]:
        await self.told.until(lambda: all(one_cid in self.told.notes for one_cid in cids))
        return [self.told.notes[one_cid] for one_cid in cids]

    def log(self) -> list[tuple[int, int, str | None]]:
        return entries(self.db, self.conv.id)

    @property
    def backend(self) -> int:
        """The pid of the lane's server process."""
        assert self.lane._conn is not None
        return self.lane._conn.info.backend_pid


async def end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def db(fresh_db: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(fresh_db) as conn:
        partitions(conn)
        yield conn


@pytest.fixture
async def start(fresh_db: str, db: psycopg.Connection[Any]) -> AsyncIterator[Callable[..., Awaitable[Bench]]]:
    """Starts a lane; keyword arguments are the lane's, `conninfo` replaces the database's."""
    tasks: list[asyncio.Task[None]] = []

    async def make(conninfo: str = fresh_db, **lane: Any) -> Bench:
        bench = Bench(conninfo, db, **lane)
        await bench.lane.connect()
        tasks.append(asyncio.create_task(bench.lane.run()))
        return bench

    yield make
    await end(tasks)


async def test_items_are_written_in_the_order_they_were_put(start: Callable[..., Awaitable[Bench]]) -> None:
    bench = await start()
    cids = [bench.put(str(n)) for n in range(600)]
    assert set(await bench.answered(*cids)) == {None}
    assert bench.log() == [(n + 1, MESSAGE, str(n)) for n in range(600)]
    assert [bench.told.seqs[one_cid] for one_cid in cids] == list(range(1, 601))
    assert bench.conv.pending == 0
    assert max(bench.metrics.batch_rows.counts) > 0


async def test_a_lane_hands_conversations_to_one_with_less_to_do_and_their_order_holds(
    fresh_db: str, db: psycopg.Connection[Any]
) -> None:
    """Conversations that always have something pending would stay in the lane that they began in,
    and the others idle.
    """
    bench = Bench(fresh_db, db)
    second = bench.beside(fresh_db)
    lanes = [bench.lane, second]
    convs = [
        Conversation(ConvId(conversation(db, "alice", f"peer {n}")), UserId("alice"), UserId(f"peer {n}"))
        for n in range(20)
    ]
    handed: list[Item] = []
    split = LaneQueue.split

    def watched(queue: LaneQueue, rows: int) -> list[Item]:
        items = split(queue, rows)
        for conv, count in Counter(item.conv for item in items).items():
            assert count == conv.pending, "nothing of it is under way"
        handed.extend(items)
        return items

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaneQueue, "split", watched)
        cids: list[Cid] = []
        for n in range(100):
            for conv in convs:  # all at once: none is ever without something pending
                item = Item(bench.session, len(cids) + 1, conv, conv.b, 0, Cid(cid()), MESSAGE, f"{n}", None, 0)
                cids.append(item.cid)
                lane = bench.among(lanes).choose(item)
                assert lane is bench.lane
                assert lane.submit(item)
        tasks = [asyncio.create_task(lane.run()) for lane in lanes]
        assert set(await bench.answered(*cids)) == {None}
        for lane in lanes:
            await lane.idle.wait()
    assert handed
    assert [conv.pending for conv in convs] == [0] * 20
    for conv in convs:
        assert entries(db, conv.id) == [(n + 1, MESSAGE, f"{n}") for n in range(100)]
    await end(tasks)


async def test_a_lane_that_cannot_connect_is_given_nothing_and_comes_back_by_itself(
    fresh_db: str, db: psycopg.Connection[Any]
) -> None:
    bench = Bench(fresh_db, db)
    nowhere = psycopg.conninfo.make_conninfo(fresh_db, host="127.0.0.1", port=1)
    broken = bench.beside(nowhere)
    lanes = [broken, bench.lane]
    await broken.warm()
    away = [lane for lane in lanes if lane.backoff_s]
    assert away == [broken]
    with pytest.raises(Outage, match="refused"):  # as it said when it was tried, a moment ago
        await broken.connect()
    cids: list[Cid] = []
    for n in range(1_500):
        conv = Conversation(ConvId(conversation(db, "alice", f"peer {n}")), UserId("alice"), UserId(f"peer {n}"))
        item = Item(bench.session, n + 1, conv, conv.b, 0, Cid(cid()), MESSAGE, "hi", None, 0)
        lane = bench.among(lanes).choose(item)
        assert lane is bench.lane
        cids.append(item.cid)
        assert lane.submit(item)
    tasks = [asyncio.create_task(lane.run()) for lane in lanes]
    assert set(await bench.answered(*cids)) == {None}
    broken._opener = bench.lane._opener
    await until(lambda: not broken.backoff_s)
    await end(tasks)


async def test_a_further_lane_has_a_connection_only_while_the_load_may_open_it(
    fresh_db: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(fresh_db, db)
    second = bench.beside(fresh_db)
    bench.lane.next, bench.lane.warms_at = second, 2
    for lane in (bench.lane, second):
        await lane.connect()
    tasks = [asyncio.create_task(lane.run()) for lane in (bench.lane, second)]
    monkeypatch.setattr("chatd.postgres.lane.IDLE_S", 0.05)
    assert await bench.answered(bench.put()) == [None]
    second._wake.set()  # it waits with the patience of before
    await until(lambda: second._conn is None)
    assert bench.lane._conn is not None, "the first has one always"
    assert await bench.answered(bench.put()) == [None]
    assert second._conn is None
    monkeypatch.setattr("chatd.postgres.lane.IDLE_S", 60.0)
    assert await bench.answered(bench.put(), bench.put()) == [None, None]
    await until(lambda: second._conn is not None)
    assert not second.queue.items
    await end(tasks)


async def test_a_lane_whose_batch_waits_is_given_nothing_until_it_is_over(
    fresh_db: str, db: psycopg.Connection[Any]
) -> None:
    """A transaction of somebody else holds a conversation of the first lane's batch; whoever is
    idle goes on in the second.
    """
    bench = Bench(fresh_db, db)
    second = bench.beside(fresh_db)
    lanes = [bench.lane, second]
    for lane in lanes:
        await lane.connect()
    tasks = [asyncio.create_task(lane.run()) for lane in lanes]
    with connect(fresh_db) as other:
        with other.transaction():
            other.execute("SELECT FROM conversations WHERE id = %s FOR UPDATE", (bench.conv.id,))
            waits = bench.put("waits")
            await until(lambda: not bench.lane.is_responsive)
            conv = Conversation(ConvId(conversation(db, "alice", "carol")), UserId("alice"), UserId("carol"))
            item = Item(bench.session, 2, conv, conv.b, 0, Cid(cid()), MESSAGE, "hi", None, 0)
            assert bench.among(lanes).choose(item) is second
            assert second.submit(item)
            assert await bench.answered(item.cid) == [None]
            assert waits not in bench.told.notes
        assert await bench.answered(waits) == [None]
    await bench.lane.idle.wait()
    assert bench.among(lanes).choose(item) is bench.lane
    await end(tasks)


async def test_edits_and_deletes_stay_behind_what_was_put_before(start: Callable[..., Awaitable[Bench]]) -> None:
    bench = await start()
    bench.put("one")
    bench.put("uno", kind=EDIT, ref=1)
    bench.put("two")
    bench.put(None, kind=DELETE, ref=1)
    last = bench.put("three")
    await bench.answered(last)
    assert bench.log() == [
        (1, MESSAGE, None),
        (2, EDIT, None),
        (3, MESSAGE, "two"),
        (4, DELETE, None),
        (5, MESSAGE, "three"),
    ]


async def test_twins_are_written_once_and_a_later_repeat_is_a_dup(start: Callable[..., Awaitable[Bench]]) -> None:
    bench = await start()
    known = bench.put("first")
    bench.put("twin", known=known)
    assert await bench.answered(known) == [None]
    del bench.told.notes[known]
    bench.put("repeat", known=known)
    assert await bench.answered(known) == ["dup"]
    assert bench.log() == [(1, MESSAGE, "first")]
    assert bench.conv.pending == 0


async def test_a_batch_that_the_data_makes_fail_is_halved_until_only_the_row_at_fault_is_refused(
    start: Callable[..., Awaitable[Bench]], db: psycopg.Connection[Any]
) -> None:
    db.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.body = 'poison' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$;"
        " CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON entries FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    bench = await start()
    bodies = [str(n) for n in range(40)]
    bodies[7] = bodies[29] = "poison"
    cids = [bench.put(body) for body in bodies]
    cids.append(bench.put("poison", kind=EDIT, ref=1))
    cids.append(bench.put("fine", kind=EDIT, ref=2))
    notes = await bench.answered(*cids)
    assert [n for n, note in enumerate(notes) if note == "refused"] == [7, 29, 40]
    assert notes.count(None) == 39
    kept = [body for body in bodies if body != "poison"]
    kept[1] = "fine"
    assert bench.log() == [*((n + 1, MESSAGE, body) for n, body in enumerate(kept)), (39, EDIT, None)]
    assert bench.conv.pending == 0


async def test_a_missing_partition_is_made_however_often_it_takes(
    start: Callable[..., Awaitable[Bench]], db: psycopg.Connection[Any]
) -> None:
    tries: list[None] = []

    async def late() -> None:
        tries.append(None)
        if len(tries) >= RETRIES_MAX - 1:
            await bench.make_partition()

    bench = await start(partition=late)
    for (name,) in db.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'entries_2%'"
    ).fetchall():
        db.execute(f"DROP TABLE {name}")
    assert await bench.answered(bench.put()) == [None], (
        "a short partition may be over before the next try: that is no fault of the data"
    )
    assert len(tries) == RETRIES_MAX - 1


@pytest.mark.parametrize(
    "error", [errors.Unavailable("away", retry_ms=1), psycopg.errors.LockNotAvailable("busy"), TimeoutError()]
)
async def test_a_partition_that_cannot_be_made_fails_the_batch_and_not_the_lane(
    fresh_db: str, error: Exception
) -> None:
    async def never() -> None:
        raise error

    with connect(fresh_db) as db:
        bench = Bench(fresh_db, db, partition=never)
        task = asyncio.create_task(bench.lane.run())
        assert await bench.answered(bench.put()) == ["failed"]
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_conflict_is_tried_again_inside(
    start: Callable[..., Awaitable[Bench]], db: psycopg.Connection[Any]
) -> None:
    db.execute(
        "CREATE SEQUENCE tries; CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('tries') <= 2 THEN RAISE EXCEPTION USING ERRCODE = '40001'; END IF; RETURN NEW; END $$;"
        " CREATE TRIGGER conflict BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION conflict()"
    )
    bench = await start()
    assert await bench.answered(bench.put()) == [None]
    assert bench.metrics.batches_retried == 2


async def test_a_warning_of_a_statement_is_no_outage(
    start: Callable[..., Awaitable[Bench]], db: psycopg.Connection[Any]
) -> None:
    """As a trigger gives it, or PostgreSQL with each transaction id once few are left: nothing was
    acked any more.
    """
    db.execute(
        "CREATE FUNCTION warns() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'few are left'; RETURN"
        " NEW; END $$"
    )
    db.execute("CREATE TRIGGER warns BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION warns()")
    bench = await start()
    assert await bench.answered(bench.put("1"), bench.put("2")) == [None, None]


async def test_a_commit_whose_wait_for_a_standby_was_cut_short_is_of_unknown_outcome(
    start: Callable[..., Awaitable[Bench]], db: psycopg.Connection[Any]
) -> None:
    bench = await start()
    try:
        db.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        db.execute("SELECT pg_reload_conf()")
        waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
        await until(lambda: not bench.put() or one(db, waits, [bench.backend]), pause_s=0.02)
        waiting = bench.lane.rows_underway
        db.execute("SELECT pg_cancel_backend(%s)", [bench.backend])
        await bench.told.until(lambda: "failed" in bench.told.notes.values())
        assert list(bench.told.notes.values()).count("failed") == waiting
    finally:
        db.execute("ALTER SYSTEM RESET synchronous_standby_names")
        db.execute("SELECT pg_reload_conf()")


async def test_a_cut_connection_leaves_the_outcome_unknown_and_the_lane_comes_back(
    start: Callable[..., Awaitable[Bench]], db: psycopg.Connection[Any]
) -> None:
    bench = await start()
    with db.transaction():  # holds the conversation, so that the batch is under way when the connection goes
        db.execute("SELECT FROM conversations FOR UPDATE")
        lost = bench.put("lost?")
        await blocked(db, bench.backend)
        db.execute("SELECT pg_terminate_backend(%s)", (bench.backend,))
        assert await bench.answered(lost) == ["failed"]
    assert bench.conv.pending == 0
    await bench.told.until(lambda: bench.told.doubts == {bench.conv.id})
    del bench.told.notes[lost]
    bench.put("lost?", known=lost)
    assert await bench.answered(lost) == [None]
    assert bench.log() == [(1, MESSAGE, "lost?")]


async def test_a_server_that_hangs_holds_a_lane_no_longer_than_its_deadline(
    start: Callable[..., Awaitable[Bench]], db: psycopg.Connection[Any]
) -> None:
    """psycopg alone would wait 10 s more for the server to confirm the cancel.

    When the server wakes up, the cid is still written once.
    """
    bench = await start(deadline_s=0.3)
    frozen = bench.backend
    gone = os.pidfd_open(frozen)  # before it wakes up: it may end at once
    os.kill(frozen, signal.SIGSTOP)
    try:
        lost = bench.put("lost?")
        async with asyncio.timeout(5):
            assert await bench.answered(lost) == ["failed"]
        async with asyncio.timeout(5):
            assert await bench.answered(bench.put("next")) == [None]
    finally:
        os.kill(frozen, signal.SIGCONT)
    await asyncio.wait_for(readable(gone), EVENT_S_MAX)
    os.close(gone)
    del bench.told.notes[lost]
    bench.put("lost?", known=lost)
    await bench.answered(lost)
    assert sorted(body or "" for _, _, body in bench.log()) == ["lost?", "next"]
    assert one(db, "SELECT count(*) FROM entries WHERE cid = %s", (lost,)) == 1


async def test_the_operators_own_options_stand_beside_the_lanes(
    fresh_db: str, start: Callable[..., Awaitable[Bench]], db: psycopg.Connection[Any]
) -> None:
    db.execute(f"ALTER DATABASE {db.info.dbname} SET default_transaction_isolation = 'serializable'")
    db.execute(f"ALTER DATABASE {db.info.dbname} SET synchronous_commit = 'off'")
    bench = await start(psycopg.conninfo.make_conninfo(fresh_db, options="-c search_path=public,elsewhere"))
    assert bench.lane._conn is not None
    shown = [(await (await bench.lane._conn.execute(f"SHOW {name}")).fetchone() or ("",))[0] for name in SESSION]
    assert dict(zip(SESSION, shown, strict=True)) == SESSION


SESSION = {
    "search_path": "public,elsewhere",
    "transaction_isolation": "read committed",
    "synchronous_commit": "on",
    "statement_timeout": "5s",
}


async def blocked(db: psycopg.Connection[Any], pid: int) -> None:
    """Until that server process waits for a lock."""
    await until(lambda: one(db, "SELECT cardinality(pg_blocking_pids(%s))", (pid,)))


async def readable(fd: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
