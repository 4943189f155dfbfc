"""The SQL function `append`: one order, each cid once, and what edits and deletes may do."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors as pg

from tests.integration.logs import (
    LANE_OPTIONS,
    Change,
    Message,
    age,
    append,
    cid,
    connect,
    conversation,
    entries,
    one,
    partitions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def db(fresh_db: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database with partitions for a month."""
    with connect(fresh_db) as conn:
        partitions(conn, back=31, ahead=1)
        yield conn


def head(db: psycopg.Connection[Any], conv: int) -> tuple[int, int, int]:
    row = db.execute("SELECT head, na, nb FROM conversations WHERE id = %s", (conv,)).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


# ---- messages ------------------------------------------------------------------------------------


def test_a_batch_gets_seqs_without_holes_and_one_row_a_conversation(db: psycopg.Connection[Any]) -> None:
    x, y = conversation(db), conversation(db, "alice", "carol")
    first = append(db, [Message(x, "1"), Message(y, "a"), Message(x, "2", side=1), Message(x, "3")])
    assert sorted((r.ord, r.conv, r.seq, r.note) for r in first) == [(None, x, 1, None), (None, y, 1, None)]
    second = append(db, [Message(y, "b"), Message(x, "4", side=1)])
    assert sorted((r.conv, r.seq) for r in second) == [(x, 4), (y, 2)]
    assert entries(db, x) == [(1, 0, "1"), (2, 0, "2"), (3, 0, "3"), (4, 0, "4")]
    assert head(db, x) == (4, 2, 2)
    assert db.execute("SELECT na, nb FROM entries WHERE conv = %s ORDER BY seq", (x,)).fetchall() == [
        (1, 0),
        (1, 1),
        (2, 1),
        (2, 2),
    ]


def test_text_is_stored_byte_for_byte(db: psycopg.Connection[Any]) -> None:
    x = conversation(db)
    texts = [
        "'; DROP TABLE entries; --",
        "<script>\n\t\\0",
        "\U0001f469‍\U0001f680" * 100,
        "é" * 1024,
        "{a,b}",
        'NULL"',
        "\\x00",
    ]
    append(db, [Message(x, text) for text in texts])
    assert [body for _, _, body in entries(db, x)] == texts


def test_a_repeat_gets_the_first_seq_and_time_and_uses_up_nothing(db: psycopg.Connection[Any]) -> None:
    x, known = conversation(db), cid()
    (first,) = append(db, [Message(x, "first", cid=known)])
    rows = append(db, [Message(x, "new"), Message(x, "another body", cid=known), Message(x, "newer")])
    assert [r for r in rows if r.ord is not None] == [(1, x, 1, first.ts, "dup")]
    assert [(r.conv, r.seq) for r in rows if r.ord is None] == [(x, 2)]
    assert entries(db, x) == [(1, 0, "first"), (2, 0, "new"), (3, 0, "newer")]
    assert head(db, x) == (3, 3, 0)


def test_a_batch_of_repeats_alone_changes_nothing(db: psycopg.Connection[Any]) -> None:
    x, known = conversation(db), cid()
    append(db, [Message(x, cid=known)])
    before = db.execute("SELECT xmin::text, * FROM conversations").fetchall()
    assert [r.note for r in append(db, [Message(x, cid=known)])] == ["dup"]
    after = db.execute("SELECT xmin::text, * FROM conversations").fetchall()
    assert after == before


def test_a_cid_is_its_senders_and_its_conversations(db: psycopg.Connection[Any]) -> None:
    x, y, same = conversation(db), conversation(db, "alice", "carol"), cid()
    rows = append(db, [Message(x, cid=same), Message(y, cid=same), Message(x, side=1, cid=same)])
    assert {r.note for r in rows} == {None}
    assert len(entries(db, x)) + len(entries(db, y)) == 3


def test_a_repeat_is_known_for_two_days_and_when_it_says_so_for_all_that_is_kept(db: psycopg.Connection[Any]) -> None:
    x, known = conversation(db), cid()
    (first,) = append(db, [Message(x, cid=known)])
    age(db, x, 1.9)
    assert [r.note for r in append(db, [Message(x, cid=known)])] == ["dup"]
    age(db, x, 27)
    rows = append(db, [Message(x, cid=known, flags=2), Message(x, flags=2)])
    assert [(r.ord, r.seq, r.note) for r in rows] == [(0, 1, "dup"), (None, 2, None)]
    assert (rows[0].ts or 0) < (first.ts or 0) - 28 * 86_400_000


def test_a_probe_finds_a_known_cid_and_writes_nothing(db: psycopg.Connection[Any]) -> None:
    x, known, old = conversation(db), cid(), cid()
    append(db, [Message(x, cid=old)])
    age(db, x, 20)
    append(db, [Message(x, cid=known)])
    rows = append(
        db,
        [
            Message(x, cid=known, flags=1),
            Message(x, flags=1),
            Message(x, cid=old, flags=3),
            Message(x, flags=3),
            Message(x, "in"),
        ],
    )
    special = sorted((r.ord, r.seq, r.note) for r in rows if r.ord is not None)
    assert special == [(0, 2, "dup"), (1, None, "limited"), (2, 1, "dup"), (3, None, "limited")]
    assert [body for _, _, body in entries(db, x)] == ["hi", "hi", "in"]


def test_time_does_not_go_back_along_a_log_when_the_clock_does(db: psycopg.Connection[Any]) -> None:
    x, known = conversation(db), cid()
    (before,) = append(db, [Message(x, cid=known)])
    age(db, x, -0.9)  # as if the clock had been ahead
    (row,) = append(db, [Message(x)])
    assert row.ts == (before.ts or 0) + int(0.9 * 86_400_000)
    assert [r.note for r in append(db, [Message(x, cid=known)])] == ["dup"], (
        "an entry ahead of the clock is looked for as well"
    )
    assert one(db, "SELECT bool_and(ts = later) FROM (SELECT ts, max(ts) OVER (ORDER BY seq) AS later FROM entries) e")


def test_the_clock_is_read_when_the_lock_is_held(fresh_db: str) -> None:
    with connect(fresh_db) as db, connect(fresh_db) as other:
        partitions(db)
        x = conversation(db)
        with db.transaction():
            db.execute("SELECT FROM conversations WHERE id = %s FOR NO KEY UPDATE", (x,))
            # The other's statement begins, and waits. `release` is the clock at the end of the
            # wait.
            rows: list[Any] = []
            thread = threading.Thread(target=lambda: rows.extend(append(other, [Message(x)])))
            thread.start()
            while not one(db, "SELECT cardinality(pg_blocking_pids(%s))", (other.info.backend_pid,)):
                pass
            # So that the begin and the end of the wait cannot be taken for each other
            db.execute("SELECT pg_sleep(0.02)")
            release = one(db, "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        thread.join()
        assert rows[0].ts >= release


def test_a_send_that_finds_no_partition_says_so_and_changes_nothing(fresh_db: str) -> None:
    with connect(fresh_db) as db:
        x = conversation(db)
        with pytest.raises(pg.CheckViolation, match="no partition") as caught:
            append(db, [Message(x)])
        assert caught.value.diag.constraint_name is None, "the writer tells it from a row at fault by this"
        assert head(db, x) == (0, 0, 0)
        assert one(db, "SELECT make_partition(clock_timestamp())") is not None
        assert one(db, "SELECT make_partition(clock_timestamp())") is None
        assert [r.seq for r in append(db, [Message(x)])] == [1]


def test_a_fresh_send_looks_for_its_cid_in_three_partitions_and_not_in_all(fresh_db: str) -> None:
    with connect(fresh_db) as db:
        partitions(db, back=31, ahead=7)
        x = conversation(db)

    def probes(flags: int) -> int:
        scans = "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_indexes WHERE indexrelname LIKE %s"
        with connect(fresh_db, options=LANE_OPTIONS) as db:
            before = one(db, scans, ("entries%conv_cid_idx",))
            append(db, [Message(x, flags=flags)])
            db.execute("SELECT pg_stat_force_next_flush()")
            return int(one(db, scans, ("entries%conv_cid_idx",)) - before)

    assert 1 <= probes(0) <= 3
    assert probes(2) > 30


def test_all_updates_of_a_conversation_are_hot(db: psycopg.Connection[Any]) -> None:
    convs = [conversation(db, "alice", f"peer {n}") for n in range(1_000)]
    seeded = random.Random(1)
    for _ in range(200):
        append(db, [Message(x) for x in seeded.sample(convs, 50)])
    db.execute("SELECT pg_stat_force_next_flush()")
    row = db.execute(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'conversations'"
    ).fetchone()
    assert row is not None
    assert row[0] >= 10_000
    assert row[1] == row[0]


# ---- edits and deletes ---------------------------------------------------------------------------


def test_an_edit_is_an_entry_and_changes_the_message(db: psycopg.Connection[Any]) -> None:
    x, known = conversation(db), cid()
    append(db, [Message(x, "one"), Message(x, "two", side=1)])
    (row,) = append(db, changes=[Change(x, 1, body="uno", cid=known)])
    assert (row.ord, row.conv, row.seq, row.note) == (-1, x, 3, None)
    assert entries(db, x) == [(1, 0, "uno"), (2, 0, "two"), (3, 1, None)]
    message = db.execute(
        "SELECT rev, (extract(epoch FROM changed) * 1000)::bigint FROM entries WHERE seq = 1"
    ).fetchone()
    assert message == (3, row.ts)
    assert db.execute("SELECT ref, na, nb FROM entries WHERE seq = 3").fetchone() == (1, 1, 1), "an edit is no message"
    assert append(db, changes=[Change(x, 1, body="other", cid=known)]) == [(-1, x, 3, row.ts, "dup")]
    assert [r.note for r in append(db, [Message(x, cid=known)])] == ["dup"]
    assert entries(db, x)[0] == (1, 0, "uno")


def test_a_delete_takes_the_text_out_of_every_row(db: psycopg.Connection[Any]) -> None:
    x, secret = conversation(db), "the secret"
    append(db, [Message(x, secret)])
    append(db, changes=[Change(x, 1, body=secret + "!")])
    (row,) = append(db, changes=[Change(x, 1, kind=2, body="left here by mistake")])
    assert (row.seq, row.note) == (3, None)
    assert entries(db, x) == [(1, 0, None), (2, 1, None), (3, 2, None)]
    assert (
        one(db, "SELECT count(*) FROM entries e WHERE e::text LIKE %s OR e::text LIKE '%%mistake%%'", (f"%{secret}%",))
        == 0
    )
    kept = db.execute("SELECT cid IS NOT NULL, side, rev FROM entries WHERE seq = 1").fetchone()
    assert kept == (True, 0, 3)
    assert [r.note for r in append(db, changes=[Change(x, 1), Change(x, 1, kind=2)])] == ["deleted", "deleted"]
    assert head(db, x) == (3, 1, 0)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (Change(0, 1, side=1), "not_author"),
        (Change(0, 1, kind=2, side=1), "not_author"),
        (Change(0, 2), "no_message"),
        (Change(0, 99), "no_message"),
        (Change(0, 0), "no_message"),
        (Change(0, 1, kind=-1), "limited"),
        (Change(0, 1, kind=-2), "limited"),
    ],
)
def test_a_change_that_may_not_be_changes_nothing(db: psycopg.Connection[Any], change: Change, note: str) -> None:
    x = conversation(db)
    append(db, [Message(x, "mine")])
    append(db, changes=[Change(x, 1, body="mine too")])  # seq 2 is an edit: no message
    before = entries(db, x)
    assert append(db, changes=[change._replace(conv=x)]) == [(-1, x, None, None, note)]
    assert entries(db, x) == before
    assert head(db, x)[0] == 2


def test_an_edit_comes_too_late_after_its_window_and_a_delete_never_does(db: psycopg.Connection[Any]) -> None:
    x = conversation(db)
    append(db, [Message(x)])
    age(db, x, 25)
    assert [r.note for r in append(db, changes=[Change(x, 1)])] == ["too_late"]
    assert [r.note for r in append(db, changes=[Change(x, 1)], edit_window="26 days")] == [None]
    assert [r.note for r in append(db, changes=[Change(x, 1, kind=2)])] == [None]


def test_a_message_below_the_floor_is_gone_for_edits_and_deletes(db: psycopg.Connection[Any]) -> None:
    x = conversation(db)
    append(db, [Message(x, "old"), Message(x, "new")])
    db.execute("UPDATE conversations SET floor = 2")  # retention raises it before the partition goes
    assert [r.note for r in append(db, changes=[Change(x, 1), Change(x, 1, kind=2), Change(x, 2)])] == [
        "no_message",
        "no_message",
        None,
    ]


def test_changes_follow_each_other_in_one_batch(db: psycopg.Connection[Any]) -> None:
    x, y = conversation(db), conversation(db, "alice", "carol")
    append(db, [Message(x, "x"), Message(y, "y")])
    rows = append(
        db,
        [Message(y, "y2")],
        [Change(x, 1, body="x!"), Change(y, 1, kind=2), Change(x, 1, kind=2), Change(x, 1, body="late")],
    )
    assert [(r.ord, r.seq, r.note) for r in rows] == [
        (None, 2, None),
        (-1, 2, None),
        (-2, 3, None),
        (-3, 3, None),
        (-4, None, "deleted"),
    ]
    assert entries(db, x) == [(1, 0, None), (2, 1, None), (3, 2, None)]
    assert entries(db, y) == [(1, 0, None), (2, 0, "y2"), (3, 2, None)]


def test_changes_by_seq_and_by_cid_in_one_batch(db: psycopg.Connection[Any]) -> None:
    """The cids of messages stand behind those of the changes, null where a change names its message
    by seq alone.
    """
    x, y = conversation(db), conversation(db, "carol", "dave")
    first, second = cid(), cid()
    append(db, [Message(x, "1", cid=first), Message(x, "2", cid=second), Message(y, "3", cid=first)])
    rows = append(
        db,
        changes=[Change(x, 1), Change(x, 0, body="two"), Change(y, 0), Change(x, 1)],
        named=[None, second, first, second],
    )
    assert [(r.ord, r.conv, r.seq, r.note) for r in rows] == [
        (-1, x, 3, None), (-2, x, 4, "ref 2"), (-3, y, 2, "ref 1"), (-4, x, None, "no_message"),
    ]  # fmt: skip
    assert [(seq, body) for seq, kind, body in entries(db, x) if kind == 0] == [(1, "hi!"), (2, "two")]
