"""`chatd serve --workers N` with real nodes: one port, one server, and whatever dies is there
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chatd.chat.auth import KeySet, issue
from chatd.ids import UserId
from chatd.ops import keys_file
from tests.client import Peer, peer_at
from tests.fix_process import EXIT_S_MAX, MakeProcess, Process
from tests.fix_redis import OwnRedis
from tests.until import until

pytestmark = pytest.mark.cluster

N = 3
PEERS = 12
POLL_S = 0.02


def worker_pids(fleet: Process) -> dict[int, int]:
    """By number, as the log tells of them; the last one counts."""
    lines = (json.loads(line) for line in fleet.log_file.read_text().splitlines() if line.startswith("{"))
    return {line["worker"]: line["pid"] for line in lines if line["event"] == "worker.ready"}


def sessions(fleet: Process) -> list[str]:
    """The number of the worker of each session, in the order in which they began."""
    lines = (json.loads(line) for line in fleet.log_file.read_text().splitlines() if line.startswith("{"))
    return [line["node"].rpartition("/")[2] for line in lines if line["event"] == "session.opened"]


@contextlib.asynccontextmanager
async def crowd(fleet: Process, n: int, name: str = "u") -> AsyncIterator[list[Peer]]:
    async with contextlib.AsyncExitStack() as stack:
        peers = []
        for k in range(n):
            peers.append(await stack.enter_async_context(peer_at(fleet, f"{name}{k}")))
            assert peers[-1].welcome["t"] == "welcome"
        yield peers


async def closed(peers: list[Peer]) -> list[int]:
    """Close codes; 0 for who is connected, and answered."""

    async def code(peer: Peer) -> int:
        with contextlib.suppress(Exception):
            if (await peer.request("ping"))["t"] == "pong":
                return 0
        return await peer.closed()

    return await asyncio.gather(*map(code, peers))


async def gone(pid: int) -> None:
    """Until that process has ended; it is no child of ours."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    done = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, done.set)
    try:
        async with asyncio.timeout(EXIT_S_MAX):
            await done.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


def serve(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CHATD_")}
    command = [sys.executable, "-m", "chatd", "serve", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


async def test_one_port_a_killed_worker_comes_back_and_all_drain(
    make_process: MakeProcess, fresh_db: str, own_redis: OwnRedis
) -> None:
    fleet = await make_process(workers=N, database_url=fresh_db, redis_url=own_redis.url, drain_ms=5_000)
    pids = worker_pids(fleet)
    assert sorted(pids) == list(range(N))
    async with crowd(fleet, PEERS) as peers:
        os.kill(pids[1], signal.SIGKILL)
        await gone(pids[1])
        codes = await closed(peers)
        assert (codes.count(0), codes.count(1006)) == (8, 4), "a third was at the killed one"
        left = [peer for peer, code in zip(peers, codes, strict=True) if code == 0]
        await until(lambda: worker_pids(fleet)[1] != pids[1], pause_s=POLL_S)
        again = worker_pids(fleet)
        assert (again[0], again[2]) == (pids[0], pids[2])
        async with crowd(fleet, 4, "back") as back:
            assert sessions(fleet)[PEERS:] == ["1"] * 4, "what comes next evens it out"
            fleet.terminate()
            for peer in (*left, *back):
                assert (await peer.push("notice"))["kind"] == "drain"
            assert {await peer.closed() for peer in (*left, *back)} == {1012}
    assert await fleet.ended() == 0, fleet.said()
    for pid in again.values():
        await gone(pid)


async def test_workers_are_one_server(make_process: MakeProcess, fresh_db: str, own_redis: OwnRedis) -> None:
    fleet = await make_process(workers=2, database_url=fresh_db, redis_url=own_redis.url)
    async with crowd(fleet, 12) as peers:
        for k, peer in enumerate(peers):
            assert (await peer.say(f"u{(k + 1) % 12}", f"from u{k}"))["t"] == "ok"
        for k, peer in enumerate(peers):
            assert (await peer.push("entry"))["body"] == f"from u{(k - 1) % 12}"
    fleet.terminate()
    assert await fleet.ended() == 0, fleet.said()


async def test_a_reload_ends_the_sessions_of_a_removed_key_at_each_worker(
    make_process: MakeProcess, fresh_db: str, own_redis: OwnRedis, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    old, new = (keys_file.make("HS256", kid) for kid in ("old", "new"))

    def keys(*jwks: object) -> KeySet:
        path.write_text(json.dumps({"keys": jwks}))
        path.chmod(0o600)
        return KeySet.load(path)

    signers = [keys(new), keys(old, new)]  # the second set stays; each signs with its first
    fleet = await make_process(workers=2, database_url=fresh_db, redis_url=own_redis.url, keys_file=path)
    peers: list[Peer] = []
    async with contextlib.AsyncExitStack() as stack:
        for k in range(40):
            token = issue(signers[k // 2 % 2], UserId(f"u{k}"), 3_600, time.time(), None, None)
            peers.append(await stack.enter_async_context(peer_at(fleet, f"u{k}", token=token)))
            assert peers[-1].welcome["t"] == "welcome"
        keys(new)
        fleet.hang_up()
        assert {await peer.closed() for k, peer in enumerate(peers) if k // 2 % 2} == {4001}, "at either worker"
        assert set(await closed([peer for k, peer in enumerate(peers) if not k // 2 % 2])) == {0}
    lines = [json.loads(line) for line in fleet.log_file.read_text().splitlines() if line.startswith("{")]
    counts = {line["node"]: line["sessions"] for line in lines if line["event"] == "keys.sessions_ended"}
    assert sorted(counts.values()) == [10, 10], "connections are spread evenly"


async def test_workers_drain_and_go_when_their_supervisor_is_killed(
    make_process: MakeProcess, fresh_db: str, own_redis: OwnRedis
) -> None:
    fleet = await make_process(workers=2, database_url=fresh_db, redis_url=own_redis.url, drain_ms=5_000)
    pids = worker_pids(fleet)
    async with crowd(fleet, 10) as peers:
        fleet.kill()
        assert {await peer.closed() for peer in peers} == {1012}
    for pid in pids.values():
        await gone(pid)
    with socket.create_server(("127.0.0.1", fleet.port)):
        pass  # and nobody holds the port


async def test_the_embedded_postgresql_is_the_supervisors(
    make_process: MakeProcess, own_redis: OwnRedis, tmp_path: Path
) -> None:
    fleet = await make_process(workers=2, redis_url=own_redis.url)
    postmaster = int((tmp_path / "postgres" / "postmaster.pid").read_text().split()[0])
    async with crowd(fleet, 4) as peers:
        os.kill(worker_pids(fleet)[0], signal.SIGKILL)
        await gone(worker_pids(fleet)[0])
        live = [peer for peer, code in zip(peers, await closed(peers), strict=True) if code == 0]
        for peer in live:
            assert (await peer.say("u0"))["t"] == "ok", "a dead worker does not take the database with it"
    fleet.terminate()
    assert await fleet.ended() == 0, fleet.said()
    await gone(postmaster)


def test_what_is_wrong_is_told_once_with_exit_status_2(own_redis: OwnRedis, fresh_db: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        common = [
            "--workers",
            "3",
            "--data-dir",
            str(tmp_path),
            "--database-url",
            fresh_db,
            "--redis-url",
            own_redis.url,
            "--admin-port",
            "-1",
        ]
        for flags, says in (
            (["--workers", "3", "--port", "0", "--database-url", fresh_db], "--redis-url"),
            (["--workers", "65", "--port", "0"], "from 1 to 64"),
            ([*common, "--port", "0", "--keys-file", "/nonexistent.json"], "/nonexistent.json"),
            ([*common, "--port", str(port)], f"cannot listen on 127.0.0.1:{port}"),
            ([*common, "--port", "0", "--admin-port", str(port)], f"cannot listen on 127.0.0.1:{port}"),
        ):
            result = serve(*flags)
            told = [line for line in result.stderr.splitlines() if line.startswith("chatd: ")]
            assert (result.returncode, len(told)) == (2, 1), result.stderr
            assert says in told[0]
            assert "Traceback" not in result.stderr
