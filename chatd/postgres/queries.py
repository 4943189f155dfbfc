"""SQL by name: `sql/queries/NAME.sql` is `query("NAME")`.

A file is read once, when the module that uses it is imported. SQL is source: each file says what it
is for and which index it needs. In the wheel the folder `sql/` is the package `chatd.sql`; in a
checkout it is beside `chatd/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import LiteralString


def folder() -> Path:
    """The folder with the SQL files."""
    package = Path(__file__).parents[1]
    return package / "sql" if (package / "sql").is_dir() else package.parent / "sql"


def query(name: str, **parts: LiteralString) -> LiteralString:
    """The text of a query, without its comments.

    They would be sent with every unprepared execution. `parts`: texts that stand in it for a word
    in capitals, a query inside a query.
    """
    text = (folder() / "queries" / f"{name}.sql").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    sql = "\n".join(lines)
    for word, part in parts.items():
        sql = sql.replace(word, part)
    _names[sql] = name
    return sql


def name_of(sql: str) -> str:
    """The name of a query; for another statement its first word."""
    return _names.get(sql) or sql.split(maxsplit=1)[0].lower()


_names: dict[str, str] = {}
