"""What gaps cost between two nodes, counted: people who write to each other at once on two nodes
cause no query, and what Redis lost is still delivered in time.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter
from typing import Any, Final

import pytest

import chatd.cluster.pubsub
from chatd.core import bus_lag
from chatd.store import Store
from tests.client import Peer
from tests.fix_redis import OwnRedis
from tests.fix_server import MakeServer, Server
from tests.maps import check_maps
from tests.until import until

pytestmark = pytest.mark.cluster

PAIRS: Final = 5
ROUNDS: Final = 20
BURST: Final = 5
LOST_S_MAX: Final = 2.0  # an entry that Redis lost comes within that time


class Queries:
    """Reads of the log for gaps, of all nodes of this process: calls by the store's method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        for name in ("heads", "entries_many"):
            monkeypatch.setattr(Store, name, self._counted(name, getattr(Store, name)))

    def _counted(self, name: str, real: Any) -> Any:
        async def method(store: Store, *args: Any) -> Any:
            self.counts[name] += 1
            return await real(store, *args)

        return method


async def two_nodes(make_server: MakeServer, own_redis: OwnRedis, fresh_db: str) -> tuple[Server, Server]:
    one, two = [
        await make_server(database_url=fresh_db, redis_url=own_redis.url, rate_messages=10_000) for _ in range(2)
    ]
    clusters = [server.node.cluster for server in (one, two)]
    await until(lambda: all(c is not None and c.pubsub.up and c.presence_sync.nodes == 1 for c in clusters))
    return one, two


async def befriended(one: Server, two: Server, n: int) -> tuple[Peer, Peer]:
    """Two users, one on each node, who have both sent."""
    a, b = await one.connect(f"a{n}"), await two.connect(f"b{n}")
    await a.say(f"b{n}", "hello")
    await b.push("entry")
    await b.say(f"a{n}", "hello yourself")
    await a.push("entry")
    return a, b


async def burst(peer: Peer, to: str) -> list[int]:
    """Send at once; gives the seqs of the answers, which are no duplicates."""
    ids = [await peer.post("send", to=to, cid=str(uuid.uuid4()), body=f"{n}") for n in range(BURST)]
    answers = [await peer.reply(id) for id in ids]
    assert all(one["t"] == "ok" and "dup" not in one for one in answers), answers
    return [one["seq"] for one in answers]


async def talk(one: Server, two: Server, pairs: list[tuple[Peer, Peer]]) -> int:
    """Both of each pair write at once; each gets all of the other once and in order. Gives how many
    runs of seqs there were: where they changed hands.
    """
    changes = 0
    for _ in range(ROUNDS):
        sent = await asyncio.gather(
            *(
                burst(peer, f"{other}{n}")
                for n, pair in enumerate(pairs)
                for peer, other in zip(pair, "ba", strict=True)
            )
        )
        for n, (a, b) in enumerate(pairs):
            of_a, of_b = sent[2 * n], sent[2 * n + 1]
            assert [(await b.push("entry"))["seq"] for _ in of_a] == sorted(of_a)
            assert [(await a.push("entry"))["seq"] for _ in of_b] == sorted(of_b)
            hands = [seq in of_a for seq in sorted(of_a + of_b)]
            changes += sum(x != y for x, y in itertools.pairwise(hands))
    for server in (one, two):
        await check_maps(server.node)
    return changes


async def test_what_is_on_its_way_over_the_bus_costs_no_query(
    make_server: MakeServer, own_redis: OwnRedis, fresh_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch that found a seq of the other node read the log: 5 ms and a query each time."""
    for name in ("WAIT_MIN_S", "WAIT_MAX_S"):  # a machine that stops for a while is no loss
        monkeypatch.setattr(bus_lag, name, 10.0)
    one, two = await two_nodes(make_server, own_redis, fresh_db)
    pairs = [await befriended(one, two, n) for n in range(PAIRS)]
    queries = Queries(monkeypatch)
    changes = await talk(one, two, pairs)
    assert changes >= ROUNDS, "they did not write at once"
    assert queries.counts["entries_many"] == 0
    reads = sum(server.node.metrics.feed_reads for server in (one, two))
    assert queries.counts["heads"] <= reads + 2 * PAIRS, "by the feed and after a hello alone"
    closed = sum(server.node.metrics.gaps_closed for server in (one, two))
    assert closed > 0
    assert sum(server.node.metrics.gap_fills for server in (one, two)) == 0


async def test_what_redis_lost_is_delivered_within_the_bound(
    make_server: MakeServer, own_redis: OwnRedis, fresh_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await two_nodes(make_server, own_redis, fresh_db)
    pairs = [await befriended(one, two, n) for n in range(PAIRS)]
    monkeypatch.setattr(chatd.cluster.pubsub, "DROPPED", 0.3)
    await talk(one, two, pairs)
    monkeypatch.setattr(chatd.cluster.pubsub, "DROPPED", 1.0)
    (a, b), *_ = pairs
    async with asyncio.timeout(LOST_S_MAX):
        ok = await a.say("b0", "the last one")
        assert (await b.push("entry"))["seq"] == ok["seq"]
