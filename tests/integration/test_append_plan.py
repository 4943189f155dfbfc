"""How much work the statement of `append` that writes messages is, by EXPLAIN: the rows that go
through the nodes of its plan.

The statement is cut out of the function as the database has it, and planned as in a lane. Lanes
plan without hash and merge joins; a join of the rows with their conversations then looks at all
conversations for each row, and a batch of 1,024 rows costs three times as much a row as one of 50.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.integration.logs import LANE_OPTIONS, append_function, cid, connect, nodes, one, partitions

if TYPE_CHECKING:
    from collections.abc import Sequence

# What the statement takes from the function around it, as parameters: name -> type.
NAMES = {
    "m_conv": "bigint[]",
    "m_cid": "uuid[]",
    "m_body": "text[]",
    "t": "timestamptz",
    "skip": "integer[]",
    "feeding": "boolean",
    "m_flags": "integer[]",
    "m_side": "smallint[]",
    "t_ms": "bigint",
}
# Measured 21 for one alone, 18 where each message has a conversation of its own; two of them count
# what was written
ROWS_OF_A_MESSAGE_MAX = 22


@pytest.fixture
def db(fresh_db: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(fresh_db, options=LANE_OPTIONS) as conn:
        partitions(conn, ahead=1)
        yield conn


def rows_of_a_message(db: psycopg.Connection[Any], convs: Sequence[int], rows: int, arguments: int = 15) -> float:
    """All rows that the plan's nodes made or threw away, for one of `rows` messages spread evenly
    over conversations.
    """
    source = one(db, "SELECT prosrc FROM pg_proc WHERE proname = 'append' AND pronargs = %s", (arguments,))
    (statement,) = re.findall(r"RETURN QUERY\s+(WITH .*?);", source, re.DOTALL)
    for n, name in enumerate(NAMES, 1):
        statement = re.sub(rf"(?<![.\w]){name}(?!\w)", f"${n}", statement)
    db.execute(f"PREPARE s ({', '.join(NAMES.values())}) AS {statement}")
    checks = dict(db.execute("SELECT id, pair_check(a, b) << 3 FROM conversations").fetchall())
    of = [convs[n % len(convs)] for n in range(rows)]
    arrays: list[list[Any]] = [of, [cid() for _ in of], ["hi"] * rows]
    literals = ", ".join("'{" + ",".join(map(str, array)) + "}'" for array in arrays)
    flags, sides = ",".join(str(checks[conv]) for conv in of), ",".join("0" for _ in of)
    explained = one(
        db,
        f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE s ({literals}, now(), '{{}}', false, '{{{flags}}}', '{{{sides}}}', 1)",
    )
    db.execute("DEALLOCATE s")
    work = 0.0
    gone = ("Actual Rows", "Rows Removed by Join Filter", "Rows Removed by Filter")
    for node in nodes(explained[0]["Plan"]):
        work += sum(node.get(count, 0) for count in gone) * node["Actual Loops"]
    return work / rows


def conversations(db: psycopg.Connection[Any], count: int) -> list[int]:
    made = db.execute(
        "INSERT INTO conversations (a, b) SELECT 'a' || i, 'b' || i FROM generate_series(1, %s) i RETURNING id",
        (count,),
    )
    return [id for (id,) in made]


@pytest.mark.parametrize(("rows", "convs"), [(1, 1), (64, 32), (1_024, 512), (1_024, 10), (1_024, 1_024)])
def test_a_message_is_as_much_work_in_a_batch_of_any_size(db: psycopg.Connection[Any], rows: int, convs: int) -> None:
    assert rows_of_a_message(db, conversations(db, convs), rows) <= ROWS_OF_A_MESSAGE_MAX


def test_a_join_with_the_conversations_of_the_batch_would_be_seen(db: psycopg.Connection[Any]) -> None:
    """The function as it was before."""
    db.execute(append_function("0003_pre_feed"))
    assert rows_of_a_message(db, conversations(db, 512), 1_024, arguments=12) > 10 * ROWS_OF_A_MESSAGE_MAX
