"""What a node does that has nothing to do: its loop wakes twice a second.

A wake is a return of the loop's selector that might have blocked. They are counted from beat to
beat of the sweep, which has the only timer of an idle node: so a slow machine counts the same.
Where a beat comes late, those who rest go on without it: the least of some rounds counts.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from chatd.errors import Unavailable
from tests.fix_server import MakeServer, Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fix_process import MakeProcess
    from tests.fix_redis import OwnRedis

BEATS = 2  # a round
ROUNDS = 8
ROUND_S_MAX = 20.0
A_BEAT = 2  # wakes: the timer of the sweep, and PostgreSQL's answer to the look
# With Redis: also the feed (timer, answer), the subscription (timer, pong, the echo that it
# publishes to itself, the answer to that) and two beats of the lease (timer, answer). Each
# connection answers for itself: a common timer would leave 9 of the 12.
A_BEAT_OF_MANY = 12


class Wakes:
    """Counts those of the running loop; `server`: whose beats are counted, too."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        self._beat = asyncio.Event()
        selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        select, sweep = selector.select, server.node.listener.sweep

        def counted(timeout: float | None = None) -> Any:
            ready = select(timeout)
            self.n += timeout is None or timeout > 0
            return ready

        def swept() -> None:
            sweep()
            self._beat.set()

        monkeypatch.setattr(selector, "select", counted)
        monkeypatch.setattr(server.node.listener, "sweep", swept)

    async def beat(self) -> None:
        self._beat.clear()
        await self._beat.wait()

    async def least(self, enough: int) -> float:
        """Of a beat, in the best of some rounds; no more of them once one is good enough."""
        rounds = []
        for _ in range(ROUNDS):
            async with asyncio.timeout(ROUND_S_MAX):
                await self.beat()
                before = self.n
                for _ in range(BEATS):
                    await self.beat()
            rounds.append((self.n - before) / BEATS)
            if rounds[-1] <= enough:
                break
        return min(rounds)


async def test_a_node_without_sessions_wakes_twice_a_second(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server()
    assert await Wakes(server, monkeypatch).least(A_BEAT) <= A_BEAT


async def test_idle_sessions_do_not_wake_it_and_after_traffic_it_rests_again(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(presence_grace_ms=300)
    peers = [await server.connect(f"user{n}") for n in range(20)]
    alice, bob = peers[:2]
    wakes = Wakes(server, monkeypatch)
    await alice.say("user1")
    await bob.say("user0")
    assert (await bob.request("watch", users=["user0"]))["t"] == "ok"
    for state in ("away", "online", "away", "online"):  # some of it is held back
        assert (await alice.request("typing", to="user1"))["t"] == "ok"
        assert (await alice.request("presence", state=state))["t"] == "ok"
    assert (await bob.request("ack", to="user0", seq=1))["t"] == "ok"
    await peers.pop().close()
    assert await wakes.least(A_BEAT) <= A_BEAT
    assert (await bob.push("typing"))["from"] == "user0"


@pytest.mark.cluster
async def test_a_node_among_others_wakes_for_each_answer(
    make_server: MakeServer,
    make_process: MakeProcess,
    make_db: Callable[[], str],
    own_redis: OwnRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = make_db()
    server = await make_server(database_url=url, redis_url=own_redis.url)
    await make_process(database_url=url, redis_url=own_redis.url)
    assert await Wakes(server, monkeypatch).least(A_BEAT_OF_MANY) <= A_BEAT_OF_MANY


async def test_work_that_fails_when_it_is_due_stops_the_node_loudly(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not left out from then on, in silence."""
    server = await make_server(presence_grace_ms=10)
    alice = await server.connect("alice")

    def fails(*args: object) -> None:
        raise ValueError("a bug of ours")

    monkeypatch.setattr(server.node.services.presence, "due", fails)
    await alice.close()
    with pytest.raises(ValueError, match="a bug of ours"):
        async with asyncio.timeout(ROUND_S_MAX):
            await server.node.tasks.failed


async def test_a_flush_that_failed_is_tried_again_though_nothing_is_put_after_it(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await make_server(cursor_flush_ms=10)
    alice, bob = await server.connect("alice"), await server.connect("bob")
    await alice.say("bob")
    store = server.node.store
    await store.flush()
    flush, tries, done = store.flush, 0, asyncio.Event()

    async def refused() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("a moment", retry_ms=1)
        await flush()
        if not store.state_flush.cursors:
            done.set()

    monkeypatch.setattr(store.state_flush, "flush", refused)
    assert (await bob.request("ack", to="alice", seq=1))["t"] == "ok"
    async with asyncio.timeout(ROUND_S_MAX):
        await done.wait()
    rows = await store.read_pool.rows("SELECT max(greatest(a_delivered, b_delivered)) FROM cursors", ())
    assert rows == [(1,)]
