"""A database filled with history, as if people had written for 30 days: by COPY, in the order of
time, with a progress bar; kept and used again.

    class    share of conversations   of rows      10M rows
    deep     1 in 1,000               10 %         10 logs of 100,000
    middle   1 in 10                  50 %         1,000 of 5,000
    small    the rest                 40 %         8,990 of 445

The schema's invariants hold (tests and `verify` read them back): a log's seqs have no holes from
its floor to its head; ts never falls along seq; `na`, `nb` are the running numbers of messages by
each side from the log's very beginning; every hundredth entry is an edit of the one before; every
fifth log has lost its beginning to retention (floor above 1). The user `hub` has 1,000 of the small
ones. All logs run over all 30 days, so a page is spread over partitions as far as it would be.

The folder holds `bench-fill.json`. With other rows, after a change of the fill (FORMAT),
half-filled, or older than 10 days (retention would take it) it is filled anew.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import psycopg

from bench.report import Progress, say
from bench.target import TargetError

FORMAT: Final = 1
DAYS: Final = 30
DAY_S: Final = 86_400
AGE_S_MAX: Final = 10 * DAY_S
RETENTION_DAYS: Final = 45  # what a run over a filled database is to be set to
SLICE_ROWS: Final = 200_000  # sorted by time at once
HUB: Final = "hub"
HUB_CONVERSATIONS_MAX: Final = 1_000
MARK: Final = "bench-fill.json"

# A log repeats every 100 entries: who writes, and that the last of them is an edit.
PERIOD: Final = 100
SIDES: Final = tuple((0, 0, 1, 0, 1, 1, 0, 1, 1, 0)[(seq + seq // 10) % 10] for seq in range(1, PERIOD + 1))
_A: Final = (0, *accumulate(1 - SIDES[n] for n in range(PERIOD - 1)))
_B: Final = (0, *accumulate(SIDES[n] for n in range(PERIOD - 1)))


@dataclass(frozen=True, slots=True)
class Log:
    """One conversation: seqs `base` + 1 ... `head` are there."""

    id: int
    a: str
    b: str
    base: int
    head: int
    size: str

    @property
    def rows(self) -> int:
        return self.head - self.base

    @property
    def phase(self) -> float:
        """Where between two others its entries lie in time."""
        return (self.id * 0.618034) % 1.0

    def ts(self, seq: int, start: float) -> float:
        return start + (seq - self.base - 1 + self.phase) / self.rows * DAYS * DAY_S


def counts(seq: int) -> tuple[int, int]:
    """(na, nb) at that seq: messages by each side from 1 to it."""
    whole, rest = divmod(seq, PERIOD)
    return whole * _A[PERIOD - 1] + _A[min(rest, PERIOD - 1)], whole * _B[PERIOD - 1] + _B[min(rest, PERIOD - 1)]


def side_of(seq: int) -> int:
    """An edit is by who wrote what it changes."""
    return SIDES[(seq - 2 if seq % PERIOD == 0 else seq - 1) % PERIOD]


def plan(rows: int, first_id: int = 1) -> list[Log]:
    """The logs of so many rows."""
    n = max(20, rows // 1_000)
    deep, middle = max(1, n // 1_000), n // 10
    small = n - deep - middle
    hub = min(HUB_CONVERSATIONS_MAX, small)
    sizes = [("deep", rows // 10 // deep)] * deep + [("middle", rows // 2 // middle)] * middle
    sizes += [("small", (rows - sum(size for _, size in sizes)) // small)] * small
    logs = []
    for n, (name, size) in enumerate(sizes, 1):
        first = f"h{n:06d}a" if n <= len(sizes) - hub else HUB
        a, b = sorted((first, f"h{n:06d}b"))
        base = size // 4 // PERIOD * PERIOD if n % 5 == 0 else 0
        logs.append(Log(first_id - 1 + n, a, b, base, base + size, name))
    return logs


def rows(text: str) -> int:
    """A number of messages on the command line, such as 500k or 10M."""
    units = {"k": 1_000, "M": 1_000_000}
    n = int(text.rstrip("kM")) * units.get(text[-1:], 1)
    if n < 2_000:
        raise argparse.ArgumentTypeError("at least 2000")
    return n


@dataclass(frozen=True, slots=True)
class Facts:
    """What is in the mark."""

    format: int
    rows: int
    at: float
    done: bool
    what: str = "history"


def is_filled(folder: Path, rows: int, now: float, what: str = "history") -> bool:
    """The folder can be used as it is: `what` names all that it is to hold but the rows.

    Raises TargetError if it is somebody else's; discards what cannot be used.
    """
    mark = folder / MARK
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        facts = Facts(**json.loads(mark.read_text()))
    except (OSError, ValueError, TypeError):
        raise TargetError(f"{folder} holds something that is not this bench's; give another folder") from None
    if facts.done and (facts.format, facts.rows, facts.what) == (FORMAT, rows, what) and now - facts.at < AGE_S_MAX:
        return True
    state = "whole" if facts.done else "half filled"
    say(f"{folder} cannot be used ({facts.rows:,} rows, {(now - facts.at) / DAY_S:.1f} days old, {state}): filled anew")
    shutil.rmtree(folder)
    return False


def mark(folder: Path, rows: int, now: float, done: bool, what: str = "history") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(json.dumps(asdict(Facts(FORMAT, rows, now, done, what))))


def make_partitions(conn: psycopg.Connection[Any], now: float) -> None:
    """Those that the rows go to."""
    for day in range(DAYS + 1):
        conn.execute("SELECT make_partition(to_timestamp(%s))", (now - day * DAY_S,))


def fill(conninfo: str, rows: int, seed: int, now: float, *, first_id: int = 1, analyse: bool = True) -> None:
    """Into a database that has the schema, and no conversation from `first_id` on.

    Some minutes for 10M rows.
    """
    logs, start = plan(rows, first_id), now - DAYS * DAY_S
    with psycopg.connect(conninfo, autocommit=True, application_name="chatd bench") as conn:
        conn.execute("SET synchronous_commit = off")
        conn.execute("SET TimeZone = 'UTC'")
        make_partitions(conn, now)
        with conn.transaction():
            _copy_counters(conn, logs, start)
        total = sum(log.rows for log in logs)
        progress, done = Progress("filling", total), 0
        rng = random.Random(seed)
        text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz      ", k=4_096))
        for slice in _slices(logs, start, total):
            with conn.cursor().copy(
                "COPY entries (conv, seq, ts, cid, na, nb, side, kind, body, ref, ref_ts, rev, changed) FROM STDIN"
            ) as copy:
                for at in range(0, len(slice), 1_000):
                    copy.write(
                        "".join(_line(log, seq, ts, start, rng, text) for ts, log, seq in slice[at : at + 1_000])
                    )
            done += len(slice)
            progress.at(done)
        if analyse:
            say("vacuum, analyze")
            conn.execute("VACUUM (ANALYZE)")
        say("checkpoint")
        conn.execute("CHECKPOINT")


def _copy_counters(conn: psycopg.Connection[Any], logs: list[Log], start: float) -> None:
    row = conn.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    with conn.cursor().copy("COPY users (id, seen_ms) FROM STDIN") as copy:
        for user in {user for log in logs for user in (log.a, log.b)}:
            copy.write_row((user, int((start + DAYS * DAY_S) * 1000)))
    with conn.cursor().copy("COPY conversations (id, a, b, head, floor, na, nb, last_ts) FROM STDIN") as copy:
        for log in logs:
            copy.write_row(
                (log.id, log.a, log.b, log.head, log.base + 1, *counts(log.head), _iso(log.ts(log.head, start)))
            )
    with conn.cursor().copy(
        "COPY cursors (conv, a_delivered, a_read, a_read_n, b_delivered, b_read, b_read_n, xid) FROM STDIN"
    ) as copy:
        for log in logs:
            a_read, b_read = log.head - log.id % 3, log.head - log.id % 7  # some have unread entries
            copy.write_row((log.id, log.head, a_read, counts(a_read)[1], log.head, b_read, counts(b_read)[0], row[0]))
    conn.execute("SELECT setval(pg_get_serial_sequence('conversations', 'id'), %s)", (logs[-1].id,))


def _slices(logs: list[Log], start: float, total: int) -> Iterator[list[tuple[float, Log, int]]]:
    """All entries in the order of time, some at once."""
    n = max(1, total // SLICE_ROWS)
    for s in range(n):
        slice = [
            (log.ts(seq, start), log, seq)
            for log in logs
            for seq in range(log.base + 1 + log.rows * s // n, log.base + 1 + log.rows * (s + 1) // n)
        ]
        slice.sort(key=lambda entry: entry[0])
        yield slice


def _line(log: Log, seq: int, ts: float, start: float, rng: random.Random, text: str) -> str:
    """A line of COPY's text format."""
    na, nb = counts(seq)
    place = f"{log.id}\t{seq}\t{_iso(ts)}\t{rng.getrandbits(128):032x}\t{na}\t{nb}\t{side_of(seq)}\t"
    if seq % PERIOD == 0:
        return f"{place}1\t\\N\t{seq - 1}\t{_iso(log.ts(seq - 1, start))}\t\\N\t\\N\n"
    at = rng.randrange(3_800)
    body = text[at : at + 20 + at % 256]
    if seq % PERIOD == PERIOD - 1 and seq < log.head:
        return f"{place}0\t{body}\t\\N\t\\N\t{seq + 1}\t{_iso(log.ts(seq + 1, start))}\n"
    return f"{place}0\t{body}\t\\N\t\\N\t\\N\t\\N\n"


def _iso(ts: float) -> str:
    return datetime.fromtimestamp(ts, UTC).isoformat()


VERIFY: Final = """
SELECT count(*) FROM conversations v LEFT JOIN LATERAL (
    SELECT count(*) AS n, min(e.seq) AS first, max(e.seq) AS last, max(e.ts) AS ts, count(DISTINCT e.cid) AS cids,
        bool_or(e.ts < e.before) AS falls, bool_or(e.kind = 1 AND e.ref_ts <> e.before) AS strays,
        count(*) FILTER (WHERE e.kind = 0 AND e.side = 0) AS a, count(*) FILTER (WHERE e.kind = 0 AND e.side = 1) AS b,
        min(e.na - (e.kind = 0 AND e.side = 0)::integer) AS na0, min(e.nb - (e.kind = 0 AND e.side = 1)::integer) AS nb0
    FROM (SELECT *, lag(ts) OVER (ORDER BY seq) AS before FROM entries p WHERE p.conv = v.id) e
) e ON true LEFT JOIN cursors k ON k.conv = v.id
WHERE v.a LIKE 'h%%' AND v.id <= %s AND v.id %% %s = 0 AND NOT coalesce(
    e.n = v.head - v.floor + 1 AND e.cids = e.n AND e.first = v.floor AND e.last = v.head AND e.ts = v.last_ts
    AND NOT coalesce(e.falls, false) AND NOT coalesce(e.strays, false)
    AND e.na0 + e.a = v.na AND e.nb0 + e.b = v.nb AND k.a_read <= v.head
    AND k.a_read_n = (SELECT p.nb FROM entries p WHERE p.conv = v.id AND p.seq = k.a_read)
    AND k.b_read_n = (SELECT p.na FROM entries p WHERE p.conv = v.id AND p.seq = k.b_read), false)
"""


def verify(conninfo: str, logs: int, every: int) -> None:
    """Read every so-manieth of the first so many logs back.

    Raises TargetError if the schema's invariants do not hold.
    """
    with psycopg.connect(conninfo, autocommit=True) as conn:
        row = conn.execute(VERIFY, (logs, every)).fetchone()
    assert row is not None
    if row[0]:
        raise TargetError(
            f"{row[0]} of the filled conversations break the schema's invariants: a fault of what filled it"
        )
