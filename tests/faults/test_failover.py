"""Failover to a standby that lags, under load: what it lacks is lost and nothing else; nobody reads
or writes in another's log; nobody is stuck.

The devices' histories are taken apart by epoch. What they saw of the old log is checked against the
old primary's data, what they saw of the new one against the new primary's: each in full, as if
there were no other. `FAILOVERS=10` does ten in a row, to and fro; the suite does one with each
number of nodes. CHATD_FAULT_SEED replays the schedule (not the machine's timing).
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from chatd.cli import main
from chatd.client import Client, Reset
from chatd.postgres.migrate import migrate
from chatd.postgres.queries import folder
from tests.client import Frame, Peer
from tests.cluster.traffic import metrics, nodes_of, told
from tests.faults import checker
from tests.faults.client import Client as Device
from tests.faults.crowd import Crowd, Place, read_log, seed
from tests.fix_cluster import Nodes, Roamer
from tests.fix_failover import DATABASE, Cluster, MakeCluster, Pair
from tests.fix_fake_chatd import next_event
from tests.fix_process import MakeProcess
from tests.fix_redis import MakeRedis
from tests.fix_server import MakeServer, Server
from tests.ports import free_port
from tests.until import until

FAILOVERS = int(os.environ.get("FAILOVERS", "1"))
FAST: dict[str, Any] = {
    "rate_messages": 10_000,
    "frames_per_s": 100_000,
    "frames_burst": 100_000,
    "new_conversations_per_hour": 10_000,
}
SETTLE_S_MAX = 60.0
NEW_PAIRS = 40  # a sequence is logged 32 values ahead: with more than that, ids are given again


class Spread:
    """Nodes in turn, as behind a load balancer."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes, self.given = nodes, 0
        self.url = nodes[0].url

    def token(self, user: str) -> str:
        return self.nodes.token(user)

    def urls(self) -> list[str]:
        self.given += 1
        return self.nodes.urls(self.given % len(self.nodes))


class Town(Crowd):
    """The pairs who talk all the time, and single ones who write to many for the first time."""

    def client(self, place: Place, user: str, device: str, rng: random.Random) -> Device:
        assert isinstance(place, Spread)
        self.place = place
        return Roamer(place.urls(), place.token(user), user, device, rng)

    async def newcomer(self, user: str) -> Device:
        """One more device, connected."""
        client = self.client(self.place, user, f"{user}-0", random.Random(self.rng.getrandbits(64)))
        self.clients.append(client)
        self._tasks.append(asyncio.create_task(client.run()))
        await client.until(client.live.is_set, SETTLE_S_MAX)
        return client

    @staticmethod
    def write_to_many(client: Device, prefix: str) -> None:
        for n in range(NEW_PAIRS):
            client.post(f"{prefix}{n}", body=f"{client.history.user} to {prefix}{n}")

    @staticmethod
    async def all_acked(client: Device) -> None:
        await client.until(lambda: not client.unsent, SETTLE_S_MAX)

    def resume(self) -> None:
        """They talk again after `quiet`."""
        self._talk = [asyncio.create_task(self._talks(c)) for c in self.clients if c.history.user[0] in "ab"]


Logs = tuple[dict[str, list[checker.Entry]], dict[str, set[str]]]


def judge(town: Town, epoch: str, logs: Logs, *, is_old: bool) -> str:
    """Check what all saw of one log; gives a line on it."""
    log, who = logs
    parts = [parts[epoch] for c in town.clients if epoch in (parts := checker.by_epoch(c.history))]
    findings = [*checker.check(parts, log), *checker.foreign([c.history for c in town.clients], parts, log, who)]
    if not is_old:
        assert len(parts) == len(town.clients)
        for part in parts:
            findings += checker.missing(part, {c: log[c] for c, users in who.items() if part.user in users})
    assert not findings, (epoch, "old" if is_old else "new", checker.counts(findings), findings[:10])
    acks = sum(isinstance(e, checker.Acked) for part in parts for e in part.events)
    return f"{sum(map(len, log.values()))} entries, {acks} acks"


def lost(old: Logs, new: Logs, acked: set[str]) -> tuple[int, int, int]:
    """(entries that only the old log has, how many of these had been acked, ids that were given
    again to others).
    """
    have = {entry.cid for entries in new[0].values() for entry in entries}
    gone = [entry.cid for entries in old[0].values() for entry in entries if entry.cid not in have]
    again = [c for c, users in new[1].items() if c in old[1] and old[1][c] != users]
    return len(gone), len([cid for cid in gone if cid in acked]), len(again)


async def one_failover(town: Town, pair: Pair, rng: random.Random, number: int) -> None:
    loop = asyncio.get_running_loop()
    await town.acks(rng.randint(20, 100))
    early, late = await town.newcomer(f"early{number}"), await town.newcomer(f"late{number}")
    epoch_before = pair.primary.ask("SELECT epoch FROM meta")
    lag_s = rng.choice((0.0, rng.uniform(0.0, 0.2), rng.uniform(0.2, 1.5)))
    if lag_s:
        await asyncio.to_thread(pair.lag)
        town.write_to_many(early, f"p{number}x")  # lost with their ids
        if number == 1 or rng.random() < 0.5:
            await town.all_acked(early)
        await asyncio.sleep(lag_s)
    await asyncio.to_thread(pair.end_primary)
    acked = {cid for c in town.clients for _, _, cid in c.ok_at}
    await asyncio.sleep(0.3)  # what the primary has answered is with the clients by now
    began = loop.time()
    await asyncio.to_thread(pair.promote)
    promoted = loop.time()
    early.post(f"p{number}x0", body="again")  # in a conversation that is gone
    town.write_to_many(late, f"q{number}x")
    await until(lambda: all(c.epoch_live_at > began for c in town.clients))
    resynced = max(c.epoch_live_at for c in town.clients) - promoted
    await town.all_acked(late)
    await town.acks(100)
    new = await settled(town, pair)
    epoch = pair.primary.ask("SELECT epoch FROM meta")
    assert epoch != epoch_before
    old = await asyncio.to_thread(log_of_old_primary, pair)
    print(f"{number}: lag {lag_s:.2f} s, promoted in {promoted - began:.2f} s, all resynced {resynced:.2f} s after it")
    print("   old log:", judge(town, epoch_before, old, is_old=True))
    print("   new log:", judge(town, epoch, new, is_old=False))
    gone, gone_acked, again = lost(old, new, acked)
    print(f"   {gone} entries only in the old log, {gone_acked} of them acked; {again} ids given again to others")
    stored = {entry.cid for entries in new[0].values() for entry in entries}
    unstored = [
        (c.history.user, cid) for c in town.clients for at, _, cid in c.ok_at if at >= began and cid not in stored
    ]
    assert not unstored, f"an ok after the promotion and no row: {unstored[:10]}"
    faults = [(c.history.device, fault) for c in town.clients for fault in c.faults]
    assert not faults, faults[:10]


def log_of_old_primary(pair: Pair) -> Logs:
    with pair.old_log() as old_primary:
        return read_log(old_primary.url)


async def settled(town: Town, pair: Pair) -> Logs:
    """Quiet, every outbox empty, every device complete."""
    await town.settle(pair.primary.url, SETTLE_S_MAX)
    unsent = {c.history.device: c.unsent for c in town.clients if c.unsent}
    assert not unsent, f"stuck: {unsent}"
    return await asyncio.to_thread(read_log, pair.primary.url)


async def failovers(nodes: Nodes, pair: Pair, times: int = FAILOVERS) -> None:
    rng = random.Random(seed())
    town = Town(Spread(nodes), rng, pairs=4, pause_s=0.08)
    town.start()
    try:
        for number in range(1, times + 1):
            if number > 1:
                town.resume()
                await asyncio.to_thread(pair.follow)
            await one_failover(town, pair, rng, number)
    finally:
        await town.stop()
    for node in nodes.nodes:
        assert node.status is None, "a node has died"
        said = await metrics(node)
        assert said["chatd_database_up"] == 1
        moves = told(node, "log.moved")
        assert len(moves) == times
        assert {move["level"] for move in moves} == {"error"}


async def test_one_node_over_a_failover_to_a_standby_that_lags(pair: Pair, make_process: MakeProcess) -> None:
    node = await make_process(database_url=pair.url, admin_port=free_port(), **FAST)
    await failovers(Nodes([node]), pair)


@pytest.mark.cluster
async def test_two_nodes_over_a_failover_to_a_standby_that_lags(
    pair: Pair, make_process: MakeProcess, make_redis: MakeRedis
) -> None:
    await failovers(await nodes_of(2, make_process, pair.url, make_redis().url, **FAST), pair)


# ---- the old primary, a dump, a point in time ----------------------------------------------------


async def peers(server: Server) -> tuple[Peer, Peer, Frame]:
    """Two who have written to each other once; and the first answer."""
    alice, bob = await server.connect("alice"), await server.connect("bob")
    first = await alice.say("bob", "1")
    assert (await bob.say("alice", "2"))["seq"] == 2
    return alice, bob, first


ALL_OF_IT = """SELECT (SELECT jsonb_agg(to_jsonb(m)) FROM meta m)::text
    || (SELECT jsonb_agg(to_jsonb(v) ORDER BY id) FROM conversations v)::text
    || (SELECT jsonb_agg(to_jsonb(e) ORDER BY conv, seq) FROM entries e)::text
    || (SELECT jsonb_agg(to_jsonb(u) ORDER BY conv) FROM cursors u)::text"""


async def test_an_old_primary_that_comes_back_is_not_written_to(pair: Pair, make_server: MakeServer) -> None:
    """It is the first host of the URL, takes writes, has entries that the new one lacks, and nobody
    has fenced it.

    Neither a node that was there before is fooled, whose connections end, nor one that starts
    beside both, also if the new primary is away then.
    """
    server = await make_server(database_url=pair.url, **FAST)
    alice, bob, first = await peers(server)
    await bob.request("read", c=first["c"], seq=2)
    await server.node.store.flush()
    await asyncio.to_thread(pair.caught_up)
    await asyncio.to_thread(pair.lag)
    for n in range(3, 10):
        assert (await alice.say("bob", f"lost {n}"))["seq"] == n
    assert (await alice.say("carol", "lost"))["seq"] == 1
    await asyncio.to_thread(pair.fail_over)
    assert await alice.closed() == 1012
    alice = await server.connect("alice")
    for n, to in enumerate(("bob", "dave", "erin", "frank"), 1):
        assert (await alice.say(to, "new"))["seq"] == (3 if n == 1 else 1)
    await asyncio.to_thread(pair.old_primary_back)
    was = pair.standby.ask(ALL_OF_IT)
    pair.primary.ask(END_ALL)
    assert (await alice.insist("bob", "4"))["seq"] == 4
    started = await make_server(database_url=pair.url, **FAST)
    alice = await started.connect("alice", "late")
    assert len(alice.welcome["conversations"]) == 4
    assert (await alice.insist("bob", "5"))["seq"] == 5
    await asyncio.to_thread(pair.primary.stop)
    answer = await alice.say("bob", "6", cid=(cid := str(uuid.uuid4())))
    assert answer["code"] == "unavailable"

    async def says_old_primary() -> bool:
        return "old primary" in (await started.node.readiness.problems()).get("database", "")

    await until(says_old_primary)
    await asyncio.to_thread(pair.primary.start)
    assert (await alice.insist("bob", "6", cid=cid))["seq"] == 6
    assert pair.primary.ask("SELECT max(head) FROM conversations") == 6
    assert pair.standby.ask(ALL_OF_IT) == was


END_ALL = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'chatd%%'"


async def test_of_several_hosts_the_primary_is_migrated(pair: Pair, tmp_path: Path) -> None:
    """The first one of the URL has become the standby since: a node of the next release did not
    start.
    """
    url = (
        pair.url.replace(str(pair.primary.port), "x")
        .replace(str(pair.standby.port), str(pair.primary.port))
        .replace("x", str(pair.standby.port))
    )
    shutil.copytree(folder(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "migrations" / "9999_pre_next.sql").write_text("CREATE TABLE of_next ()")
    assert await asyncio.to_thread(migrate, url, folder=tmp_path) == ["9999_pre_next"]


# ---- restores ------------------------------------------------------------------------------------


class Before(NamedTuple):
    """What clients hold of a log that is restored as it was with two entries, when a third one had
    been acked.
    """

    c: str
    epoch: str
    since: str
    state: dict[str, Any]  # of a Python client of bob's


async def with_three(server: Server, restore: Callable[[], None]) -> Before:
    """`restore` is called when two entries are there. The node is stopped."""
    alice, _, first = await peers(server)
    async with Client(server.url, token=server.token("bob"), device="sdk") as client, asyncio.timeout(SETTLE_S_MAX):
        await asyncio.to_thread(restore)
        assert (await alice.say("bob", "lost"))["seq"] == 3
        assert (await anext(client.entries())).body == "lost"
        late = await server.connect("alice", "late")
        state = client.state()
    await server.stop()
    return Before(first["c"], late.welcome["epoch"], late.welcome["since"], state)


async def begins_again(again: Server, before: Before) -> None:
    """A mark and cursors of before do no harm, and nobody sees what is lost or misses what comes
    then.
    """
    alice = await again.connect("alice", epoch=before.epoch, since=before.since, cursors={before.c: 3})
    assert alice.welcome["epoch"] != before.epoch
    (item,) = alice.welcome["conversations"]
    assert (item["head"], item.get("reset")) == (2, None), "all is listed; the cursor is of another epoch"
    bob = await again.connect("bob", since=before.since)
    assert len(bob.welcome["conversations"]) == 1, "a mark without its epoch is void, too"
    async with (
        Client(again.url, token=again.token("bob"), device="sdk", state=before.state) as client,
        asyncio.timeout(SETTLE_S_MAX),
    ):
        assert (await alice.say("bob", "3"))["seq"] == 3
        entry = await anext(client.entries())
        assert (entry.seq, entry.body) == (3, "3")
        assert [await next_event(client), await next_event(client)] == [Reset(None, None), Reset(before.c, "alice")]
        assert (await client.send("alice", "4")).seq == 4
    assert [(await bob.push("entry"))["body"], (await bob.push("entry"))["body"]] == ["3", "4"]


async def with_and_without_renewal(new: Cluster, make_server: MakeServer, before: Before) -> None:
    """The restored database, and a copy of it in which the operator renews the epoch before a node
    starts.
    """
    url = f"{new.url.rpartition('/')[0]}/renewed"
    with new.sql("postgres") as conn:
        conn.execute(f"CREATE DATABASE renewed TEMPLATE {DATABASE} STRATEGY file_copy")
    assert await asyncio.to_thread(main, ["epoch", "--renew", "--database-url", url]) == 0
    renewed = await make_server(database_url=url)
    await begins_again(renewed, before)
    await begins_again(await make_server(database_url=new.url), before)


async def test_a_dump_in_a_new_cluster_is_begun_again(make_cluster: MakeCluster, make_server: MakeServer) -> None:
    """Its transactions have small ids, and the epoch of before is in it."""
    old, new = make_cluster(), make_cluster(is_new=True)
    before = await with_three(await make_server(database_url=old.url), lambda: old.restore_dump(new))
    await with_and_without_renewal(new, make_server, before)


async def test_a_recovery_to_a_point_in_time_is_begun_again(make_cluster: MakeCluster, make_server: MakeServer) -> None:
    old, new = make_cluster(archives=True), make_cluster(runs=False)

    def restore() -> None:
        new.backup_of(old)
        old.ask("SELECT pg_create_restore_point('here')::text")

    before = await with_three(await make_server(database_url=old.url), restore)
    await asyncio.to_thread(new.recover, old, "here")
    await with_and_without_renewal(new, make_server, before)


async def test_a_crash_keeps_the_epoch_and_a_mark_of_before_misses_nothing(
    make_cluster: MakeCluster, make_server: MakeServer
) -> None:
    cluster = make_cluster()
    server = await make_server(database_url=cluster.url)
    alice, _bob, first = await peers(server)
    late = await server.connect("bob", "late")
    cluster.stop()
    cluster.start()
    await alice.insist("bob", "3")
    back = await server.connect(
        "bob", "late", epoch=late.welcome["epoch"], since=late.welcome["since"], cursors={first["c"]: 2}
    )
    assert back.welcome["epoch"] == late.welcome["epoch"]
    assert [item["c"] for item in back.welcome["conversations"]] == [first["c"]]
    assert (await back.push("entry"))["seq"] == 3
