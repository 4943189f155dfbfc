"""Several writers on one log: a cid that two of them bring is written once, and none waits for
another in a circle.

The check is shown to catch the fault it is there for: a twin of `append` that looks for duplicates
before it holds the locks.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest

from chatd.postgres.queries import query
from tests.integration.logs import (
    LANE_OPTIONS,
    Change,
    Message,
    append,
    append_function,
    cid,
    connect,
    conversation,
    fenced_as_before,
    one,
    partitions,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RACES = 1_500  # over a partition edge each second: some 3 s
# Partitions of a second made ahead, again for every ROUND races: a busy machine may take a minute
# for all of them
AHEAD = 60
ROUND = 100
LOCKS = """    SELECT max(v.last_ts), count(*) INTO newest, locked FROM (
        SELECT v.last_ts FROM conversations v WHERE v.id = ANY (m_conv || x_conv) ORDER BY v.id FOR NO KEY UPDATE
    ) v;
"""


def naive(conn: psycopg.Connection[Any]) -> None:
    """Put the fault in: look first, then lock."""
    text = append_function("0005_pre_fence")
    assert text.count(LOCKS) == 1
    text = text.replace(LOCKS, "    newest := clock_timestamp() + interval '1 day'; locked := convs;\n")
    text = text.replace("    IF again THEN", LOCKS + "    t := greatest(t, newest);\n    IF again THEN", 1)
    fenced_as_before(conn, text)


class Raced(NamedTuple):
    """What came of many races: cids written twice, partitions in which entries are, races in which
    one was told `dup`.
    """

    doubled: int
    partitions: int
    dups: int


def race(conninfo: str, races: int, naively: bool = False) -> Raced:
    """Two nodes bring the same cid of the same conversation at the same moment, again and again,
    over edges of partitions of one second.
    """
    with connect(conninfo, options=LANE_OPTIONS) as one_node, connect(conninfo, options=LANE_OPTIONS) as other:
        convs = [conversation(one_node, "alice", f"peer {n}") for n in range(5)]
        if naively:
            naive(one_node)
        barrier = threading.Barrier(2)

        def bring(conn: psycopg.Connection[Any], cids: list[list[str]]) -> int:
            dups = 0
            for same in cids:
                barrier.wait(30)
                rows = append(conn, [Message(conv, cid=known) for conv, known in zip(convs, same, strict=True)])
                dups += sum(row.note == "dup" for row in rows)
            return dups

        dups = 0
        with ThreadPoolExecutor(2) as threads:
            for start in range(0, races, ROUND):
                partitions(one_node, 1, ahead=AHEAD)
                cids = [[cid() for _ in convs] for _ in range(min(ROUND, races - start))]
                dups += sum(
                    run.result() for run in [threads.submit(bring, one_node, cids), threads.submit(bring, other, cids)]
                )
        doubled = one(one_node, "SELECT count(*) FROM (SELECT FROM entries GROUP BY conv, cid HAVING count(*) > 1) d")
        holes = one(
            one_node,
            "SELECT count(*) FROM (SELECT FROM entries GROUP BY conv HAVING count(DISTINCT seq) <> max(seq) OR"
            " min(seq) <> 1) d",
        )
        assert holes == 0
        return Raced(doubled, one(one_node, "SELECT count(DISTINCT tableoid) FROM entries"), dups)


def test_two_nodes_racing_one_cid_over_partition_edges_never_double_it(fresh_db: str) -> None:
    raced = race(fresh_db, RACES)
    assert raced.doubled == 0
    assert raced.dups == RACES * 5
    assert raced.partitions >= 2


def test_the_race_catches_a_check_before_the_lock(fresh_db: str) -> None:
    assert race(fresh_db, 200, naively=True).doubled > 0


@pytest.mark.parametrize("naively", [False, True])
@pytest.mark.parametrize("kind", ["message", "edit", "message again"])
def test_a_repeat_that_waits_while_the_first_commits_over_an_edge_sees_it(
    fresh_db: str, naively: bool, kind: str
) -> None:
    """The same, step by step: the second node waits for the lock, the partition's edge passes, the
    first node commits.
    """
    patient = f"{LANE_OPTIONS} -c lock_timeout=0"
    with (
        connect(fresh_db, options=patient) as first,
        connect(fresh_db, options=patient) as second,
        ThreadPoolExecutor(1) as thread,
    ):
        partitions(first, 1, ahead=AHEAD)
        conv, known = conversation(first), cid()
        append(first, [Message(conv, "to be edited")])
        if naively:
            naive(first)

        def bring(conn: psycopg.Connection[Any]) -> Any:
            if kind == "edit":
                return append(conn, changes=[Change(conv, 1, cid=known)])
            return append(conn, [Message(conv, cid=known, flags=2 if kind == "message again" else 0)])

        with first.transaction():
            rows = bring(first)
            waits = thread.submit(bring, second)
            while not one(first, "SELECT cardinality(pg_blocking_pids(%s))", (second.info.backend_pid,)):
                assert not waits.done()
            # Until the next partition has begun
            first.execute("SELECT pg_sleep(1.01 - mod(extract(epoch FROM clock_timestamp()), 1))")
        (repeat,) = waits.result(30)
        if naively and kind != "edit":  # the edit's own check comes after the lock even in the twin
            assert repeat.note is None, "the seeded fault is not there any more: look at `naive`"
        else:
            assert (repeat.note, repeat.seq, repeat.ts) == ("dup", rows[0].seq, rows[0].ts)
            assert one(first, "SELECT count(*) FROM entries WHERE cid = %s", (known,)) == 1


def test_a_database_set_to_repeatable_read_does_not_set_lanes_to_it(fresh_db: str) -> None:
    with connect(fresh_db) as conn:
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET default_transaction_isolation = 'repeatable read'")
    assert race(fresh_db, 200).dups == 1_000, "no serialization failure, none doubled"


def test_nodes_with_overlapping_conversations_never_deadlock(fresh_db: str) -> None:
    """Two lanes in opposite orders, edits too, beside the flush of cursors and the raising of
    floors, all on the same few conversations.
    """
    with connect(fresh_db) as conn:
        partitions(conn)
        convs = [conversation(conn, "alice", f"peer {n}") for n in range(40)]
        append(conn, [Message(conv) for conv in convs])
        day = one(conn, "SELECT tableoid::regclass::text FROM entries LIMIT 1")

    def lane(seed: int) -> int:
        shuffled = random.Random(seed)
        with connect(fresh_db, options=LANE_OPTIONS) as conn:
            for _ in range(150):
                picked = shuffled.sample(convs, 30)
                append(conn, [Message(conv) for conv in picked[:20]], [Change(conv, 1) for conv in picked[20:]])
        return 150 * 30

    def cursors(seed: int) -> int:
        shuffled = random.Random(seed)
        with connect(fresh_db) as conn:
            for n in range(150):
                picked = shuffled.sample(convs, 30)
                psycopg.RawCursor(conn).execute(
                    query("flush_cursors"), (picked, [n] * 30, [n] * 30, [0] * 30, [0] * 30)
                )
        return 0

    def floors(_: int) -> int:
        with connect(fresh_db) as conn:
            for _ in range(150):
                psycopg.RawCursor(conn).execute(query("raise_floors").replace("PARTITION", day), (0, 40))
                conn.execute("UPDATE conversations SET floor = 1 WHERE id = %s", (convs[0],))
        return 0

    work: list[Callable[[int], int]] = [lane, lane, cursors, cursors, floors]
    with ThreadPoolExecutor(len(work)) as threads:
        runs = [threads.submit(one_of, seed) for seed, one_of in enumerate(work)]
        for run in runs:
            run.result(120)
    with connect(fresh_db) as conn:
        assert one(conn, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
        assert one(conn, "SELECT count(*) FROM (SELECT FROM entries GROUP BY conv HAVING count(*) <> max(seq)) d") == 0
