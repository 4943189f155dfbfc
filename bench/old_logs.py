"""Conversations that were there before the run: written by COPY, before any of their users comes to
the node.

The schema's invariants hold as in `fill`. Messages are of both sides in turns, so a conversation of
two messages or more is open. `edits` are further entries about the first message, which has the
text of the last one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import psycopg

STEP_S: Final = 0.001  # from an entry to the next one


class Old(NamedTuple):
    """One conversation of two users, with so many messages of so many bytes, and edits of the first
    one.
    """

    a: str
    b: str
    messages: int
    body_bytes: int = 100
    edits: int = 0

    @property
    def head(self) -> int:
        return self.messages + self.edits


def write(conninfo: str, olds: Sequence[Old], seed: int) -> list[str]:
    """Gives their names for the wire. The schema is there."""
    rng = random.Random(seed)
    with psycopg.connect(conninfo, autocommit=True, application_name="chatd bench") as conn, conn.transaction():
        conn.execute("SET LOCAL synchronous_commit = off")
        row = conn.execute("SELECT pg_current_xact_id()::text, extract(epoch FROM clock_timestamp())").fetchone()
        assert row is not None
        xid, now = row[0], float(row[1])
        # It may be just past midnight
        conn.execute("SELECT make_partition(to_timestamp(%s))", (now - max(old.head for old in olds) * STEP_S,))
        ids = [
            n
            for (n,) in conn.execute(
                "SELECT nextval(pg_get_serial_sequence('conversations', 'id')) FROM generate_series(1, %s)",
                (len(olds),),
            )
        ]
        named = list(zip(ids, olds, strict=True))
        conn.execute(
            "INSERT INTO users (id, seen_ms) SELECT unnest(%s::text[]), 0 ON CONFLICT DO NOTHING",
            (sorted({u for o in olds for u in o[:2]}),),
        )
        with conn.cursor().copy("COPY conversations (id, a, b, head, floor, na, nb, last_ts) FROM STDIN") as copy:
            for id, old in named:
                a, b = sorted((old.a, old.b))
                copy.write_row((id, a, b, old.head, 1, (old.messages + 1) // 2, old.messages // 2, _iso(now)))
        with conn.cursor().copy(
            "COPY cursors (conv, a_delivered, a_read, a_read_n, b_delivered, b_read, b_read_n, xid) FROM STDIN"
        ) as copy:
            for id, _ in named:
                copy.write_row((id, 0, 0, 0, 0, 0, 0, xid))
        with conn.cursor().copy(
            "COPY entries (conv, seq, ts, cid, na, nb, side, kind, body, ref, ref_ts, rev, changed) FROM STDIN"
        ) as copy:
            for id, old in named:
                for entry in _entries(old, now, rng):
                    copy.write_row((id, *entry))
    return [str(id) for id in ids]


def _entries(old: Old, now: float, rng: random.Random) -> Iterator[tuple[object, ...]]:
    start = now - old.head * STEP_S
    na = nb = 0
    for seq in range(1, old.head + 1):
        ts, cid = start + seq * STEP_S, f"{rng.getrandbits(128):032x}"
        if seq > old.messages:
            yield (seq, _iso(ts), cid, na, nb, 0, 1, None, 1, _iso(start + STEP_S), None, None)
            continue
        side = (seq - 1) % 2
        na, nb = na + 1 - side, nb + side
        body = f"{seq:010d} ".ljust(old.body_bytes, "x")
        edited = (old.head, _iso(now)) if seq == 1 and old.edits else (None, None)
        yield (seq, _iso(ts), cid, na, nb, side, 0, body, None, None, *edited)


def _iso(ts: float) -> str:
    return datetime.fromtimestamp(ts, UTC).isoformat()
