"""SIGTERM under load: clients get a notice, what is in flight is committed and acked, the exit
status is 0 within 10 s. A second one forces.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from typing import Any

import psycopg
from websockets.exceptions import ConnectionClosed

from tests.client import peer_at
from tests.faults.crowd import crowd_at, seed
from tests.faults.test_kills import FAST
from tests.fix_process import MakeProcess, OwnPostgres
from tests.fix_server import MakeServer

CLOSED_RESTART = 1012


async def test_sigterm_under_load(own_postgres: OwnPostgres, make_process: MakeProcess) -> None:
    chatd = await make_process(database_url=own_postgres.conninfo, **FAST)
    async with crowd_at(chatd, random.Random(seed()), pause_s=0.02) as crowd:
        await crowd.acks(200)
        chatd.terminate()
        began = time.monotonic()
        assert await chatd.ended() == 0
        took_s = time.monotonic() - began
        for client in crowd.clients:
            assert [n["kind"] for n in client.notices] == ["drain"]
            assert client.notices[0]["retry_ms"] >= 0
            await client.until(lambda c=client: len(c.closes) > 0, 5)  # type: ignore[misc]
            assert client.closes[0] == CLOSED_RESTART
            assert {e["code"] for e in client.errors} <= {"unavailable", "blocked"}
        await chatd.start()  # the upgraded one; the same clients go on
        await crowd.acks(50)
        await crowd.settle(own_postgres.conninfo)
        print(crowd.verify(own_postgres.conninfo), f"drained in {took_s:.2f} s")


async def test_what_is_in_flight_is_acked(own_postgres: OwnPostgres, make_process: MakeProcess) -> None:
    """A burst is pipelined, and the signal comes right behind it: every send that was taken gets
    its ok, the others `unavailable`.

    What has not come by the time of the close has no answer, and is not in the log.
    """
    chatd = await make_process(database_url=own_postgres.conninfo, **FAST)
    async with peer_at(chatd, "alice") as alice:
        await alice.say("bob")
        ids = [await alice.post("send", to="bob", cid=str(uuid.uuid4()), body=str(n)) for n in range(300)]
        replies: list[dict[str, Any]] = [await alice.reply(ids[0])]
        chatd.terminate()
        with contextlib.suppress(ConnectionClosed):
            for id in ids[1:]:
                replies.append(await alice.reply(id))  # noqa: PERF401  those before the close count
        oks = [r for r in replies if r["t"] == "ok"]
        assert [r["seq"] for r in oks] == list(range(2, len(oks) + 2)), "in order, and the refused ones behind them"
        assert {r["code"] for r in replies[len(oks) :]} <= {"unavailable", "blocked"}
        assert await alice.closed() == CLOSED_RESTART
    assert await chatd.ended() == 0
    with psycopg.connect(own_postgres.conninfo) as conn:
        assert conn.execute("SELECT count(*) FROM entries").fetchone() == (1 + len(oks),)


async def test_no_new_connections_while_it_drains_and_a_second_signal_forces(
    own_postgres: OwnPostgres, make_process: MakeProcess
) -> None:
    chatd = await make_process(database_url=own_postgres.conninfo, **FAST, lane_deadline_ms=60_000)
    async with peer_at(chatd, "alice") as alice:
        await alice.say("bob")
        own_postgres.freeze()  # what is in its lane cannot end, so the drain waits
        await alice.post("send", to="bob", cid=str(uuid.uuid4()), body="stuck")
        await alice.request("ping")
        chatd.terminate()
        assert (await alice.push("notice"))["kind"] == "drain"
        assert (await alice.say("bob", "late"))["code"] in ("unavailable", "blocked")
        assert (await alice.request("ping"))["t"] == "pong", "it still answers what it can"
        try:
            async with peer_at(chatd, "bob"):
                raise AssertionError("a draining node takes nobody in")
        except OSError:
            pass
        chatd.terminate()
        forced_at = time.monotonic()
        status = await chatd.ended()
        print(f"forced in {time.monotonic() - forced_at:.2f} s")
        assert status not in (0, None), "an exit status that tells"


async def test_sigterm_without_postgresql_ends_in_time(own_postgres: OwnPostgres, make_process: MakeProcess) -> None:
    chatd = await make_process(database_url=own_postgres.conninfo, **FAST, drain_ms=3_000)
    async with peer_at(chatd, "alice") as alice:
        await alice.say("bob")
        own_postgres.freeze()
        await alice.post("send", to="bob", cid=str(uuid.uuid4()), body="stuck")
        await alice.request("ping")
        chatd.terminate()
        began = time.monotonic()
        assert await chatd.ended() == 1, "not a whole drain: an entry got no answer"
        print(f"ended in {time.monotonic() - began:.2f} s")


async def test_a_lone_node_tells_clients_to_come_when_it_is_there_again(make_server: MakeServer) -> None:
    server = await make_server()
    node = server.node
    assert node._restart_ms > 0, "its start was not measured"
    node._restart_ms = 2_000.0
    alice = await server.connect("alice")
    await node.drain()
    assert 3_000 <= (await alice.push("notice"))["retry_ms"] <= 3_200
