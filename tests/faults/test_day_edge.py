"""One cid sent through two nodes at once, over many edges of a partition: never two entries.

The days of this log are a second long. Both nodes are real, on one database, and know nothing of
each other; each of alice's devices sends the same cid, one of them with `retry`. Bob listens on
both.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

import psycopg
import pytest

from tests.client import Peer
from tests.faults.crowd import read_log
from tests.fix_redis import OwnRedis
from tests.fix_server import MakeServer

DAY_S = 1
RACES_AT_ONCE = 4


async def race(peers: tuple[Peer, Peer], cids: list[str], flags: tuple[bool, bool]) -> None:
    """Each cid through both nodes at once; exactly one of each pair is fresh, the other a dup with
    its seq.
    """
    ids = [
        [await peer.post("send", to="bob", cid=cid, body=cid, **({"retry": True} if retry else {})) for cid in cids]
        for peer, retry in zip(peers, flags, strict=True)
    ]
    one, other = await asyncio.gather(*(replies(peer, row) for peer, row in zip(peers, ids, strict=True)))
    for a, b in zip(one, other, strict=True):
        assert (a["t"], b["t"]) == ("ok", "ok"), (a, b)
        assert (a["seq"], a["ts"]) == (b["seq"], b["ts"])
        assert [r.get("dup", False) for r in (a, b)].count(True) == 1, (a, b)


async def replies(peer: Peer, ids: list[int]) -> list[dict[str, object]]:
    return [await peer.reply(id) for id in ids]


async def races(make_server: MakeServer, make_db: Callable[[], str], redis: OwnRedis, days: int) -> None:
    url = make_db()
    settings = {
        "database_url": url, "redis_url": redis.url, "partition_s": DAY_S, "partitions_ahead": 3,
        "rate_messages": 10_000, "rate_per_ms": 100, "frames_per_s": 100_000, "frames_burst": 100_000,
    }  # fmt: skip
    servers = [await make_server(**settings) for _ in range(2)]
    alices = (await servers[0].connect("alice", "desk"), await servers[1].connect("alice", "phone"))
    bobs = (await servers[0].connect("bob", "desk"), await servers[1].connect("bob", "phone"))
    assert (await alices[0].say("bob", "first"))["seq"] == 1
    begun, rounds = time.monotonic(), 0
    while time.monotonic() < begun + days * DAY_S:
        cids = [str(uuid.uuid4()) for _ in range(RACES_AT_ONCE)]
        await race(alices, cids, ((True, True), (True, False), (False, True))[rounds % 3])
        rounds += 1
    log, _ = read_log(url)
    ((entries),) = log.values()
    assert [e.seq for e in entries] == list(range(1, 2 + rounds * RACES_AT_ONCE))
    assert len({e.cid for e in entries}) == len(entries)
    assert [e.ts for e in entries] == sorted(e.ts for e in entries)
    with psycopg.connect(url) as conn:
        row = conn.execute("SELECT count(DISTINCT tableoid) FROM entries").fetchone()
    assert row is not None
    assert row[0] >= days, "the log lies in several days"
    for bob in bobs:  # what each node delivered: its own and what it found on the way, in order, each once
        await bob.request("ping")
        seqs = [p["seq"] for p in bob.pushes if p["t"] == "entry"]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    print(f"{rounds * RACES_AT_ONCE} races over {row[0]} days")


async def test_one_cid_through_two_nodes_over_the_edge_of_a_day(
    make_server: MakeServer, make_db: Callable[[], str], own_redis: OwnRedis
) -> None:
    await races(make_server, make_db, own_redis, 3)


@pytest.mark.slow
async def test_one_cid_through_two_nodes_over_many_edges(
    make_server: MakeServer, make_db: Callable[[], str], own_redis: OwnRedis
) -> None:
    await races(make_server, make_db, own_redis, 8)
