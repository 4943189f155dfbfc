"""History from a standby: never older than what its reader has seen, whatever the standby does.

Real standbys: they lag, replay nothing for a while, hang, die, come back, and are promoted.
CHATD_FAULT_SEED replays the clients' choices.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import uuid
from collections.abc import AsyncIterator, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from chatd.config import Settings
from chatd.ids import ConvId
from chatd.ops import doctor
from chatd.postgres import history_reads
from chatd.postgres.history_reads import BEHIND, FAILED, PRIMARY, REPLICA, WithReplica
from chatd.postgres.replica import POSITION, Replica
from chatd.postgres.standby import OTHER_CLUSTER, PROMOTED
from tests.client import Frame, Peer
from tests.faults.crowd import seed
from tests.faults.replica_readers import Reader
from tests.fix_costs import TRACED
from tests.fix_failover import Cluster, MakeCluster, Pair
from tests.fix_redis import MakeRedis
from tests.fix_server import MakeServer, Server
from tests.until import until

FAST: Final[dict[str, Any]] = {
    "rate_messages": 10_000,
    "frames_per_s": 100_000,
    "frames_burst": 100_000,
    "new_conversations_per_hour": 10_000,
}
LAG_S: Final = 5.0
RUN_S: Final = 9.0  # sessions are older than the lag for some seconds of it

Said = list[MutableMapping[str, Any]]


@pytest.fixture
def said() -> Iterator[Said]:
    """The lines of the log so far."""
    with capture_logs() as lines:
        yield lines


def reasons(said: Said) -> list[str]:
    return [line.get("reason", "") for line in said]


def places(server: Server) -> dict[str, int]:
    """How many pages were read where."""
    return {place: n for (place,), n in server.node.metrics.history_reads.items()}


def replica_of(server: Server) -> Replica:
    assert server.node.store.replica is not None
    return server.node.store.replica


async def served(make_server: MakeServer, pair: Pair, **settings: Any) -> Server:
    """A node that writes to the primary and reads history from the standby, which is ready."""
    urls = {"database_url": pair.primary.url, "database_replica_url": pair.standby.url}
    server = await make_server(**{**urls, **FAST, **settings})
    await until(lambda: replica_of(server).is_up)
    return server


async def talking(make_server: MakeServer, pair: Pair) -> tuple[Server, Peer, Peer, str]:
    """Such a node, alice and bob, and their conversation, whose first entry the standby has."""
    server = await served(make_server, pair)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    c = (await alice.say("bob", "1"))["c"]
    await asyncio.to_thread(pair.caught_up)
    return server, alice, bob, c


async def change(peer: Peer, t: str, c: str, ref: int, **keys: Any) -> int:
    answer = await peer.request(t, c=c, ref=ref, cid=str(uuid.uuid4()), **keys)
    assert answer["t"] == "ok", answer
    return int(answer["seq"])


async def read(peer: Peer, c: str, **keys: Any) -> list[Frame]:
    answer = await peer.request("history", c=c, **keys)
    assert answer["t"] == "ok", answer
    entries: list[Frame] = answer["entries"]
    return entries


class Reads:
    """Which place answered each read since the last look."""

    def __init__(self, server: Server) -> None:
        self._server, self._before = server, places(server)

    @property
    def new(self) -> dict[str, int]:
        now, before = places(self._server), self._before
        self._before = now
        return {place: n - before.get(place, 0) for place, n in now.items() if n > before.get(place, 0)}


def pause(standby: Cluster) -> None:
    """Nothing is replayed from now on."""
    standby.ask("SELECT pg_wal_replay_pause()")
    standby.until(lambda: standby.ask("SELECT pg_get_wal_replay_pause_state()") == "paused", "replay is paused")


def resume(standby: Cluster) -> None:
    standby.ask("SELECT pg_wal_replay_resume()")


# ---- what it answers -----------------------------------------------------------------------------


async def test_a_page_of_the_replica_is_that_of_the_primary_in_one_round_trip(
    pair: Pair, make_server: MakeServer
) -> None:
    server = await served(make_server, pair)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    for n in range(8):
        c = (await alice.say("bob", f"{n}"))["c"]
    await change(alice, "edit", c, 2, body="edited")
    await change(alice, "delete", c, 3)
    await asyncio.to_thread(pair.caught_up)
    reads = Reads(server)
    for keys in ({}, {"before": 6, "limit": 3}, {"after": 0, "limit": 4}, {"after": 10}, {"before": 1}):
        page = await read(bob, c, **keys)
        assert reads.new == {REPLICA: 1}
        pause(pair.standby)
        await change(alice, "edit", c, 1, body=str(keys))  # the standby lacks it
        assert reads.new == {}
        again = await read(bob, c, **keys)
        assert reads.new == {BEHIND: 1}
        assert [e["seq"] for e in again if e["seq"] <= 10] == [e["seq"] for e in page if e["seq"] <= 10]
        resume(pair.standby)
        await asyncio.to_thread(pair.caught_up)
        assert await read(bob, c, **keys) == again
        assert reads.new == {REPLICA: 1}


async def test_a_read_is_one_round_trip_to_the_replica_and_none_to_the_primary(
    pair: Pair, make_server: MakeServer, tmp_path: Any
) -> None:
    """Also where the position is asked for first: a session newer than what the connection knows."""
    server = await served(make_server, pair, pool_max=2)
    alice = await server.connect("alice")
    c = (await alice.say("bob", "hi"))["c"]
    await asyncio.to_thread(pair.caught_up)
    replica = replica_of(server)
    (link,) = replica._ready
    with (tmp_path / "trace").open("w+b", buffering=0) as file:
        link.conn.pgconn.trace(os.dup(file.fileno()))
        for peer, statements in ((await server.connect("bob"), 2), (alice, 1)):
            link.position = 0 if statements == 2 else link.position
            file.truncate(0)
            reads = Reads(server)
            await read(peer, c)
            assert reads.new == {REPLICA: 1}
            link.conn.pgconn.untrace()
            sent = [kind for way, _, kind in TRACED.findall((tmp_path / "trace").read_bytes()) if way == b"F"]
            assert sent.count(b"Sync") <= 1 + (statements == 2), sent
            link.conn.pgconn.trace(os.dup(file.fileno()))


async def test_what_a_replica_lacks_is_read_at_the_primary_and_the_rest_still_there(
    pair: Pair, make_server: MakeServer
) -> None:
    server = await served(make_server, pair)
    alice, bob, carol = [await server.connect(user) for user in ("alice", "bob", "carol")]
    c = (await alice.say("bob", "1"))["c"]
    quiet = (await alice.say("carol", "1"))["c"]
    await asyncio.to_thread(pair.caught_up)
    pause(pair.standby)
    reads = Reads(server)
    assert [e["body"] for e in await read(bob, c)] == ["1"]
    assert reads.new == {REPLICA: 1}, "nothing has happened since"
    await change(alice, "edit", c, 1, body="2")
    assert (await read(bob, c))[0]["body"] == "2"
    await change(alice, "delete", c, 1)
    assert (await read(bob, c))[0]["body"] is None
    new = (await alice.say("dave", "hi"))["c"]
    assert [e["body"] for e in await read(alice, new)] == ["hi"]
    assert reads.new == {BEHIND: 3}
    assert [e["body"] for e in await read(carol, quiet)] == ["1"]
    assert reads.new == {REPLICA: 1}
    late = await server.connect("carol", "late")
    assert [e["body"] for e in await read(late, quiet)] == ["1"]
    assert reads.new == {BEHIND: 1}, "this client may have been anywhere before its hello"
    resume(pair.standby)
    await asyncio.to_thread(pair.caught_up)
    await read(late, quiet)
    assert reads.new == {REPLICA: 1}


async def moved(pair: Pair, make_server: MakeServer) -> tuple[Server, Peer, str]:
    """A client that saw an edit at one node and is at another one now, which has never heard of it.

    The two share no Redis, and the mark of its hello says that the client knows. The standby lacks
    the edit.
    """
    first = await make_server(database_url=pair.primary.url, **FAST)
    second = await served(make_server, pair)
    second.node.registry.holds_all = True  # as a node among others: one alone would read the edit's head now
    alice, bob = await first.connect("alice"), await second.connect("bob")
    c = (await alice.say("bob", "1"))["c"]
    assert (await alice.say("bob", "2"))["seq"] == 2
    await bob.close()
    bob = await second.connect("bob")  # the second node knows the conversation up to here
    registry, floor = second.node.registry, second.node.store.watch.replay_floor
    await until(lambda: registry.convs[ConvId(int(c))].head == 2)
    await until(lambda: floor.needed(ConvId(int(c))) is not None)  # it was read from the log there
    await asyncio.to_thread(pair.caught_up)
    pause(pair.standby)
    await change(alice, "edit", c, 1, body="edited")
    there = await first.connect("bob")
    assert (await read(there, c))[0]["body"] == "edited"
    await bob.close()
    bob = await second.connect("bob", **{key: there.welcome[key] for key in ("epoch", "since")})
    assert registry.convs[ConvId(int(c))].head == 2, "it does not know of the edit"
    return second, bob, c


async def test_what_a_client_saw_at_another_node_is_not_taken_back(pair: Pair, make_server: MakeServer) -> None:
    server, bob, c = await moved(pair, make_server)
    reads = Reads(server)
    assert (await read(bob, c))[0]["body"] == "edited"
    assert reads.new == {BEHIND: 1}


async def test_without_the_position_of_the_hello_it_would_be(
    pair: Pair, make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heads alone do not show it."""
    monkeypatch.setattr(WithReplica, "position", lambda self, of_listing: 0)
    server, bob, c = await moved(pair, make_server)
    reads = Reads(server)
    assert (await read(bob, c))[0]["body"] == "1"
    assert reads.new == {REPLICA: 1}


async def test_what_was_read_from_the_log_is_covered_by_the_next_look(pair: Pair, make_server: MakeServer) -> None:
    """A resync, a gap fill, or a page of the primary, may show an edit before its entry is delivered."""
    server = await served(make_server, pair)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    c = (await alice.say("bob", "1"))["c"]
    other = (await bob.say("carol", "1"))["c"]
    await asyncio.to_thread(pair.caught_up)
    pause(pair.standby)
    await alice.say("dave", "the log goes on")
    reads = Reads(server)
    server.node.store.history.shown([ConvId(int(c))])
    await read(bob, c)
    assert reads.new == {PRIMARY: 1}, "until the watch has looked nobody knows how far is far enough"
    floor = server.node.store.watch.replay_floor
    await until(lambda: floor.needed(ConvId(int(c))) is not None)
    await read(bob, c)
    assert reads.new == {BEHIND: 1}, "the standby is not there yet"
    await read(bob, other)
    assert reads.new == {REPLICA: 1}
    resume(pair.standby)
    await asyncio.to_thread(pair.caught_up)
    await read(bob, c)
    assert reads.new == {REPLICA: 1}


# ---- clients that check --------------------------------------------------------------------------


class Town:
    """Two nodes over one Redis, their standby, and users who write to each other at both."""

    def __init__(self, servers: list[Server]) -> None:
        rng = random.Random(seed())
        users = [f"u{n}" for n in range(6)]
        self.servers = servers
        self.readers = [
            Reader(user, [one for one in users if one != user][:3], servers, random.Random(rng.getrandbits(64)))
            for user in users
        ]

    async def settle_in(self) -> None:
        """All are connected, and have written."""
        for reader in self.readers:
            await reader.connect()
            await reader.write()

    async def live(self, run_s: float) -> None:
        end = asyncio.get_running_loop().time() + run_s
        await asyncio.gather(*(reader.live(end) for reader in self.readers))

    @property
    def stale(self) -> list[Any]:
        return [one for reader in self.readers for one in reader.stale]

    @property
    def places(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for server in self.servers:
            for place, n in places(server).items():
                found[place] = found.get(place, 0) + n
        return found


async def town_of(make_server: MakeServer, make_redis: MakeRedis, pair: Pair) -> Town:
    redis_url = make_redis().url
    town = Town([await served(make_server, pair, redis_url=redis_url, node_name=f"n{n}") for n in range(2)])
    await town.settle_in()
    return town


@contextlib.asynccontextmanager
async def stuttering(standby: Cluster) -> AsyncIterator[None]:
    """Its replay stops for up to 0.4 s, goes on for up to 0.2 s, and so on."""
    rng = random.Random(seed())

    async def stutter() -> None:
        while True:
            await asyncio.to_thread(pause, standby)
            await asyncio.sleep(rng.uniform(0, 0.4))
            await asyncio.to_thread(resume, standby)
            await asyncio.sleep(rng.uniform(0, 0.2))

    task = asyncio.create_task(stutter())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.slow
@pytest.mark.cluster
async def test_with_a_standby_that_lags_5_s_no_client_sees_an_older_state_than_it_saw(
    pair: Pair, make_server: MakeServer, make_redis: MakeRedis
) -> None:
    pair.standby.stop()
    pair.standby.settings |= {"recovery_min_apply_delay": f"{LAG_S:g}s"}
    pair.standby.start()
    town = await town_of(make_server, make_redis, pair)
    quiet = Reader("quiet1", ["quiet2"], town.servers, random.Random(seed()))
    await quiet.connect()
    await quiet.write()
    (c, _), *_ = quiet.own

    async def scroll() -> None:
        for _ in range(40):
            await quiet.read(c)
            await asyncio.sleep(RUN_S / 40)

    await asyncio.gather(town.live(RUN_S), scroll())
    print(town.places, [dict(reader.did) for reader in town.readers])
    assert town.stale == quiet.stale == []
    assert town.places[BEHIND] > 100
    assert town.places[REPLICA] > 5, "what is older than the lag is read there"


@pytest.mark.slow
@pytest.mark.cluster
async def test_with_a_standby_whose_replay_stutters_no_client_sees_an_older_state_than_it_saw(
    pair: Pair, make_server: MakeServer, make_redis: MakeRedis
) -> None:
    town = await town_of(make_server, make_redis, pair)
    async with stuttering(pair.standby):
        await town.live(RUN_S)
    print(town.places, [dict(reader.did) for reader in town.readers])
    assert town.stale == []
    assert town.places[BEHIND] > 50
    assert town.places[REPLICA] > 50


@pytest.mark.slow
@pytest.mark.cluster
async def test_a_replica_whose_head_is_not_compared_is_found_out(
    pair: Pair, make_server: MakeServer, make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The readers would see it, if the proof were not asked for."""
    for name in ("BEFORE", "AFTER"):
        text = getattr(history_reads, name).replace("h.head >= $6::bigint", "$6::bigint >= 0")
        monkeypatch.setattr(history_reads, name, text)
    monkeypatch.setattr(history_reads, "_is_proven", lambda rows, head, floor: bool(rows))
    town = await town_of(make_server, make_redis, pair)
    async with stuttering(pair.standby):
        while not town.stale:
            await town.live(1.0)
    print(town.places, town.stale[:3])


# ---- a replica that fails ------------------------------------------------------------------------


async def test_a_replica_that_dies_costs_no_answer_and_is_used_again(
    pair: Pair, make_server: MakeServer, said: Said
) -> None:
    server, _, bob, c = await talking(make_server, pair)
    reads = Reads(server)
    await read(bob, c)
    assert reads.new == {REPLICA: 1}
    await asyncio.to_thread(pair.standby.stop)
    for _ in range(20):
        assert len(await read(bob, c)) == 1
    new = reads.new
    assert set(new) <= {FAILED, PRIMARY}
    assert new[FAILED] <= 2, "one for each connection"
    await until(lambda: not replica_of(server).is_up)
    assert not await server.node.readiness.problems()
    await asyncio.to_thread(pair.standby.start)
    await until(lambda: replica_of(server).is_up)
    await read(bob, c)
    assert reads.new == {REPLICA: 1}
    events = [line["event"] for line in said]
    assert events.count("replica.away") == 1
    assert events.count("replica.ready") == 2
    assert "database.outage" not in events


async def test_a_replica_that_hangs_holds_up_as_many_reads_as_it_has_connections(
    pair: Pair, make_server: MakeServer
) -> None:
    server, alice, bob, c = await talking(make_server, pair)
    reads = Reads(server)
    with frozen(pair.standby):
        pages = await asyncio.gather(*(read(peer, c) for peer in (alice, bob)))
        for _ in range(20):
            pages.append(await read(bob, c))
        assert all(len(page) == 1 for page in pages)
        assert reads.new.get(FAILED, 0) <= 2
        assert not await server.node.readiness.problems()

    async def is_used() -> bool:
        await read(bob, c)
        return REPLICA in reads.new

    await until(is_used)


@contextlib.contextmanager
def frozen(cluster: Cluster) -> Iterator[None]:
    """No process of it runs; its connections stay open."""
    with cluster.sql() as conn:
        found = conn.execute("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()").fetchall()
    pids = [int((cluster.data / "postmaster.pid").read_text().split()[0]), *(pid for (pid,) in found)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def test_a_replica_that_is_promoted_is_no_longer_asked(pair: Pair, make_server: MakeServer, said: Said) -> None:
    """Nobody has stopped the primary. What is written to the other one is another log."""
    server, _, bob, c = await talking(make_server, pair)
    reads = Reads(server)
    await read(bob, c)
    assert reads.new == {REPLICA: 1}
    await asyncio.to_thread(pair.standby.promote)
    pair.standby.ask("UPDATE entries SET body = 'of another log' RETURNING 1")
    assert [e["body"] for e in await read(bob, c)] == ["1"]
    assert set(reads.new) <= {BEHIND, PRIMARY}
    await until(lambda: not replica_of(server).is_up)
    assert [e["body"] for e in await read(bob, c)] == ["1"]
    assert reads.new == {PRIMARY: 1}
    assert PROMOTED in reasons(said)


async def test_after_a_failover_the_standby_of_the_new_primary_is_used(pair: Pair, make_server: MakeServer) -> None:
    """The same URL for both settings: a standby of it where there is one, else the primary itself."""
    server = await served(make_server, pair, database_url=pair.url, database_replica_url=pair.url)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    c = (await alice.say("bob", "1"))["c"]
    await asyncio.to_thread(pair.caught_up)
    reads = Reads(server)
    await read(bob, c)
    assert reads.new == {REPLICA: 1}
    assert replica_of(server)._ready[0].conn.info.port == pair.standby.port
    await asyncio.to_thread(pair.fail_over)
    assert await bob.closed() == 1012
    bob = await server.connect("bob")
    assert [e["body"] for e in await read(bob, c)] == ["1"]
    await asyncio.to_thread(pair.follow)

    async def is_at_the_standby() -> bool:
        await read(bob, c)
        ready = replica_of(server)._ready
        return REPLICA in reads.new and bool(ready) and all(link.conn.info.port == pair.standby.port for link in ready)

    pair.primary.ask(END_ALL)
    await until(is_at_the_standby)


END_ALL: Final = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'chatd replica'"
)


async def test_a_standby_of_the_timeline_before_is_not_asked(
    pair: Pair, make_cluster: MakeCluster, make_server: MakeServer
) -> None:
    """It replayed more of the old primary's log than the new primary has: entries that are lost."""
    third = make_cluster(runs=False)
    third.backup_of(pair.primary, is_standby=True)
    third.start()
    server = await make_server(database_url=pair.url, database_replica_url=third.url, **FAST)
    await until(lambda: replica_of(server).is_up)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    c = (await alice.say("bob", "1"))["c"]
    await asyncio.to_thread(third.until, lambda: third.ask("SELECT count(*) FROM entries") == 1, "it has the entry")
    await asyncio.to_thread(pair.standby.until, lambda: pair.standby.ask("SELECT count(*) FROM entries") == 1, "too")
    pair.standby.ask("SELECT pg_wal_replay_pause()")  # pg_promote ends it
    await asyncio.to_thread(pair.standby.stop)
    await change(alice, "edit", c, 1, body="lost")
    await asyncio.to_thread(third.until, lambda: third.ask("SELECT max(head) FROM conversations") == 2, "and the edit")
    await asyncio.to_thread(pair.end_primary)
    await asyncio.to_thread(pair.standby.start)
    await asyncio.to_thread(pair.promote)
    assert await bob.closed() == 1012
    bob = await server.connect("bob")
    reads = Reads(server)
    assert [e["body"] for e in await read(bob, c)] == ["1"]
    await until(lambda: not replica_of(server).is_up)
    assert [e["body"] for e in await read(bob, c)] == ["1"]
    assert REPLICA not in reads.new


# ---- what else the setting may name --------------------------------------------------------------


async def test_the_primary_itself_may_be_named_and_another_cluster_is_refused(
    make_cluster: MakeCluster, make_server: MakeServer, said: Said
) -> None:
    one, other = make_cluster(), make_cluster(is_new=True)
    server = await make_server(database_url=one.url, database_replica_url=one.url, **FAST)
    await until(lambda: replica_of(server).is_up)
    alice = await server.connect("alice")
    c = (await alice.say("bob", "1"))["c"]
    reads = Reads(server)
    for n in range(2, 6):
        await change(alice, "edit", c, 1, body=str(n))
        assert (await read(alice, c))[0]["body"] == str(n)
    assert reads.new == {REPLICA: 4}
    assert "replica.is_primary" in [line["event"] for line in said]
    await asyncio.to_thread(one.restore_dump, other)
    wrong = await make_server(database_url=one.url, database_replica_url=other.url, **FAST)
    alice = await wrong.connect("alice")
    assert (await read(alice, c))[0]["body"] == "5"
    assert places(wrong) == {PRIMARY: 1}
    assert not replica_of(wrong).is_up
    assert OTHER_CLUSTER in reasons(said)


async def test_doctor_says_what_a_replica_is(pair: Pair, make_server: MakeServer, tmp_path: Path) -> None:
    await make_server(database_url=pair.primary.url, data_dir=tmp_path)
    await asyncio.to_thread(pair.caught_up)

    def says(url: str) -> list[str]:
        settings = Settings(
            database_url=SecretStr(pair.primary.url), database_replica_url=SecretStr(url), data_dir=tmp_path
        )
        return [f"{one.level} {one.what}" for one in doctor.examine(settings) if one.about == "replica"]

    (found,) = await asyncio.to_thread(says, pair.standby.url)
    assert re.fullmatch(r"ok 127\.0\.0\.1:\d+ is a standby of the primary, [0-9,]+ bytes of WAL behind", found)
    found, other = await asyncio.to_thread(says, pair.url)
    assert re.fullmatch(r"warn .* is the primary itself: .*", found)
    assert other.startswith("ok ")
    pair.standby.stop()
    (found,) = await asyncio.to_thread(says, pair.standby.url)
    assert re.fullmatch(r"warn .* does not answer .* read from the primary; .*", found)
    pair.standby.settings |= {"recovery_min_apply_delay": "5s"}
    pair.standby.start()

    async def says_delay() -> bool:
        found = (await asyncio.to_thread(says, pair.standby.url))[-1]
        return re.fullmatch(r"warn .* recovery_min_apply_delay is 5s: .*", found) is not None

    await until(says_delay)
    pair.standby.stop()
    del pair.standby.settings["recovery_min_apply_delay"]
    pair.standby.start()
    pair.standby.promote()
    (found,) = await asyncio.to_thread(says, pair.standby.url)
    assert re.fullmatch(rf"warn .* {PROMOTED}: .*", found)


# ---- what it rests on ----------------------------------------------------------------------------


def test_a_position_in_the_statement_itself_proves_nothing_and_one_before_it_does(pair: Pair) -> None:
    """The snapshot of a statement is older than the position that it gives: so the position is asked
    by a statement of its own, in front.
    """
    with pair.primary.sql() as conn:
        conn.execute("CREATE TABLE t (n integer)")
    pair.caught_up()

    def ask() -> list[Any]:
        with pair.standby.sql() as conn, conn.pipeline():
            asked = [
                conn.execute(f"SELECT count(*), pg_sleep(1), ({POSITION}) FROM t"),
                conn.execute("SELECT count(*) FROM t"),
            ]
            return [cursor.fetchone() for cursor in asked]

    with ThreadPoolExecutor() as thread:
        asking = thread.submit(ask)
        pair.standby.until(lambda: pair.standby.ask(SLEEPS), "it has its snapshot")
        pair.primary.ask("INSERT INTO t VALUES (1) RETURNING n")
        at = pair.primary.ask(POSITION)
        first, second = asking.result()
    assert (first[0], second[0]) == (0, 1)
    assert first[2] >= at, "it has replayed the commit, and does not see it"


SLEEPS: Final = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
