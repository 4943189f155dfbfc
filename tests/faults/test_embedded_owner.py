"""The embedded PostgreSQL ends under its owner: it is started again, nothing acked is lost,
sessions outlive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import pytest_asyncio

from chatd.config import Settings
from chatd.loop.backoff import Backoff
from chatd.postgres import embedded_owner
from chatd.postgres.embedded import Embedded, visit
from chatd.server import Node
from tests.client import Frame, Peer, peer_at
from tests.fix_server import Server, until_ready
from tests.until import until

if TYPE_CHECKING:
    from tests.fix_process import MakeProcess
    from tests.fix_redis import OwnRedis

BACK_S_MAX = 40.0


class Embedding(Server):
    """A node on an embedded PostgreSQL of its own."""

    @property
    def postgres(self) -> Embedded:
        assert self.node._owner is not None
        return self.node._owner.embedded

    async def back(self, restarts: int = 1) -> None:
        """Until it was started again so many times, and the node is ready."""
        await until(lambda: self.node.metrics.postgres_restarts >= restarts)
        await until_ready(self.node)


Make = Callable[..., Any]


@pytest_asyncio.fixture
async def embedding() -> AsyncIterator[Make]:
    servers: list[Server] = []

    async def make(data_dir: Path, **settings: Any) -> Embedding:
        node = Node(
            Settings(
                data_dir=data_dir,
                port=0,
                admin_port=0,
                rate_messages=10_000,
                frames_per_s=100_000,
                frames_burst=100_000,
                **settings,
            )
        )
        try:
            await node.start()
        except BaseException:
            await node.stop()
            raise
        servers.append(Embedding(node))
        return servers[-1]  # type: ignore[return-value]

    yield make
    for server in servers:
        await server.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="chatd-owner-") as name:
        yield Path(name)


async def insist(peer: Peer, to: str, body: str, n: dict[str, int]) -> int:
    """A send, repeated with its cid until it is acked; counts what was answered in between."""
    refused: list[Frame] = []
    answer = await peer.insist(to, body, refused=refused)
    n["unavailable"] = n.get("unavailable", 0) + len(refused)
    return int(answer["seq"])


def stored(server: Embedding) -> list[str]:
    with psycopg.connect(server.postgres.conninfo) as conn:
        return [body for (body,) in conn.execute("SELECT body FROM entries ORDER BY conv, seq")]


async def test_killed_under_sends_it_comes_back_and_no_acked_message_is_lost(embedding: Make, folder: Path) -> None:
    server = await embedding(folder)
    conninfo = server.postgres.conninfo
    alice, bob = await server.connect("alice"), await server.connect("bob")
    answers: dict[str, int] = {}
    acked = []
    for n in range(60):
        if n in (20, 40):
            os.kill(server.postgres.pid, signal.SIGKILL)
        await insist(alice, "bob", f"{n}", answers)
        acked.append(f"{n}")
    await server.back(2)
    assert answers["unavailable"] > 0
    assert server.postgres.conninfo == conninfo
    assert stored(server) == acked
    assert [(await bob.push("entry"))["body"] for _ in acked] == acked, "the session outlives it, and misses nothing"
    assert not server.node.tasks.failed.done()


async def test_stopped_by_pg_ctl_it_comes_back(embedding: Make, folder: Path) -> None:
    server = await embedding(folder)
    alice = await server.connect("alice")
    await insist(alice, "bob", "one", {})
    os.kill(server.postgres.pid, signal.SIGINT)  # what `pg_ctl stop` does
    await server.back()
    await insist(alice, "bob", "two", {})
    assert stored(server) == ["one", "two"]


async def test_a_crash_loop_backs_off_is_told_by_readiness_and_ends_with_its_cause(
    embedding: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    wait_s = Backoff.wait_s

    def noted(self: Any, served_s: float) -> float:
        waits.append(wait_s(self, served_s))
        return waits[-1]

    monkeypatch.setattr(Backoff, "wait_s", noted)
    monkeypatch.setattr(embedded_owner, "BACKOFF_FIRST_S", 0.02)
    server = await embedding(folder)
    alice = await server.connect("alice")
    await insist(alice, "bob", "one", {})
    config = server.postgres.cluster / "postgresql.conf"
    right = config.read_text()
    config.write_text(right + "\nno_such_setting = 1\n")
    os.kill(server.postgres.pid, signal.SIGKILL)
    await until(lambda: server.node.metrics.postgres_restarts >= 4)
    reasons = await server.node.readiness.problems()
    assert "the embedded PostgreSQL does not run" in reasons["database"], reasons
    assert waits[0] == 0
    assert waits[1] < waits[3]
    with pytest.raises(Exception, match="another chatd runs"), visit(folder):
        pass  # a tool does not run the cluster in a pause
    config.write_text(right)
    await server.back(4)
    await insist(alice, "carol", "two", {})


async def test_a_stale_pid_file_of_a_process_that_lives_does_not_keep_it_down(embedding: Make, folder: Path) -> None:
    server = await embedding(folder)
    cluster = server.postgres.cluster
    lines = (cluster / "postmaster.pid").read_text().splitlines()
    lock = cluster / ".s.PGSQL.5432.lock"
    with subprocess.Popen(["sleep", "600"], user=cluster.stat().st_uid) as other:
        try:
            os.kill(server.postgres.pid, signal.SIGKILL)
            for file in (cluster / "postmaster.pid", lock):
                file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
            await server.back()
        finally:
            other.kill()


async def test_a_socket_that_a_cleaner_removed_comes_back_at_the_same_address(embedding: Make, folder: Path) -> None:
    server = await embedding(folder / ("long" * 30))
    conninfo = server.postgres.conninfo
    place = Path(str(psycopg.conninfo.conninfo_to_dict(conninfo)["host"]))
    assert place != server.postgres.cluster
    shutil.rmtree(place)
    await server.back()
    assert server.postgres.conninfo == conninfo
    with psycopg.connect(conninfo) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


async def test_a_full_disk_that_is_freed_again_loses_nothing_acked(embedding: Make, folder: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs a small file system, which only root may mount: {mounted.stderr.strip()}")
    try:
        server = await embedding(folder, lane_deadline_ms=1_000)
        alice = await server.connect("alice")
        answers: dict[str, int] = {}
        acked = ["0"]
        await insist(alice, "bob", "0", answers)
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:  # closing it writes, too
            while True:
                file.write(b"x" * 65_536)
                file.flush()
        for n in range(1, 400):  # until what PostgreSQL has left of its files is used up, and it refuses or dies
            if (await alice.say("bob", "y" * 2_000 + str(n)))["t"] != "ok":
                break
            acked.append("y" * 2_000 + str(n))
        with contextlib.suppress(psycopg.Error), psycopg.connect(server.postgres.conninfo, autocommit=True) as conn:
            for _ in range(200):  # the log of PostgreSQL itself: no room for that ends all of it
                conn.execute("SELECT pg_logical_emit_message(true, 'chatd', repeat('y', 1000000))")
        await until(lambda: server.node.metrics.postgres_restarts >= 2)
        filler.unlink()
        await server.back()
        await insist(alice, "carol", "back", answers)
        have = stored(server)
        assert set(acked) <= set(have)
        assert not server.node.tasks.failed.done()
        await server.stop()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("how", ["told", "looked for"])
async def test_the_owner_of_workers_starts_it_again(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the supervisor keeps: the same object, without a node.

    Its end is told by the kernel, where that can (not on macOS).
    """
    monkeypatch.setattr(embedded_owner, "LOOK_S", 3_600.0)
    if how == "looked for":
        monkeypatch.delattr(os, "pidfd_open")
    owner = embedded_owner.EmbeddedOwner(Embedded(folder))
    conninfo = await owner.start()
    keeping = asyncio.create_task(owner.run())
    try:
        os.kill(owner.embedded.pid, signal.SIGKILL)

        async def is_back() -> bool:
            with contextlib.suppress(psycopg.OperationalError):
                async with await psycopg.AsyncConnection.connect(conninfo) as conn:
                    await conn.execute("SELECT 1")
                    return True
            return False

        await until(is_back, pause_s=0.05)
        with visit(folder) as found:
            assert found == psycopg.conninfo.make_conninfo(conninfo)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await owner.stop()
    await owner.stop()


async def test_a_stop_ends_a_start_that_is_under_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = embedded_owner.EmbeddedOwner(Embedded(folder))
    await owner.start()
    began = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Embedded, "_answers", lambda self: bool(loop.call_soon_threadsafe(began.set)))  # it never does
    keeping = asyncio.create_task(owner.run())
    os.kill(owner.embedded.pid, signal.SIGKILL)
    await began.wait()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    async with asyncio.timeout(BACK_S_MAX):
        await owner.stop()
    assert owner.embedded.running() is None


@pytest.mark.cluster
async def test_killed_under_workers_their_supervisor_starts_it_again(
    make_process: MakeProcess, own_redis: OwnRedis, tmp_path: Path
) -> None:
    supervisor = await make_process(workers=2, redis_url=own_redis.url, rate_messages=1_000)
    pid_file = tmp_path / "postgres" / "postmaster.pid"
    first = int(pid_file.read_text().split()[0])
    async with peer_at(supervisor, "alice") as alice:
        answers: dict[str, int] = {}
        seqs = []
        for n in range(20):
            if n == 10:
                os.kill(first, signal.SIGKILL)
            seqs.append(await insist(alice, "bob", f"{n}", answers))
        assert seqs == list(range(1, 21)), "nothing acked is lost, and the session outlives it"
        assert answers["unavailable"] > 0
    assert int(pid_file.read_text().split()[0]) != first
    assert supervisor.status is None
    assert "postgres.ended" in supervisor.said(1_000)
    supervisor.terminate()
    assert await supervisor.ended() == 0
