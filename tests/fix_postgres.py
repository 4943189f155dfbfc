"""A real PostgreSQL for the tests: one server a session, one database a test.

The server is chatd's own embedded one, in a folder that goes with the session; its watcher stops it
however the session ends. A database is a copy of a migrated template (60 ms), so no test sees
another's rows.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from chatd.postgres.embedded import Embedded
from chatd.postgres.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEMPLATE = "chatd_template"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Embedded]:
    """The running server, with chatd's own settings."""
    with tempfile.TemporaryDirectory(prefix="chatd-test-") as folder:
        server = Embedded(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def template_db(postgres: Embedded) -> str:
    """A migrated database, to be copied and not used."""
    with _admin(postgres.conninfo) as conn:
        conn.execute(f"CREATE DATABASE {TEMPLATE}")
    migrate(make_conninfo(postgres.conninfo, dbname=TEMPLATE))
    return TEMPLATE


@pytest.fixture
def make_db(postgres: Embedded, template_db: str) -> Iterator[Callable[[], str]]:
    """Makes databases with chatd's schema and nothing in it, not even partitions; gives the
    conninfo of each.
    """
    yield from databases(postgres, template_db)


@pytest.fixture
def fresh_db(make_db: Callable[[], str]) -> str:
    """The conninfo of a database with chatd's schema and nothing in it."""
    return make_db()


@pytest.fixture
def empty_db(postgres: Embedded) -> Iterator[str]:
    """The conninfo of a database with nothing in it at all."""
    for make in databases(postgres, "template1"):
        yield make()


def databases(postgres: Embedded, template: str) -> Iterator[Callable[[], str]]:
    made: list[str] = []

    def make() -> str:
        name = f"chatd_test_{next(_numbers)}"
        with _admin(postgres.conninfo) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        made.append(name)
        return make_conninfo(postgres.conninfo, dbname=name)

    yield make
    with _admin(postgres.conninfo) as conn:
        for name in made:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _admin(conninfo: str) -> psycopg.Connection[Any]:
    return psycopg.connect(conninfo, dbname="postgres", autocommit=True)
