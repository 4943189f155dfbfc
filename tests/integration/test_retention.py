"""Partitions come and go beside readers and senders who must not notice, and floors tell the truth
at every moment.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql

from chatd.errors import SettingError, Unavailable
from chatd.ids import ConvId
from chatd.metrics import Metrics
from chatd.postgres import partitions as retention
from chatd.postgres.connection import Opener
from chatd.postgres.partitions import Retention
from tests.integration.logs import (
    DAY_S,
    LANE_OPTIONS,
    Message,
    age,
    append,
    connect,
    conversation,
    entries,
    one,
    partitions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVENT_S_MAX = 30.0


class Node:
    """A node's retention, and the floors its memory was told."""

    def __init__(self, conninfo: str, held: tuple[int, ...] = (), **settings: Any) -> None:
        self.metrics = Metrics()
        self.told: dict[int, int] = {}
        self.on_told: Callable[[], None] = lambda: None
        settings = {"retention_s": 30.0 * DAY_S, "partition_s": DAY_S, "ahead": 2, **settings}
        self.retention = Retention(
            Opener(conninfo),
            metrics=self.metrics,
            held=lambda: [ConvId(conv) for conv in held],
            floors=self._floors,
            **settings,
        )
        self.once = self.retention.once

    def _floors(self, floors: list[tuple[ConvId, int]]) -> None:
        self.told.update(floors)
        self.on_told()


@pytest.fixture
def db(fresh_db: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(fresh_db) as conn:
        yield conn


def aged(db: psycopg.Connection[Any], *days: float) -> int:
    """A conversation with a message of each of these ages, the oldest first."""
    conv = conversation(db, "alice", f"peer {one(db, 'SELECT count(*) FROM conversations')}")
    for n, d in enumerate(days):
        append(db, [Message(conv, f"{d}")])
        age(db, conv, d if n == len(days) - 1 else d - days[n + 1])
    return conv


def floor(db: psycopg.Connection[Any], conv: int) -> int:
    return int(one(db, "SELECT floor FROM conversations WHERE id = %s", (conv,)))


def states(db: psycopg.Connection[Any]) -> dict[str, int]:
    """How many partitions are attached, detach pending, detached."""
    rows = db.execute(
        "SELECT CASE WHEN i.inhrelid IS NULL THEN 'detached' WHEN i.inhdetachpending THEN 'pending' ELSE 'attached'"
        " END, count(*)"
        " FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid WHERE c.relkind = 'r' AND c.relname LIKE"
        " 'entries_2%' GROUP BY 1"
    )
    return dict(rows.fetchall())


async def waiting(db: psycopg.Connection[Any]) -> int:
    """Until retention's backend waits for another transaction to end; gives its pid."""
    statement = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'chatd retention' AND wait_event = 'virtualxid'"
    )
    async with asyncio.timeout(EVENT_S_MAX):
        while (row := db.execute(statement).fetchone()) is None:
            await asyncio.sleep(0)
        return int(row[0])


# ---- made ahead ----------------------------------------------------------------------------------


async def test_partitions_are_made_ahead_once_however_many_nodes_start(
    fresh_db: str, db: psycopg.Connection[Any]
) -> None:
    nodes = [Node(fresh_db, ahead=3) for _ in range(8)]
    await asyncio.gather(*(node.retention.prepare() for node in nodes))
    assert states(db) == {"attached": 4}
    assert sum(node.metrics.partitions_made for node in nodes) == 4
    conv = conversation(db)
    append(db, [Message(conv)])
    age(db, conv, -3)
    assert len(entries(db, conv)) == 1


async def test_short_partitions_are_made_without_holes_though_the_clock_goes_on(
    fresh_db: str, db: psycopg.Connection[Any]
) -> None:
    # So many of a second each that making them takes seconds itself.
    await Node(fresh_db, partition_s=1, ahead=400).retention.prepare()
    names = [
        row[0]
        for row in db.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'entries_2%' ORDER BY 1"
        )
    ]
    starts = [datetime.strptime(name, "entries_%Y%m%dt%H%M%S").replace(tzinfo=UTC) for name in names]
    assert [(later - start).total_seconds() for start, later in pairwise(starts)] == [1.0] * 400


async def test_times_are_read_whatever_style_the_database_has_for_them(
    fresh_db: str, db: psycopg.Connection[Any]
) -> None:
    db.execute(sql.SQL("ALTER DATABASE {} SET datestyle = 'German'").format(sql.Identifier(db.info.dbname)))
    await Node(fresh_db, ahead=1).retention.prepare()
    assert states(db) == {"attached": 2}


async def test_the_first_node_settles_the_width_and_another_is_refused(
    fresh_db: str, db: psycopg.Connection[Any]
) -> None:
    await Node(fresh_db, partition_s=3600).retention.prepare()
    assert one(db, "SELECT partition_s FROM meta") == 3600
    with pytest.raises(SettingError, match=r"^partition_s: is 86400.* give 3600$"):
        await Node(fresh_db).retention.prepare()
    assert one(db, "SELECT partition_s FROM meta") == 3600
    await Node(fresh_db, partition_s=3600).retention.prepare()
    assert states(db) == {"attached": 3}


async def test_nodes_of_two_widths_that_start_at_once_do_not_mix_them(
    fresh_db: str, db: psycopg.Connection[Any]
) -> None:
    done = await asyncio.gather(
        *(Node(fresh_db, partition_s=s).retention.prepare() for s in (60, 3600) * 3), return_exceptions=True
    )
    assert [type(error) for error in done if error is not None] == [SettingError] * 3
    assert states(db) == {"attached": 3}


async def test_without_a_database_prepare_says_so_and_run_goes_on(
    postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(psycopg.conninfo.make_conninfo(postgres.conninfo, dbname="nowhere"))
    with pytest.raises(Unavailable, match="nowhere"):
        await node.retention.prepare()
    late: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(retention.log, "warning", lambda event, **facts: late.put_nowait(facts["reason"]))
    node.retention.interval_s = 0.0
    task = asyncio.create_task(node.retention.run())
    async with asyncio.timeout(EVENT_S_MAX):
        assert "nowhere" in await late.get()
        assert "nowhere" in await late.get()
    task.cancel()


# ---- dropped behind ------------------------------------------------------------------------------


async def test_what_is_past_goes_and_floors_follow(fresh_db: str, db: psycopg.Connection[Any]) -> None:
    partitions(db, back=40)
    mixed, old, young = aged(db, 39, 35, 29, 0), aged(db, 33, 32), aged(db, 1)
    node = Node(fresh_db, held=(mixed, young))
    await node.once()
    assert [seq for seq, _, _ in entries(db, mixed)] == [3, 4]
    assert entries(db, old) == []
    assert (floor(db, mixed), floor(db, old), floor(db, young)) == (3, 3, 1), "nothing left: the floor is head + 1"
    assert node.told == {mixed: 3}
    assert node.metrics.partitions_dropped == 10
    assert one(db, "SELECT min(ts) > now() - interval '31 days' FROM entries")
    assert [r.seq for r in append(db, [Message(old)])] == [3], "a seq never starts again"
    before = states(db)
    await node.once()
    assert states(db) == before


async def test_floors_are_raised_and_told_before_the_partition_goes(fresh_db: str, db: psycopg.Connection[Any]) -> None:
    partitions(db, back=33)
    conv = aged(db, 33, 0)
    node = Node(fresh_db, held=(conv,))
    seen: list[object] = []
    node.on_told = lambda: seen.append((len(entries(db, conv)), floor(db, conv), states(db).get("pending", 0)))
    await node.once()
    assert seen[0] == (2, 2, 0), "at that moment all was still there"


async def test_floors_are_raised_in_steps_and_never_lowered(
    fresh_db: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    partitions(db, back=33)
    convs = [aged(db, 33, 33, 0) for _ in range(7)]
    db.execute("UPDATE conversations SET floor = 9 WHERE id = %s", (convs[3],))
    changed = one(db, "SELECT max(xid::text::bigint) FROM conversations")
    monkeypatch.setattr(retention, "FLOOR_ROWS", 2)
    monkeypatch.setattr(retention, "HELD_ROWS", 3)
    node = Node(fresh_db, held=tuple(convs))
    await node.once()
    assert [floor(db, conv) for conv in convs] == [3, 3, 3, 9, 3, 3, 3]
    assert node.told == {conv: floor(db, conv) for conv in convs}
    assert one(db, "SELECT max(xid::text::bigint) FROM conversations") == changed, (
        "a floor is no change that every hello should list"
    )


async def test_another_nodes_memory_learns_floors_in_its_next_pass(fresh_db: str, db: psycopg.Connection[Any]) -> None:
    other = Node(fresh_db)
    await other.retention.prepare()
    partitions(db, back=33)
    conv = aged(db, 33, 0)
    other = Node(fresh_db, held=(conv,))
    await other.retention.prepare()
    await Node(fresh_db).once()
    assert other.told == {}
    await other.once()
    assert other.told == {conv: 2}
    other.told.clear()
    await other.once()
    assert other.told == {}, "asked for only when a partition went"


async def test_one_node_at_a_time_drops(fresh_db: str, db: psycopg.Connection[Any]) -> None:
    partitions(db, back=33, ahead=0)
    db.execute("SELECT pg_advisory_lock(hashtext('chatd.retention'))")
    before = states(db)["attached"]
    await Node(fresh_db, ahead=2).once()
    assert states(db) == {"attached": before + 2}
    db.execute("SELECT pg_advisory_unlock_all()")
    nodes = [Node(fresh_db) for _ in range(4)]
    await asyncio.gather(*(node.once() for node in nodes))
    await nodes[0].once()
    assert sum(node.metrics.partitions_dropped for node in nodes) == 3


async def test_a_table_that_is_no_partition_by_its_name_is_left_alone(
    fresh_db: str, db: psycopg.Connection[Any]
) -> None:
    partitions(db)
    db.execute(
        "CREATE TABLE entries_backup (n int); CREATE TABLE entries_20200101 (n int);"
        " CREATE SCHEMA mine; CREATE TABLE mine.entries_20200101t000000 (n int)"
    )
    await Node(fresh_db).once()
    assert (
        one(
            db,
            "SELECT count(*) FROM pg_tables WHERE tablename IN ('entries_backup', 'entries_20200101',"
            " 'entries_20200101t000000')",
        )
        == 3
    )


# ---- beside readers and senders ------------------------------------------------------------------


class Sender:
    """Sends without a break on a lane's connection.

    Any wait for a lock of more than `lock_timeout` is an error: behind a reader it has no end.
    """

    def __init__(self, conninfo: str, conv: int, lock_timeout: str = "1s") -> None:
        self.sent = 0
        self._stop = threading.Event()
        self._moved = threading.Condition()
        self._pool = ThreadPoolExecutor(1)
        self._run = self._pool.submit(self._send, conninfo, conv, lock_timeout)

    def _send(self, conninfo: str, conv: int, lock_timeout: str) -> None:
        with connect(conninfo, options=f"{LANE_OPTIONS} -c lock_timeout={lock_timeout}") as conn:
            while not self._stop.is_set():
                append(conn, [Message(conv)])
                with self._moved:
                    self.sent += 1
                    self._moved.notify()

    def more(self, n: int) -> None:
        """Until so many more are sent; raises what stopped the sender."""
        goal = self.sent + n
        with self._moved:
            while self.sent < goal and not self._run.done():
                self._moved.wait(0.1)
        if self._run.done():
            self._run.result()

    def stop(self) -> None:
        self._stop.set()
        self._run.result(EVENT_S_MAX)
        self._pool.shutdown()


async def test_partitions_go_and_come_beside_an_open_reader_without_a_stalled_send(
    fresh_db: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(retention.SESSION, "lock_timeout", "30s")
    partitions(db, back=35, ahead=0)
    conv = aged(db, *range(35, -1, -1))
    sender = Sender(fresh_db, aged(db, 0))
    node = Node(fresh_db, ahead=5)
    with connect(fresh_db) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries")
        task = asyncio.create_task(node.once())
        await waiting(db)  # the new partitions are made, the first detach waits for the reader
        assert states(db)["pending"] == 1
        assert node.metrics.partitions_made == 5
        await asyncio.to_thread(sender.more, 200)
        reader.execute("COMMIT")
        while not task.done():  # whoever reads entries first and the floor afterwards finds all from the floor on
            seqs = {seq for seq, _, _ in entries(reader, conv)}
            low = floor(reader, conv)
            assert set(range(low, max(seqs) + 1)) <= seqs
            await asyncio.sleep(0)
        await task
    await asyncio.to_thread(sender.more, 50)
    sender.stop()
    assert node.metrics.partitions_dropped == 5
    assert states(db) == {"attached": 36}


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE {old}",
        "ALTER TABLE entries DETACH PARTITION {old}",
        "CREATE TABLE naive PARTITION OF entries FOR VALUES FROM ('2000-01-01') TO ('2000-01-02')",
    ],
)
def test_the_plain_statements_would_stall_the_sender(
    fresh_db: str, db: psycopg.Connection[Any], statement: str
) -> None:
    """What the test above rests on is able to fail: this is what retention must not do."""
    partitions(db, back=2)
    conv = aged(db, 2, 0)
    old = one(db, "SELECT tableoid::regclass::text FROM entries WHERE seq = 1")
    sender = Sender(fresh_db, conv)
    with connect(fresh_db) as reader, connect(fresh_db) as naive, ThreadPoolExecutor(1) as thread:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries")
        waits = thread.submit(naive.execute, statement.format(old=old))
        try:
            with pytest.raises(pg.LockNotAvailable):
                sender.more(1_000_000)
        finally:
            reader.execute("COMMIT")
            waits.result(EVENT_S_MAX)


@pytest.mark.parametrize("cut", ["lock_timeout", "killed"])
async def test_an_interrupted_detach_is_finished_by_the_next_pass(
    fresh_db: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    monkeypatch.setitem(retention.SESSION, "lock_timeout", "500ms" if cut == "lock_timeout" else "30s")
    partitions(db, back=33)
    conv = aged(db, 33, 0)
    sender = Sender(fresh_db, aged(db, 0))
    with connect(fresh_db) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries")
        task = asyncio.create_task(Node(fresh_db).once())
        if cut == "killed":
            db.execute("SELECT pg_terminate_backend(%s)", (await waiting(db),))
        with pytest.raises(psycopg.OperationalError):
            await task
        assert states(db)["pending"] == 1
        assert min(seq for seq, _, _ in entries(db, conv)) == 2 == floor(db, conv), (
            "gone for new statements, and the floor says so"
        )
        if cut == "lock_timeout":
            with pytest.raises(pg.LockNotAvailable):
                await Node(fresh_db).once()
        await asyncio.to_thread(sender.more, 20)
        reader.execute("COMMIT")
    node = Node(fresh_db)
    await node.once()
    sender.stop()
    assert node.metrics.partitions_dropped == 3
    assert set(states(db)) == {"attached"}


async def test_a_table_that_was_detached_and_not_dropped_is_dropped(fresh_db: str, db: psycopg.Connection[Any]) -> None:
    partitions(db, back=33)
    conv = aged(db, 33, 0)
    old = one(db, "SELECT tableoid::regclass::text FROM entries WHERE conv = %s AND seq = 1", (conv,))
    db.execute("UPDATE conversations SET floor = 2")
    db.execute(f"ALTER TABLE entries DETACH PARTITION {old} CONCURRENTLY")
    assert states(db)["detached"] == 1
    await Node(fresh_db).once()
    assert set(states(db)) == {"attached"}
    assert one(db, "SELECT to_regclass(%s)", (old,)) is None


async def test_short_partitions_run_through_a_whole_life_under_load(fresh_db: str, db: psycopg.Connection[Any]) -> None:
    """Partitions of a second, kept for two, made and dropped by the task itself while a sender and
    a reader go on.
    """
    # A machine that stalls for seconds is no fault of ours
    node = Node(fresh_db, retention_s=2.0, partition_s=1, ahead=20)
    await node.retention.prepare()
    conv = conversation(db)
    task = asyncio.create_task(node.retention.run())
    sender = Sender(fresh_db, conv, "5s")  # its own conversation's floor is raised again and again
    with connect(fresh_db) as reader:
        async with asyncio.timeout(EVENT_S_MAX):
            while node.metrics.partitions_dropped < 4:
                assert not task.done()
                seqs = {seq for seq, _, _ in await asyncio.to_thread(entries, reader, conv)}
                low = floor(reader, conv)
                assert set(range(low, max(seqs, default=0) + 1)) <= seqs
    sender.stop()
    task.cancel()
    assert floor(db, conv) > 1
    left = [seq for seq, _, _ in entries(db, conv)]
    assert left == list(range(left[0], sender.sent + 1)), "what is left is a suffix without holes"
    assert floor(db, conv) >= left[0]
