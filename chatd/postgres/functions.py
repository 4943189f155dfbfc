"""Applies the functions of the database: each file of `sql/functions` is one function.

`chatd migrate` compares the files with the database and applies those that differ, all in one
transaction, after the pending `pre` migrations and before the `post` ones that follow
(chatd/postgres/migrate.py). The rules for changing a function are in sql/functions/README.md.

    version in the database    this release's file
    greater                    is older: the function is left as it is
    the same or less           is applied if its text differs, or the body in the database does

So in a rolling upgrade, nodes of the release before, which may start at any time, do not put their
functions back.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from chatd.postgres.queries import folder as sql_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import psycopg

BOOKS: Final = "_chatd_function"  # sql/migrations/0027_pre_functions.sql
_FILE: Final = re.compile(r"-- version: (\d+)\n(?:--.*\n)+(CREATE OR REPLACE FUNCTION (\w+)\([^$]*\$\$([^$]*)\$\$;\n)")


@dataclass(frozen=True, slots=True)
class Function:
    """A file of sql/functions.

    `version` rises with each change of `statement`; `body` is the text between its `$$`.
    """

    name: str
    version: int
    statement: str
    body: str

    @property
    def sha256(self) -> str:
        """Of the statement: the comment above it may change without a new version."""
        return hashlib.sha256(self.statement.encode()).hexdigest()


class Difference(NamedTuple):
    """How the database differs from this release.

    `stale`: to be applied; `newer`: with the version in the database.
    """

    stale: list[Function]
    newer: list[tuple[Function, int]]


def read(folder: Path | None = None) -> list[Function]:
    """The functions of this release, or of the tree of SQL files in `folder`.

    Raises ValueError if one is malformed.
    """
    return [_read(path) for path in sorted(((folder or sql_folder()) / "functions").glob("*.sql"))]


def _read(path: Path) -> Function:
    found = _FILE.fullmatch(path.read_text(encoding="utf-8"))
    if found is None or found[3] != path.stem:
        raise ValueError(f"{path}: a version, a comment and one CREATE OR REPLACE FUNCTION {path.stem} are expected")
    return Function(path.stem, int(found[1]), found[2], found[4])


def compare(conn: psycopg.Connection[Any], functions: Sequence[Function]) -> Difference:
    """Compare the database with this release's functions. Changes nothing.

    A database without the table `_chatd_function` (of an older release, or empty) has all of them
    stale.
    """
    applied: dict[str, tuple[int, str]] = {}
    if conn.execute("SELECT to_regclass(%s)", (BOOKS,)).fetchone() != (None,):
        rows = conn.execute("SELECT name, version, sha256 FROM _chatd_function").fetchall()
        applied = {name: (version, sha256) for name, version, sha256 in rows}
    bodies = "SELECT proname::text, prosrc FROM pg_proc WHERE proname = ANY (%s) AND pg_function_is_visible(oid)"
    there = set(conn.execute(bodies, ([function.name for function in functions],)).fetchall())
    difference = Difference([], [])
    for function in functions:
        version, sha256 = applied.get(function.name, (0, ""))
        if version > function.version:
            difference.newer.append((function, version))
        elif (version, sha256) != (function.version, function.sha256) or (function.name, function.body) not in there:
            difference.stale.append(function)
    return difference


def apply(conn: psycopg.Connection[Any], functions: Iterable[Function]) -> None:
    """Apply all of them or none. A call under way ends with the body that it began with."""
    with conn.transaction():
        for function in functions:
            conn.execute(function.statement.encode())
            conn.execute(
                """INSERT INTO _chatd_function (name, version, sha256) VALUES (%s, %s, %s) ON CONFLICT (name)
                DO UPDATE SET version = excluded.version, sha256 = excluded.sha256, applied = clock_timestamp()""",
                (function.name, function.version, function.sha256),
            )
