"""Databases of earlier releases (tests/schemas): upgraded, each is what a fresh one is; until
`--post` it has what they call.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from chatd.postgres import embedded_process
from chatd.postgres.migrate import migrate, pending
from tests.integration.logs import (
    OLD_SCHEMA,
    Message,
    append,
    append_unfenced,
    connect,
    conversation,
    entries,
    partitions,
)

if TYPE_CHECKING:
    import psycopg

SCHEMAS: Final = sorted(path for path in OLD_SCHEMA.parent.iterdir() if path.is_dir())
STATES: Final = [
    pytest.param(schema, name, id=f"{schema.name}-{name}")
    for schema in SCHEMAS
    for name in sorted(path.stem for path in (schema / "migrations").glob("*.sql"))
]
SIGNATURES: Final = """SELECT p.proname::text, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid)
    FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace"""


def as_it_was(conninfo: str, schema: Path, last: str) -> None:
    """Make the database that a release had after its migration `last`: the migrations, and how they
    were noted.
    """
    with connect(conninfo) as conn:
        conn.execute((schema / "yoyo.sql").read_text().encode())
        for path in sorted((schema / "migrations").glob("*.sql")):
            if path.stem <= last:
                _run(conn, path.read_text())
                note = (hashlib.sha256(path.stem.encode()).hexdigest(), path.stem)
                conn.execute("INSERT INTO _yoyo_migration VALUES (%s, %s, now() AT TIME ZONE 'UTC')", note)


def _run(conn: psycopg.Connection[Any], text: str) -> None:
    if text.startswith("-- transactional: false"):
        for statement in text.split(";\n"):
            conn.execute(statement.encode())
    else:
        conn.execute(text.encode())


def dump(conninfo: str) -> list[str]:
    """Tables, columns, indexes, constraints, functions with bodies, triggers, owners, grants."""
    command = [str(embedded_process.binaries() / "pg_dump"), "--schema-only", "--dbname", conninfo]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]  # a random word each time


def signatures(conninfo: str) -> set[tuple[str, ...]]:
    with connect(conninfo) as conn:
        return set(conn.execute(SIGNATURES).fetchall())


@pytest.mark.parametrize(("schema", "last"), STATES)
def test_upgraded_it_is_as_a_fresh_one(empty_db: str, fresh_db: str, schema: Path, last: str) -> None:
    as_it_was(empty_db, schema, last)
    before = signatures(empty_db)
    migrate(empty_db)
    assert before <= signatures(empty_db), "nodes of that release still run, and call them"
    assert all("_post_" in name for name in pending(empty_db))
    migrate(empty_db, post=True)
    assert dump(empty_db) == dump(fresh_db)
    assert pending(empty_db) == []


def test_a_difference_would_be_seen(empty_db: str, fresh_db: str) -> None:
    as_it_was(empty_db, OLD_SCHEMA, "0026_pre_sides")
    migrate(empty_db)
    assert dump(empty_db) != dump(fresh_db), "the older functions are there until --post"
    migrate(empty_db, post=True)
    with connect(empty_db) as conn:
        conn.execute("ALTER FUNCTION append SET work_mem = '1MB'")
    assert dump(empty_db) != dump(fresh_db)


def test_what_was_written_before_stays_and_both_releases_write_on(empty_db: str) -> None:
    """Nodes of three releases on one database: that of before 0005 calls a function without a
    fence.
    """
    as_it_was(empty_db, OLD_SCHEMA, "0004_pre_append_linear")
    with connect(empty_db) as conn:
        partitions(conn)
        conv = conversation(conn)
        assert [row.seq for row in append_unfenced(conn, [Message(conv, "before")])] == [1]
        migrate(empty_db)
        assert [row.seq for row in append(conn, [Message(conv, "new")])] == [2]
        assert [row.seq for row in append_unfenced(conn, [Message(conv, "of an old node")])] == [3]
        migrate(empty_db, post=True)
        assert [row.seq for row in append(conn, [Message(conv, "after")])] == [4]
        assert [body for _, _, body in entries(conn, conv)] == ["before", "new", "of an old node", "after"]
