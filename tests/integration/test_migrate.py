"""Migrations: each once, whole or not at all, whoever starts when; and `pre` and `post` in their
order.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chatd.errors import ChatdError
from chatd.postgres import migrate as migrating
from chatd.postgres.migrate import migrate, pending
from chatd.postgres.queries import folder as sql_folder
from tests.integration.logs import connect, one

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILES = sorted(path.stem for path in (sql_folder() / "migrations").glob("*.sql"))
FUNCTIONS = sorted(f"functions/{path.stem}" for path in (sql_folder() / "functions").glob("*.sql"))
LAST_PRE = max(n for n, name in enumerate(FILES, 1) if "_pre_" in name)
OURS = [*FILES[:LAST_PRE], *FUNCTIONS, *FILES[LAST_PRE:]]
NODE = """
import sys
from pathlib import Path
from chatd.postgres.migrate import migrate
print("ready", flush=True)
sys.stdin.readline()
print("applied", *migrate(sys.argv[1], folder=Path(sys.argv[2])))
"""


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """Makes a tree of SQL files with migrations: name -> text."""
    (tmp_path / "migrations").mkdir()

    def make(**texts: str) -> Path:
        for name, text in texts.items():
            (tmp_path / "migrations" / f"{name.lstrip('m')}.sql").write_text(text)
        return tmp_path

    return make


def tables(conninfo: str) -> set[str]:
    with connect(conninfo) as conn:
        return {name for (name,) in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def node(conninfo: str, folder: Path) -> subprocess.Popen[str]:
    """Another process, which migrates as soon as it gets a line."""
    return subprocess.Popen(
        [sys.executable, "-c", NODE, conninfo, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ChatdError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_all_are_applied_once_in_order(empty_db: str) -> None:
    assert pending(empty_db) == OURS
    assert tables(empty_db) == set(), "looking changes nothing"
    assert migrate(empty_db) == OURS
    assert pending(empty_db) == []
    assert migrate(empty_db) == []
    assert tables(empty_db) >= {"meta", "users", "conversations", "cursors", "entries"}


def test_every_file_says_which_phase_it_belongs_to() -> None:
    assert [name for name in FILES if name.split("_")[1] not in ("pre", "post") or not name[:4].isdigit()] == []
    numbers = [int(name[:4]) for name in FILES]
    assert numbers == sorted(set(numbers)), (
        "each number is one file's; those that were kept free for work that ran at the same time stay so"
    )


def test_of_eight_nodes_that_start_at_once_one_migrates(empty_db: str) -> None:
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(node(empty_db, sql_folder())) for _ in range(8)]
        for one_node in nodes:
            assert one_node.stdout is not None
            assert one_node.stdout.readline() == "ready\n"
        for one_node in nodes:
            assert one_node.stdin is not None
            one_node.stdin.write("go\n")
            one_node.stdin.flush()
        outputs = sorted(one_node.communicate()[0].splitlines()[-1] for one_node in nodes)
        assert outputs == ["applied"] * 7 + [f"applied {' '.join(OURS)}"]
        assert all(one_node.returncode == 0 for one_node in nodes)
    with connect(empty_db) as conn:
        assert one(conn, "SELECT count(*) FROM meta") == 1


def test_a_node_that_is_killed_while_it_migrates_leaves_no_lock_and_no_half(
    empty_db: str, files: Callable[..., Path]
) -> None:
    folder = files(m0001_pre_a="CREATE TABLE a (n int);", m0002_pre_b="CREATE TABLE b (n int); SELECT pg_sleep(3600);")
    with connect(empty_db) as conn, node(empty_db, folder) as process:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        while (row := conn.execute(waiting).fetchone()) is None:
            assert process.poll() is None
            select.select([], [], [], 0.02)
        process.kill()
        backend = os.pidfd_open(row[0])
        assert select.select([backend], [], [], 30)[0], "the server goes on working for a dead node"
        os.close(backend)
    assert pending(empty_db, folder=folder) == ["0002_pre_b"]
    assert "b" not in tables(empty_db)
    assert migrate(empty_db, folder=files(m0002_pre_b="CREATE TABLE b (n int);")) == ["0002_pre_b"]


def test_a_file_that_fails_changes_nothing_and_the_error_is_one_line(empty_db: str, files: Callable[..., Path]) -> None:
    folder = files(
        m0001_pre_a="CREATE TABLE a (n int);", m0002_pre_b="CREATE TABLE b (n int); INSERT INTO b VALUES ('x');"
    )
    assert "0002_pre_b failed: invalid input syntax" in refusal(lambda: migrate(empty_db, folder=folder))
    assert pending(empty_db, folder=folder) == ["0002_pre_b"]
    assert "b" not in tables(empty_db)


def test_pre_comes_with_the_release_and_post_when_asked(empty_db: str, files: Callable[..., Path]) -> None:
    assert migrate(empty_db, folder=files(m0001_pre_a="CREATE TABLE a (n int, old int);", m0002_post_a="")) == [
        "0001_pre_a",
        "0002_post_a",
    ]
    release = files(m0003_pre_b="ALTER TABLE a ADD new int;", m0004_post_b="ALTER TABLE a DROP old;")
    assert migrate(empty_db, folder=release) == ["0003_pre_b"]
    assert migrate(empty_db, folder=release) == []
    assert pending(empty_db, folder=release) == ["0004_post_b"]
    later = files(m0005_pre_c="CREATE TABLE c (n int);")
    assert "0004_post_b" in (text := refusal(lambda: migrate(empty_db, folder=later)))
    assert "chatd migrate --post" in text
    assert migrate(empty_db, post=True, folder=later) == ["0004_post_b", "0005_pre_c"]


def test_a_database_of_a_newer_release_is_refused_once_its_post_ran(empty_db: str, files: Callable[..., Path]) -> None:
    folder = files(m0001_pre_a="")
    migrate(empty_db, folder=folder)
    migrate(empty_db, folder=files(m0002_pre_b=""))
    (folder / "migrations/0002_pre_b.sql").unlink()
    assert migrate(empty_db, folder=folder) == [], "the release before works on what is only expanded"
    migrate(empty_db, post=True, folder=files(m0002_pre_b="", m0003_post_b=""))
    (folder / "migrations/0002_pre_b.sql").unlink()
    (folder / "migrations/0003_post_b.sql").unlink()
    assert "newer chatd (0003_post_b" in refusal(lambda: migrate(empty_db, folder=folder))


def test_an_index_is_built_concurrently_while_another_node_waits(empty_db: str, files: Callable[..., Path]) -> None:
    folder = files(
        m0001_pre_a="CREATE TABLE a (n int);\nINSERT INTO a SELECT generate_series(1, 1000);",
        m0002_pre_b="-- transactional: false\nCREATE INDEX CONCURRENTLY a_n ON a (n);\n"
        "CREATE INDEX CONCURRENTLY a_n2 ON a (n);",
    )
    with ThreadPoolExecutor(4) as threads:
        done = [run.result(60) for run in [threads.submit(migrate, empty_db, folder=folder) for _ in range(4)]]
    assert sorted(map(len, done)) == [0, 0, 0, 2]
    with connect(empty_db) as conn:
        assert one(conn, "SELECT count(*) FROM pg_index WHERE indrelid = 'a'::regclass AND indisvalid") == 2


def test_a_lock_that_others_hold_is_given_up_and_tried_again(
    empty_db: str, files: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = files(m0001_pre_a="CREATE TABLE a (n int);")
    migrate(empty_db, folder=folder)
    files(m0002_pre_b="ALTER TABLE a ADD m int;")
    monkeypatch.setattr(migrating, "LOCK_TIMEOUT", "20ms")
    with connect(empty_db) as conn:
        waits: list[object] = []

        def warned(event: str, **facts: object) -> None:
            waits.append(facts)
            if len(waits) == 2:
                conn.execute("ROLLBACK")

        monkeypatch.setattr(migrating.log, "warning", warned)
        conn.execute("BEGIN; SELECT * FROM a")
        assert migrate(empty_db, folder=folder) == ["0002_pre_b"]
        assert len(waits) == 2
        conn.execute("BEGIN; SELECT * FROM a")
        files(m0003_pre_c="ALTER TABLE a ADD k int;")
        monkeypatch.setattr(migrating, "LOCK_TRIES_MAX", 2)
        assert "cannot get its locks" in refusal(lambda: migrate(empty_db, folder=folder))


def test_waiting_for_another_node_ends(empty_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "WAIT_S_MAX", 0.0)
    with connect(empty_db) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", (migrating.LOCK_KEY,))
        assert "another chatd" in refusal(lambda: migrate(empty_db))


def test_the_databases_owner_need_not_be_a_superuser(empty_db: str, files: Callable[..., Path]) -> None:
    name = conninfo_to_dict(empty_db)["dbname"]
    with connect(empty_db) as conn:
        conn.execute(
            f"CREATE ROLE {name}_owner LOGIN; CREATE ROLE {name}_guest LOGIN; ALTER DATABASE {name} OWNER TO"
            f" {name}_owner"
        )
    try:
        text = refusal(lambda: migrate(make_conninfo(empty_db, user=f"{name}_guest")))
        assert "as the owner of the database" in text
        owner = make_conninfo(empty_db, user=f"{name}_owner")
        assert pending(owner) == OURS
        assert migrate(owner) == OURS
        with connect(owner) as conn:
            assert conn.execute("SELECT make_partition(now())").fetchone() is not None
    finally:
        with connect(empty_db) as conn:
            conn.execute(
                f"DROP OWNED BY {name}_owner CASCADE; ALTER DATABASE {name} OWNER TO CURRENT_USER; DROP ROLE"
                f" {name}_owner, {name}_guest"
            )


def test_a_url_does_as_well_as_keywords(empty_db: str) -> None:
    facts = conninfo_to_dict(empty_db)
    host = str(facts["host"]).replace("/", "%2F")
    url = f"postgresql://{facts['user']}@/{facts['dbname']}?host={host}&port={facts['port']}"
    assert migrate(url) == OURS
    assert pending(url) == []


def test_no_password_is_shown_when_the_connection_fails(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    for conninfo in (
        "postgresql://u:hunter2@127.0.0.1:1/db",
        "host=/nowhere user=u password=hunter2",
        "postgresql://u:hunter2@127.0.0.1:x/db",
    ):
        text = refusal(lambda conninfo=conninfo: migrate(conninfo))  # type: ignore[misc]
        assert "hunter2" not in text
    out, err = capsys.readouterr()
    assert "hunter2" not in out + err + caplog.text


def test_nothing_but_log_lines_is_printed(
    empty_db: str, files: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    migrate(empty_db, folder=files(m0001_pre_a="SELECT 'secret' AS x;"))
    assert "secret" not in "".join(capsys.readouterr())


def test_its_tables_do_not_clash_with_the_logs(fresh_db: str) -> None:
    assert {name for name in tables(fresh_db) if name.startswith("_")} == {"_yoyo_migration", "_chatd_function"}
