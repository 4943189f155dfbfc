"""The log as tests write and read it: plain SQL on a synchronous connection, one call each."""

from __future__ import annotations

import uuid
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from chatd.postgres import connection
from chatd.postgres.queries import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

APPEND = query("append")
FENCE = "SELECT epoch || ' ' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || '/' || tableoid FROM meta"
DAY_S = 86_400
OLD_SCHEMA = Path(__file__).parents[1] / "schemas" / "before_0027"  # its README says what it is


class Message(NamedTuple):
    """What `append` takes for a message; flags: 1 probe, 2 again."""

    conv: int
    body: str = "hi"
    side: int = 0
    cid: str = ""
    flags: int = 0


class Change(NamedTuple):
    """What `append` takes for an edit (kind 1) or delete (2); a negative kind only probes."""

    conv: int
    ref: int
    kind: int = 1
    body: str | None = "hi!"
    side: int = 0
    cid: str = ""


class Row(NamedTuple):
    ord: int | None
    conv: int
    seq: int | None
    ts: int | None
    note: str | None


def connect(conninfo: str, **kwargs: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(conninfo, autocommit=True, **kwargs)


def cid() -> str:
    return str(uuid.uuid4())


def partitions(conn: psycopg.Connection[Any], width_s: int = DAY_S, *, back: int = 0, ahead: int = 1) -> None:
    """Make partitions of this width around now: the time as it is before the first, or what the
    making takes would leave holes between short ones.
    """
    conn.execute("UPDATE meta SET partition_s = %s", (width_s,))
    now = one(conn, "SELECT clock_timestamp()")
    for n in range(-back, ahead + 1):
        conn.execute("SELECT make_partition(%s + make_interval(secs => %s))", (now, n * width_s))


def conversation(conn: psycopg.Connection[Any], a: str = "alice", b: str = "bob") -> int:
    """The id of a new conversation."""
    row = conn.execute("INSERT INTO conversations (a, b) VALUES (%s, %s) RETURNING id", (a, b)).fetchone()
    assert row is not None
    return int(row[0])


def options(settings: Mapping[str, str]) -> str:
    """A connection's settings (chatd/postgres/connection.py) as libpq's options."""
    return " ".join(
        f"-c {name}={value}".replace(" ", "\\ ").replace("-c\\ ", "-c ") for name, value in settings.items()
    )


LANE_OPTIONS, READ_OPTIONS, FEED_OPTION = options(connection.LANE), options(connection.READ), options(connection.FEED)


def check(conn: psycopg.Connection[Any], conv: int) -> int:
    """Between whom it is, as `append` compares it."""
    row = conn.execute("SELECT pair_check(a, b) FROM conversations WHERE id = %s", (conv,)).fetchone()
    return 0 if row is None else int(row[0])


def append(
    conn: psycopg.Connection[Any],
    messages: Sequence[Message] = (),
    changes: Sequence[Change] = (),
    edit_window: str = "15 min",
    named: Sequence[str | None] = (),
) -> list[Row]:
    """One call of the SQL function, with a fresh cid where there is none.

    `named`: cids of the messages that changes name.
    """
    cur = psycopg.RawCursor(conn)
    m, x = messages, changes
    cur.execute(
        APPEND,
        (
            one(conn, FENCE),
            len({i.conv for i in m} | {i.conv for i in x}),
            reduce(or_, (i.flags for i in m), 0),
            [i.conv for i in m],
            [i.cid or cid() for i in m],
            [i.body for i in m],
            [i.flags | i.side << 2 | check(conn, i.conv) << 3 for i in m],
            [i.conv for i in x],
            [i.side for i in x],
            [*(i.cid or cid() for i in x), *named],
            [i.body for i in x],
            [i.kind for i in x],
            [i.ref for i in x],
            [check(conn, i.conv) for i in x],
            edit_window,
        ),
    )
    return [Row(*row) for row in cur.fetchall()]


def append_unfenced(conn: psycopg.Connection[Any], messages: Sequence[Message]) -> list[Row]:
    """The call of the release before 0005_pre_fence."""
    cur = psycopg.RawCursor(conn)
    cur.execute(
        "SELECT ord, conv, seq, ts, note FROM append($1::bigint[], $2::smallint[], $3::text[]::uuid[], $4::text[],"
        " $5::smallint[],"
        " '{}', '{}', '{}', '{}', '{}', '{}', '15 min')",
        (
            [i.conv for i in messages],
            [i.side for i in messages],
            [cid() for _ in messages],
            [i.body for i in messages],
            [0 for _ in messages],
        ),
    )
    return [Row(*row) for row in cur.fetchall()]


def fenced_as_before(conn: psycopg.Connection[Any], text: str) -> None:
    """Put `text` in, the function of 0005_pre_fence as it was or changed, and have today's calls go
    to it.
    """
    conn.execute(text.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1))
    conn.execute(
        """CREATE OR REPLACE FUNCTION append(
            fence text, convs integer, m_any integer, m_conv bigint[], m_cid uuid[], m_body text[], m_flags integer[],
            x_conv bigint[], x_side smallint[], x_cid uuid[], x_body text[], x_kind smallint[], x_ref bigint[],
            x_check integer[], edit_window interval
        ) RETURNS TABLE (ord integer, conv bigint, seq bigint, ts bigint, note text) LANGUAGE plpgsql VOLATILE AS $$
        BEGIN
            RETURN QUERY SELECT * FROM append(
                m_conv, m_cid, m_body, m_flags, x_conv, x_side, x_cid, x_body, x_kind, x_ref, x_check,
                edit_window, fence, convs);
        END $$"""
    )


def append_function(migration: str) -> str:
    """The function as an old migration (re)made it, for putting it into a database again, changed
    or as it was.
    """
    text = (OLD_SCHEMA / "migrations" / f"{migration}.sql").read_text()
    start = "CREATE OR REPLACE FUNCTION append("
    return text[text.index(start if start in text else "CREATE FUNCTION append(") :]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nodes of a plan that EXPLAIN gave as JSON."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def age(conn: psycopg.Connection[Any], conv: int, days: float) -> None:
    """Move all entries of a conversation, and the time of its head, into the past; their partitions
    must be there.
    """
    conn.execute("UPDATE entries SET ts = ts - make_interval(secs => %s) WHERE conv = %s", (days * DAY_S, conv))
    conn.execute(
        "UPDATE conversations SET last_ts = last_ts - make_interval(secs => %s) WHERE id = %s", (days * DAY_S, conv)
    )


def entries(conn: psycopg.Connection[Any], conv: int) -> list[tuple[int, int, str | None]]:
    """(seq, kind, body) of all that is kept."""
    return [
        (seq, kind, body)
        for seq, kind, body in conn.execute("SELECT seq, kind, body FROM entries WHERE conv = %s ORDER BY seq", (conv,))
    ]


def only(conn: psycopg.Connection[Any], statement: str, params: Sequence[object] = ()) -> tuple[Any, ...]:
    """The only row."""
    (row,) = conn.execute(statement, params).fetchall()
    return tuple(row)


def one(conn: psycopg.Connection[Any], statement: str, params: Sequence[object] = ()) -> Any:
    """The only value of the only row."""
    (value,) = only(conn, statement, params)
    return value
