"""sql/functions: the database has what this release has, and a release puts nothing back that a
newer one has replaced.
"""

from __future__ import annotations

import itertools
import os
import select
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chatd.config import Settings
from chatd.ops import doctor
from chatd.postgres import functions
from chatd.postgres import migrate as migrating
from chatd.postgres.migrate import migrate, pending
from chatd.postgres.queries import folder as sql_folder
from tests.integration.logs import LANE_OPTIONS, Message, append, connect, conversation, entries, one, partitions
from tests.integration.test_migrate import node

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    Tree = Callable[..., Path]

VERSIONS = Path(__file__).parents[1] / "schemas" / "versions.txt"
WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def text(name: str, version: int, gives: str, more: str = "") -> str:
    statement = (
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS text\nLANGUAGE sql {more} AS $$\n    SELECT {gives}\n$$;\n"
    )
    return f"-- version: {version}\n-- For a test.\n{statement}"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes the SQL files of a release, named by its number: functions by name, migrations by m and
    name.
    """

    def make(release: int, **texts: str) -> Path:
        folder = tmp_path / str(release)
        for part in ("migrations", "functions"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(
            sql_folder() / "migrations" / "0027_pre_functions.sql", folder / "migrations" / "0000_pre_functions.sql"
        )
        for name, text in texts.items():
            path = (
                folder / "migrations" / f"{name[1:]}.sql"
                if name[1:5].isdigit()
                else folder / "functions" / f"{name}.sql"
            )
            path.write_text(text)
        return folder

    return make


def says(conninfo: str, name: str = "f") -> str:
    with connect(conninfo) as conn:
        return str(one(conn, f"SELECT {name}()"))


def test_each_file_is_one_function_whose_versions_are_known() -> None:
    lines = [line.split() for line in VERSIONS.read_text().splitlines()]
    known = {(name, int(version)): sha256 for name, version, sha256 in lines}
    assert len(known) == len(lines), "a version has two texts"
    for name, those in itertools.groupby(sorted(known), key=lambda each: each[0]):
        assert [version for _, version in those] == list(range(1, sum(each[0] == name for each in known) + 1))
    for function in functions.read():
        assert known.get((function.name, function.version)) == function.sha256, (
            f"{function.name} has changed: raise its version, and add `{function.name} {function.version + 1} HASH` to"
            f" {VERSIONS.name};"
            f" the hash with this version is {function.sha256}"
        )


@pytest.mark.parametrize(
    "wrong",
    [
        text("f", 1, "'a'").replace("-- version: 1\n", ""), text("g", 1, "'a'"), text("f", 1, "'a'") + "SELECT 1;\n",
        text("f", 1, "'a'").replace(" OR REPLACE", ""), text("f", 1, "'a'").replace("-- For a test.\n", ""),
    ],
    ids=["no version", "of another name", "two statements", "not repeatable", "no comment"],
)  # fmt: skip
def test_a_file_of_another_form_is_refused(tree: Tree, wrong: str) -> None:
    folder = tree(1, f=wrong)
    with pytest.raises(ValueError, match=r"f\.sql"):
        functions.read(folder)


def test_functions_come_after_pre_and_before_the_post_of_their_release(empty_db: str, tree: Tree) -> None:
    first = tree(
        1, m0001_pre_a="CREATE TABLE a (old text); INSERT INTO a VALUES ('old');", f=text("f", 1, "old FROM a")
    )
    assert migrate(empty_db, folder=first) == ["0000_pre_functions", "0001_pre_a", "functions/f"]
    second = tree(
        2,
        m0001_pre_a="",
        f=text("f", 2, "new FROM a"),
        m0002_pre_b="ALTER TABLE a ADD new text; UPDATE a SET new = 'new';",
        # Fails where a function needs `old`: PostgreSQL does not know, so the file asks.
        m0003_post_b="ALTER TABLE a DROP old; SELECT f();",
    )
    assert pending(empty_db, folder=second) == ["0002_pre_b", "functions/f", "0003_post_b"]
    assert migrate(empty_db, folder=second, post=True) == ["0002_pre_b", "functions/f", "0003_post_b"]
    assert says(empty_db) == "new"


def test_only_what_differs_is_applied(empty_db: str, tree: Tree) -> None:
    migrate(empty_db, folder=tree(1, f=text("f", 1, "'f'"), g=text("g", 1, "'g'")))
    assert migrate(empty_db, folder=tree(1)) == []
    assert migrate(empty_db, folder=tree(1, f=text("f", 2, "'f2'"))) == ["functions/f"]
    assert (says(empty_db), says(empty_db, "g")) == ("f2", "g")
    assert migrate(empty_db, folder=tree(1, f=text("f", 2, "'f2'", "STABLE"))) == ["functions/f"], "while it is written"
    assert migrate(empty_db, folder=tree(1, f=text("f", 2, "'f2'", "STABLE").replace("For a", "Of a"))) == []


@pytest.mark.parametrize(
    "change", ["CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$", "DROP FUNCTION f()"]
)
def test_what_somebody_changed_by_hand_is_put_right(empty_db: str, tree: Tree, change: str) -> None:
    folder = tree(1, f=text("f", 1, "'f'"))
    migrate(empty_db, folder=folder)
    with connect(empty_db) as conn:
        conn.execute(change)
    assert pending(empty_db, folder=folder) == ["functions/f"]
    assert migrate(empty_db, folder=folder) == ["functions/f"]
    assert says(empty_db) == "f"


def test_nodes_of_two_releases_that_start_by_turns_leave_the_newer_one(empty_db: str, tree: Tree) -> None:
    old, new = tree(1, f=text("f", 1, "'old'")), tree(2, f=text("f", 2, "'new'"))
    migrate(empty_db, folder=old)
    assert migrate(empty_db, folder=new) == ["functions/f"]
    for _ in range(2):
        assert pending(empty_db, folder=old) == []
        assert migrate(empty_db, folder=old) == []
        assert says(empty_db) == "new"
        assert migrate(empty_db, folder=new) == []


def test_an_older_release_leaves_what_a_newer_one_made_first(empty_db: str, tree: Tree) -> None:
    migrate(empty_db, folder=tree(2, f=text("f", 2, "'new'")))
    assert migrate(empty_db, folder=tree(1, f=text("f", 1, "'old'"))) == []
    assert says(empty_db) == "new"


def test_a_node_that_is_killed_meanwhile_leaves_all_functions_as_they_were(empty_db: str, tree: Tree) -> None:
    migrate(empty_db, folder=tree(1, f=text("f", 1, "'f'"), g=text("g", 1, "'g'")))
    folder = tree(1, f=text("f", 2, "'f2'"), g=text("g", 2, "'g2'"))
    with connect(empty_db) as conn, connect(empty_db) as other, node(empty_db, folder) as process:
        other.execute("BEGIN; " + text("g", 1, "'other'"))
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        while (row := conn.execute(WAITING).fetchone()) is None:
            assert process.poll() is None
            select.select([], [], [], 0.02)
        backend = os.pidfd_open(row[0])
        process.kill()
        assert select.select([backend], [], [], 30)[0], "the server goes on working for a dead node"
        os.close(backend)
        other.execute("ROLLBACK")
    assert (says(empty_db), says(empty_db, "g")) == ("f", "g")
    assert migrate(empty_db, folder=folder) == ["functions/f", "functions/g"]
    assert (says(empty_db), says(empty_db, "g")) == ("f2", "g2")


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT"])
def test_who_changes_a_function_at_that_moment_is_waited_for(
    empty_db: str, tree: Tree, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_db, folder=tree(1, f=text("f", 1, "'f'")))
    reasons: list[object] = []
    monkeypatch.setattr(migrating.log, "warning", lambda event, **facts: reasons.append(facts["reason"]))
    monkeypatch.setattr(migrating, "LOCK_TIMEOUT", "60s")
    with connect(empty_db) as other, connect(empty_db) as conn, ThreadPoolExecutor(1) as thread:
        other.execute("BEGIN; " + text("f", 1, "'other'"))
        waits = thread.submit(migrate, empty_db, folder=tree(2, f=text("f", 2, "'f2'")))
        while conn.execute(WAITING).fetchone() is None:
            assert not waits.done()
            select.select([], [], [], 0.02)
        other.execute(end)
        assert waits.result(60) == ["functions/f"]
    assert says(empty_db) == "f2"
    assert reasons == (["tuple concurrently updated"] if end == "COMMIT" else [])


def test_owner_and_grants_stay(empty_db: str, tree: Tree) -> None:
    facts = "SELECT proowner, proacl::text FROM pg_proc WHERE proname = 'f'"
    migrate(empty_db, folder=tree(1, f=text("f", 1, "'f'")))
    with connect(empty_db) as conn:
        conn.execute("REVOKE EXECUTE ON FUNCTION f() FROM PUBLIC; GRANT EXECUTE ON FUNCTION f() TO pg_monitor")
        before = conn.execute(facts).fetchall()
        assert "pg_monitor" in before[0][1]
        assert migrate(empty_db, folder=tree(1, f=text("f", 2, "'f2'"))) == ["functions/f"]
        assert conn.execute(facts).fetchall() == before


def test_sessions_with_cached_plans_have_the_new_body_at_their_next_transaction(empty_db: str, tree: Tree) -> None:
    migrate(empty_db, folder=tree(1, f=text("f", 1, "'f'", "STABLE")))
    with connect(empty_db, options="-c plan_cache_mode=force_generic_plan") as conn:

        def ask() -> object:
            return conn.execute("SELECT f()", prepare=True).fetchone()  # f is inlined into its plan

        assert ask() == ("f",)
        migrate(empty_db, folder=tree(1, f=text("f", 2, "'f2'", "STABLE")))
        assert ask() == ("f2",)


def test_lanes_go_on_while_append_is_replaced(fresh_db: str) -> None:
    """Its callers see one body or the other, and no call fails: each conversation's seqs are 1, 2,
    3 ...
    """
    others = [each for each in functions.read() if each.name != "append"]
    (now,) = (each for each in functions.read() if each.name == "append")
    over = threading.Event()

    def send(conv: int) -> int:
        with connect(fresh_db, options=LANE_OPTIONS) as lane:
            for n in itertools.count(1):
                assert [row.seq for row in append(lane, [Message(conv)])] == [n]
                if over.is_set():
                    return n
        raise AssertionError

    with connect(fresh_db) as conn, ThreadPoolExecutor(2) as threads:
        partitions(conn)
        convs = [conversation(conn, "alice", f"peer {n}") for n in range(2)]
        sends = [threads.submit(send, conv) for conv in convs]
        try:
            for version in range(2, 42):
                body = now.body.replace("BEGIN", f"BEGIN  -- {version}", 1)
                functions.apply(
                    conn, [functions.Function("append", version, now.statement.replace(now.body, body), body), *others]
                )
        finally:
            over.set()
        counts = [each.result(60) for each in sends]
        assert [[seq for seq, _, _ in entries(conn, conv)] for conv in convs] == [
            list(range(1, count + 1)) for count in counts
        ]
        assert min(counts) > 10, "they were sending meanwhile"


def test_doctor_names_functions_that_are_not_those_of_the_release(fresh_db: str) -> None:
    settings = Settings(database_url=fresh_db)  # type: ignore[arg-type]

    def findings() -> dict[str, str]:
        return {
            each.about: f"{each.level} {each.what}"
            for each in doctor.examine(settings)
            if each.about in ("schema", "functions")
        }

    def set_version(conn: psycopg.Connection[Any], version: int) -> None:
        conn.execute("UPDATE _chatd_function SET version = %s WHERE name = 'append'", (version,))

    with connect(fresh_db) as conn:
        assert findings() == {"schema": "ok up to date"}
        set_version(conn, 0)
        assert findings()["schema"].startswith("warn pending: functions/append;")
        set_version(conn, 99)
        found = findings()
        assert found["schema"] == "ok up to date"
        assert found["functions"].startswith("warn append has version 99, this release 1: a newer chatd works here")
    dry = [sys.executable, "-m", "chatd", "migrate", "--dry-run", "--database-url", fresh_db]
    assert subprocess.run(dry, capture_output=True, text=True, check=True).stdout == "nothing to do\n"
