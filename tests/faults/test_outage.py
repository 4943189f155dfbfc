"""PostgreSQL gone for ten seconds in the middle of sends: stopped, and frozen (connections stay
open, nothing answers).

Sessions stay up; requests get `unavailable` with `retry_ms`; afterwards all is well without
anybody's help, and nothing acked is lost.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from chatd.postgres.connection import Backend
from tests.client import peer_at
from tests.faults.crowd import crowd_at, seed
from tests.faults.test_kills import FAST
from tests.fix_process import MakeProcess, OwnPostgres
from tests.fix_server import MakeServer, until_ready
from tests.integration.logs import Message, append, only

OUTAGE_S = 10.0
BACK_S_MAX = 10.0  # until all work again


async def away(own_postgres: OwnPostgres, how: str) -> Callable[[], Any]:
    """Take PostgreSQL away; gives what brings it back."""
    if how == "frozen":
        own_postgres.freeze()
        return own_postgres.thaw
    await asyncio.to_thread(own_postgres.stop)
    return own_postgres.start


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_ten_seconds_without_postgresql(own_postgres: OwnPostgres, make_process: MakeProcess, how: str) -> None:
    chatd = await make_process(database_url=own_postgres.conninfo, **FAST)
    conninfo = own_postgres.conninfo
    async with crowd_at(chatd, random.Random(seed())) as crowd, peer_at(chatd, "watcher") as watcher:
        assert (await watcher.say("watched"))["seq"] == 1
        await crowd.acks(100)
        before = [c.connections for c in crowd.clients]
        back = await away(own_postgres, how)
        gone_at = time.monotonic()

        read = await watcher.post("history", to="watched")
        listing = await watcher.post("conversations")
        assert (await watcher.request("ping"))["t"] == "pong"  # what needs no database is answered meanwhile
        for id in (read, listing):
            error = await watcher.reply(id)
            assert (error["t"], error.get("code"), error.get("retry_ms", 0) > 0) == ("err", "unavailable", True), error
        async with peer_at(chatd, "newcomer") as newcomer:
            assert (newcomer.welcome["t"], newcomer.welcome.get("code")) == ("err", "unavailable"), newcomer.welcome
            assert newcomer.welcome["retry_ms"] > 0
            assert await newcomer.closed() == 4009
        await asyncio.sleep(max(0.0, gone_at + OUTAGE_S - time.monotonic()))
        await asyncio.to_thread(back)

        back_at = time.monotonic()
        while (page := await watcher.reply(await watcher.post("history", to="watched")))["t"] == "err":
            assert page["code"] == "unavailable"
        assert len(page["entries"]) == 1
        print(f"reads are back after {time.monotonic() - back_at:.2f} s")
        await crowd.acks(100, within_s=BACK_S_MAX)
        async with peer_at(chatd, "newcomer") as newcomer:
            assert newcomer.welcome["t"] == "welcome"
        assert [c.connections for c in crowd.clients] == before, "sessions stay up"
        assert chatd.status is None
        errors = [e for c in crowd.clients for e in c.errors]
        assert {e["code"] for e in errors} == {"unavailable", "blocked"}
        assert all(e["retry_ms"] > 0 for e in errors if e["code"] == "unavailable")
        await crowd.settle(conninfo)
        print(crowd.verify(conninfo))


@pytest.mark.slow
async def test_an_entry_frozen_in_its_commit_is_found_although_its_sender_is_gone(
    own_postgres: OwnPostgres, make_process: MakeProcess
) -> None:
    """Its statement waits in the frozen server's socket, runs once that goes on, and nobody sends
    it again.
    """
    chatd = await make_process(database_url=own_postgres.conninfo, lane_deadline_ms=500)
    async with peer_at(chatd, "bob") as bob, peer_at(chatd, "alice", "phone") as phone:
        async with peer_at(chatd, "alice") as alice:
            await alice.say("bob", "one")
            own_postgres.freeze()
            assert (await alice.say("bob", "two"))["code"] == "unavailable"
        own_postgres.thaw()
        for peer in (bob, phone):
            assert [((e := await peer.push("entry"))["seq"], e["body"]) for _ in range(2)] == [(1, "one"), (2, "two")]


async def test_while_a_commit_hangs_readiness_tells_it_and_a_lock_is_one_line(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No synchronous standby answers.

    The node was ready again after 3 s, as nobody else had failed; each batch wrote a line.
    """
    server = await make_server(lane_deadline_ms=500, rate_messages=100)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob", "1")
    await alice.say("carol", "1")
    await bob.push("entry")
    health = server.node.store.health
    with psycopg.connect(server.node.store.opener._conninfo, autocommit=True) as db, capture_logs() as logs:
        try:
            db.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            db.execute("SELECT pg_reload_conf()")
            hung = str(uuid.uuid4())
            async with asyncio.timeout(20):
                while True:
                    first = await alice.post("send", to="bob", body="2", cid=hung)
                    second = await alice.post("send", to="carol", body="2", cid=str(uuid.uuid4()))
                    if (await alice.reply(first))["t"] == "err":
                        break
                    await alice.reply(second)
                    hung = str(uuid.uuid4())
            monkeypatch.setattr(health, "_now", lambda: time.monotonic() + 60)
            assert "timeout" in (await server.node.readiness.problems())["database"], (
                "also while the lane waits for the next one"
            )
            await alice.reply(second)
            for _ in range(3):
                assert (await alice.say("bob", "2", cid=hung, retry=True))["code"] == "unavailable"
            assert "timeout" in (await server.node.readiness.problems())["database"]
        finally:
            db.execute("ALTER SYSTEM RESET synchronous_standby_names")
            db.execute("SELECT pg_reload_conf()")
        await until_ready(server.node)
    assert (
        len([entry for entry in logs if entry["event"] == "conversation.locked" and entry["log_level"] == "warning"])
        == 1
    )


async def test_an_entry_that_commits_after_it_was_looked_for_is_found(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    """The old connection's transaction outlives the first look at the head: others come until its
    backend is gone.
    """
    url = make_db()
    server = await make_server(database_url=url, lane_deadline_ms=1000)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    first = await alice.say("bob", "one")
    assert (await bob.push())["seq"] == 1
    conv = server.node.registry.convs[int(first["c"])]  # type: ignore[index]
    # As the lane's old backend: it commits when the first look is over
    with psycopg.connect(url, autocommit=True) as other:
        started = (
            "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint FROM pg_stat_activity WHERE pid ="
            " pg_backend_pid()"
        )
        backend = Backend(*only(other, started))
        server.node.delivery.gaps.outcomes.outcome_unknown({conv.id}, {backend})
        heads = server.node.store.heads_decided
        looked = asyncio.Event()

        async def looking(convs: Any) -> Any:
            found = await heads(convs)
            if not looked.is_set():
                looked.set()
                append(other, [Message(conv.id, "late")])
            return found

        server.node.store.heads_decided = looking  # type: ignore[method-assign]
        entry = await bob.push()
        assert (entry["seq"], entry["body"]) == (2, "late")


async def test_a_lost_entry_is_found_while_others_only_probe(
    make_server: MakeServer, make_db: Callable[[], str]
) -> None:
    """Bob, over his rate, keeps the conversation's lane busy with sends that make no entry; alice's
    lost one must still come.
    """
    url = make_db()
    server = await make_server(
        database_url=url, rate_messages=1, rate_per_ms=600_000, frames_per_s=100_000, frames_burst=100_000
    )
    alice, bob = await server.connect("alice"), await server.connect("bob")
    phone = await server.connect("alice", "phone")
    first = await alice.say("bob", "one")
    assert (await bob.say("alice", "two"))["seq"] == 2
    assert [(await phone.push())["seq"] for _ in range(2)] == [1, 2]
    conv = server.node.registry.convs[int(first["c"])]  # type: ignore[index]
    with psycopg.connect(url, autocommit=True) as other:
        append(other, [Message(conv.id, "lost")])
    conv.pending += 1  # as long as one of bob's is on its way
    server.node.delivery.gaps.outcomes.outcome_unknown({conv.id})
    entry = await phone.push()
    assert (entry["seq"], entry["body"]) == (3, "lost")
    conv.pending -= 1
