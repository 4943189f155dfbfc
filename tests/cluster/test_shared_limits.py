"""Limits over nodes by a real Redis: exact while it answers, each node's own count while it does
not, and never a wait longer than the deadline.

The nodes of the first part are quotas alone, each with a connection of its own; those of the second
are whole.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import orjson
import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from chatd.chat.ports import Rates
from chatd.cluster.redis.client import RedisClient
from chatd.cluster.shared_limits import DEADLINE_S, SCRIPT, SharedLimits
from chatd.core.rate_limit import FORGET_S, SharedWindow
from chatd.ids import UserId
from chatd.metrics import Metrics
from chatd.postgres.faults import Outage
from tests.client import Peer
from tests.fix_redis import OwnCluster, OwnRedis
from tests.fix_server import MakeServer, Server
from tests.limits_model import US, Model, most_in_any
from tests.until import until

pytestmark = pytest.mark.cluster

SPEED = 20  # the breaker's pauses are so much shorter here
PATIENT_S = 5.0  # the deadline where it is not what a test is about: a shared machine can stand still for 50 ms
PAUSE_MS = 4_000  # it ends by itself: nothing can be said to a Redis that pauses


class Watched:
    """The script, and what it was asked and answered, in the order of Redis's clock."""

    def __init__(self, redis_client: RedisClient, calls: list[tuple[int, list[str], list[Any], bytes]]) -> None:
        self._script = redis_client.script(SCRIPT)
        self._calls = calls

    async def __call__(self, keys: Sequence[Any], args: Sequence[Any], within_s: float | None = None) -> Any:
        answer = await self._script(keys, args, within_s)
        self._calls.append((int(answer.split()[0]), list(keys), list(args), answer))
        return answer


class QuotaNode:
    """Shared limits with their own connection, and the users they hold."""

    def __init__(
        self,
        url: str,
        rates: Rates,
        calls: list[tuple[int, list[str], list[Any], bytes]],
        deadline_s: float = PATIENT_S,
    ) -> None:
        self.redis_client = RedisClient(url, connect_s=0.8)  # longer than the deadline: it is not to be what saves us
        self.metrics = Metrics()
        self.shared_limits = SharedLimits(
            Watched(self.redis_client, calls),
            "chatd",
            self.metrics,
            rates,
            1_000,
            now=time.monotonic,
            sleep=self._pause,
            deadline_s=deadline_s,
        )
        self.windows: dict[str, SharedWindow] = {}
        self.trials = 0
        self.task = asyncio.ensure_future(self.shared_limits.run())

    async def _pause(self, seconds: float) -> None:
        self.trials += 1  # one has failed, or the first is to come
        await asyncio.sleep(seconds / SPEED)

    def window(self, user: str) -> SharedWindow:
        if user not in self.windows:
            window = self.shared_limits.windows(UserId(user)).window
            assert isinstance(window, SharedWindow)
            self.windows[user] = window
        return self.windows[user]

    async def take(self, user: str) -> float:
        """The wait; 0: taken."""
        return (await self.shared_limits.take(self.window(user)))[0]

    async def up(self) -> None:
        await until(lambda: not self.shared_limits.open)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.redis_client.close()


MakeNode: TypeAlias = Callable[..., Awaitable[QuotaNode]]


@pytest.fixture
def calls() -> list[tuple[int, list[str], list[Any], bytes]]:
    return []


@pytest_asyncio.fixture
async def make_node(
    own_redis: OwnRedis, calls: list[tuple[int, list[str], list[Any], bytes]]
) -> AsyncIterator[MakeNode]:
    nodes: list[QuotaNode] = []

    async def make(messages: int = 3, per_s: float = 60.0, deadline_s: float = PATIENT_S) -> QuotaNode:
        node = QuotaNode(own_redis.url, Rates(messages, per_s, 8, 100), calls, deadline_s)
        nodes.append(node)
        await node.up()
        return node

    yield make
    for node in nodes:
        await node.stop()


# ---- the script ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_the_script_does_what_its_model_does(own_redis: OwnRedis, seed: int) -> None:
    """Hundreds of random calls from several connections; then the model is asked the same at the
    times that Redis told.
    """
    rng = random.Random(seed)
    calls: list[tuple[int, list[str], list[Any], bytes]] = []
    # As while nodes are restarted with another setting
    limits = [orjson.dumps([[most, 60_000], [2, 150_000]]) for most in (4, 4, 2)]
    marks: dict[str, list[int]] = defaultdict(list)

    async def caller(n: int) -> None:
        redis_client = RedisClient(own_redis.url)
        script = Watched(redis_client, calls)
        for _ in range(150):
            keys = rng.sample([f"k{m}" for m in range(4)], rng.randint(1, 4))
            asks: list[list[Any]] = []
            for key in keys:
                returned = [rng.choice(marks[key])] if marks[key] and rng.random() < 0.3 else []
                struck = [rng.choice([5_000, 30_000])] if rng.random() < 0.05 else []
                asks.append(
                    [
                        1 + (key == "k3"),
                        rng.randint(0, 5),
                        *([returned, struck] if returned or struck or rng.random() < 0.1 else []),
                    ]
                )
            answer = await script(keys, [rng.choice(limits), orjson.dumps(asks), 100_000])
            now, *numbers = map(int, answer.split())
            for key, granted in zip(keys, numbers[::5], strict=True):
                marks[key] += [now] * granted
            await asyncio.sleep(rng.choice([0, 0, 0.005, 0.02]))
        await redis_client.close()

    await asyncio.gather(*(caller(n) for n in range(4)))
    model = Model()
    assert len({now for now, *_ in calls}) == len(calls) == 600
    outcomes = set()
    for now, keys, args, answer in sorted(calls, key=lambda call: call[0]):
        assert model.answer(now, keys, args) == answer
        numbers = list(map(int, answer.split()))[1:]
        outcomes |= {tuple(number > 0 for number in numbers[n : n + 4]) for n in range(0, len(numbers), 5)}
    assert {
        (True, False, False, False),
        (False, True, False, False),
        (False, True, True, True),
        (True, False, False, True),
    } <= outcomes


async def test_what_is_no_state_of_ours_is_as_good_as_none(own_redis: OwnRedis, make_node: MakeNode) -> None:
    node = await make_node(messages=2)
    own_redis.command("SET", "{chatd}:rate:a", "no msgpack")
    own_redis.command("SET", "{chatd}:rate:b", b"\xc1")
    own_redis.command("SET", "{chatd}:rate:c", b"\x93\xa1x\xa1y\xa1z")  # a list of texts
    own_redis.command("SET", "{chatd}:rate:d", b"\x2a")  # a number
    own_redis.command("LPUSH", "{chatd}:rate:e", "1")
    for user in "abcde":
        assert [await node.take(user) == 0.0 for _ in range(3)] == [True, True, False]
    assert not node.shared_limits.open


@pytest.mark.parametrize(
    "state", ["1/0, 1, 1/0", "0, 0, 0/0", "-1, -1, -1", "1e300, 5, 1e300", "0, 0, 0, 1e300", "0, 0, 0, -5"]
)
async def test_numbers_that_are_no_state_of_ours_are_as_good_as_none_too(
    own_redis: OwnRedis, make_node: MakeNode, state: str
) -> None:
    node = await make_node(messages=2)
    own_redis.command("EVAL", f"redis.call('SET', KEYS[1], cmsgpack.pack({{{state}}}))", 1, "{chatd}:rate:a")
    assert [await node.take("a") == 0.0 for _ in range(3)] == [True, True, False]
    assert not node.shared_limits.open


@pytest.mark.parametrize("kind", ["rate", "penalty", "new"])
async def test_what_a_clock_that_went_back_left_in_the_future_counts_from_now_on(
    own_redis: OwnRedis, make_node: MakeNode, kind: str
) -> None:
    """As if Redis's clock had been a day ahead when the window was filled, or the penalty given."""
    most, period_s = 2, 0.3
    node = await make_node(messages=most, per_s=period_s)
    day_on = (int(own_redis.command("TIME")[0]) + 86_400) * US
    key = "{chatd}:new:alice" if kind == "new" else "{chatd}:rate:alice"
    state = (
        f"{day_on}, 1, {int(period_s * US)}"
        if kind == "penalty"
        else "0, 0, 0, " + ", ".join([str(day_on)] * (100 if kind == "new" else most))
    )
    own_redis.command("EVAL", f"redis.call('SET', KEYS[1], cmsgpack.pack({{{state}}}))", 1, key)
    user = node.shared_limits.windows(UserId("alice"))
    if kind == "new":
        wait, _ = await node.shared_limits.take(user.new_convs)
        assert 3_590 < wait < 3_601
        assert own_redis.command("PTTL", key) > 0, "it is written back, and goes with its hour"
        return
    wait, _ = await node.shared_limits.take(user.window)
    assert 0 < wait < period_s + 0.1
    await asyncio.sleep(wait)
    assert (await node.shared_limits.take(user.window))[0] == 0.0, "nobody is locked out for as long as the step"


async def test_a_new_conversation_that_another_node_gives_back_can_be_made_here(
    own_redis: OwnRedis, make_node: MakeNode
) -> None:
    a, b = await make_node(), await make_node()
    there, here = a.shared_limits.windows(UserId("alice")).new_convs, b.shared_limits.windows(UserId("alice")).new_convs
    taken = [await a.shared_limits.take(there) for _ in range(100)]
    assert [wait for wait, _ in taken] == [0.0] * 100
    assert (await b.shared_limits.take(here))[0] > 3_500
    assert here.refused(time.monotonic()) > 3_500, "not asked for each time"
    there.give_back(taken[0][1])
    await a.shared_limits.idle()
    await until(lambda: here.refused(time.monotonic()) <= 0)
    assert (await b.shared_limits.take(here))[0] == 0.0


async def test_state_is_small_and_goes_with_what_it_counts(own_redis: OwnRedis, make_node: MakeNode) -> None:
    node = await make_node(messages=10, per_s=0.2)
    for _ in range(10):
        await node.take("alice")
    assert int(own_redis.command("MEMORY", "USAGE", "{chatd}:rate:alice")) < 300
    assert 100 < int(own_redis.command("PTTL", "{chatd}:rate:alice")) <= 200
    window, penalty, new_convs = node.shared_limits.windows(UserId("bob"))
    assert isinstance(window, SharedWindow)
    await node.shared_limits.take(window)
    await node.shared_limits.take(new_convs)
    penalty.refused(time.monotonic(), 1.0, True)
    await node.shared_limits.idle()
    assert FORGET_S * 1000 < int(own_redis.command("PTTL", "{chatd}:rate:bob")) <= (FORGET_S + 2) * 1000
    assert 3_590_000 < int(own_redis.command("PTTL", "{chatd}:new:bob")) <= 3_600_000
    await until(lambda: own_redis.command("EXISTS", "{chatd}:rate:alice") == 0)


# ---- exact over nodes ----------------------------------------------------------------------------


async def test_however_many_ask_at_once_no_period_holds_more_than_the_limit_and_none_is_left_empty(
    make_node: MakeNode, calls: list[tuple[int, list[str], list[Any], bytes]]
) -> None:
    most, period_s, seconds = 10, 0.5, 3.0
    nodes = [await make_node(most, period_s) for _ in range(2)]
    rng = random.Random(7)
    users = [f"u{n}" for n in range(5)]
    until = time.monotonic() + seconds
    taken: dict[str, list[float]] = defaultdict(list)

    async def device(node: QuotaNode, user: str) -> None:
        while time.monotonic() < until:
            wait = await node.take(user)
            if wait == 0.0:
                taken[user].append(time.monotonic())
            await asyncio.sleep(rng.choice([0.0, 0.001, wait]))

    await asyncio.gather(*(device(node, user) for node in nodes for user in users for _ in range(3)))
    assert not any(node.shared_limits.open for node in nodes), "Redis was away: the machine is too slow for this test"
    granted: dict[str, list[float]] = defaultdict(list)
    for now, keys, _, answer in calls:
        for key, n in zip(keys, list(map(int, answer.split()))[1::5], strict=True):
            granted[key] += [now] * n
    for user in users:
        times = granted["{chatd}:rate:" + user]
        assert most_in_any(times, period_s * US) <= most
        assert len(taken[user]) >= most * int(seconds / period_s) - most, "slots were lost"


async def test_a_slot_that_made_nothing_is_free_on_every_node(make_node: MakeNode) -> None:
    one, other = await make_node(3), await make_node(3)
    taken_at = []
    for _ in range(3):
        wait, at = await one.shared_limits.take(one.window("alice"))
        assert wait == 0.0
        taken_at.append(at)
    assert await other.take("alice") > 59
    one.window("alice").give_back(taken_at[1])
    await one.shared_limits.idle()
    fresh = other.shared_limits.windows(UserId("alice")).window  # as of a device whose node was told nothing yet
    assert (await other.shared_limits.take(fresh))[0] == 0.0
    assert (await other.shared_limits.take(fresh))[0] > 59
    assert await one.take("alice") > 59


async def test_a_penalty_holds_on_every_node_and_strikes_add_up(make_node: MakeNode) -> None:
    one, other = await make_node(3), await make_node(3)
    here, there = one.shared_limits.windows(UserId("alice")), other.shared_limits.windows(UserId("alice"))
    for _ in range(3):
        await one.shared_limits.take(here.window)
    for n in range(4):
        for node, penalty in ((one, here.penalty), (other, there.penalty)):
            closes = penalty.refused(time.monotonic(), 1.0, True).close
            await node.shared_limits.idle()
            assert not closes, n
    # The ninth, but it does not know yet of the one before
    assert not here.penalty.refused(time.monotonic(), 1.0, True).close
    await one.shared_limits.idle()
    assert here.penalty.refused(time.monotonic(), 1.0, True).close, "with six strikes of its own"
    await one.shared_limits.idle()
    third = await make_node(3)
    window, penalty, _ = third.shared_limits.windows(UserId("alice"))
    assert (await third.shared_limits.take(window))[0] > 50
    assert penalty.until > time.monotonic() + 50
    assert penalty.refused(time.monotonic(), 1.0, True).close


# ---- faults of Redis -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["killed", "frozen", "paused", "full", "read only"])
async def test_while_redis_is_away_each_node_counts_alone_and_then_together_again(
    own_redis: OwnRedis, make_node: MakeNode, fault: str
) -> None:
    one, other = [await make_node(2, deadline_s=DEADLINE_S) for _ in range(2)]
    assert await one.take("before") == 0.0
    match fault:
        case "killed":
            own_redis.kill()
        case "frozen":
            own_redis.freeze()
        case "paused":
            own_redis.command("CLIENT", "PAUSE", PAUSE_MS)
        case "full":
            own_redis.config("maxmemory", 1)
        case "read only":
            own_redis.command("REPLICAOF", "127.0.0.1", "1")
    for node in (one, other):
        assert await node.take("alice") == 0.0
        assert node.shared_limits.open
        assert [await node.take("alice") == 0.0 for _ in range(100)] == [True] + [False] * 99
        assert node.metrics.quota_local == 101, "nobody waits for Redis"
        made = node.trials
        await until(lambda: node.trials >= made + 2)
        assert node.shared_limits.open, "trials do not get through either"
    match fault:
        case "killed":
            own_redis.start()
        case "frozen":
            own_redis.thaw()
        case "full":
            own_redis.config("maxmemory", 0)
        case "read only":
            own_redis.command("REPLICAOF", "NO", "ONE")
    await asyncio.gather(one.up(), other.up())
    assert [await node.take("bob") == 0.0 for node in (one, other, one)] == [True, True, False]
    assert one.metrics.quota_local == 101


async def test_a_redis_that_forgot_the_script_is_given_it_again(own_redis: OwnRedis, make_node: MakeNode) -> None:
    node = await make_node(3)
    assert await node.take("alice") == 0.0
    own_redis.command("SCRIPT", "FLUSH")
    assert await node.take("alice") == 0.0
    assert not node.shared_limits.open
    assert node.metrics.quota_local == 0


async def test_on_a_cluster_too(own_cluster: OwnCluster) -> None:
    calls: list[tuple[int, list[str], list[Any], bytes]] = []
    nodes = [QuotaNode(own_cluster.url, Rates(3, 60.0, 8, 100), calls) for _ in range(2)]
    try:
        for node in nodes:
            await node.up()
        users = [f"u{n}" for n in range(20)]
        waits = await asyncio.gather(*(node.take(user) for node in nodes for user in users for _ in range(3)))
        assert waits.count(0.0) == 3 * len(users)
        own_cluster.owner("{chatd}:rate:u0").command("SCRIPT", "FLUSH")
        assert await nodes[0].take("alice") == 0.0
    finally:
        for node in nodes:
            await node.stop()


# ---- whole nodes ---------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def make_pair(
    make_server: MakeServer, fresh_db: str, own_redis: OwnRedis
) -> Callable[..., Awaitable[tuple[Server, Server]]]:
    async def make(*, deadline_s: float = PATIENT_S, **settings: Any) -> tuple[Server, Server]:
        servers = [await make_server(database_url=fresh_db, redis_url=own_redis.url, **settings) for _ in range(2)]
        for server in servers:
            quota_of(server)._deadline_s = deadline_s
            await shared(server)
        return servers[0], servers[1]

    return make


def quota_of(server: Server) -> SharedLimits:
    assert server.node.cluster is not None
    return server.node.cluster.shared_limits


async def shared(server: Server) -> None:
    """The node asks Redis, and gets answers."""
    await until(lambda: not quota_of(server).open)


def cids(n: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(n)]


async def flood(peer: Peer, to: str, cids: list[str]) -> list[dict[str, Any]]:
    """The replies, by request: a refusal may overtake an ok."""
    ids = [await peer.post("send", to=to, cid=cid, body="x") for cid in cids]
    replies: dict[int, dict[str, Any]] = {}
    while not replies.keys() >= set(ids):
        frame = await peer.recv()
        replies[frame.get("id", 0)] = frame
    return [replies[id] for id in ids]


MakePair: TypeAlias = Callable[..., Awaitable[tuple[Server, Server]]]


async def test_ten_a_period_over_both_nodes_edits_too_in_the_order_sent(make_pair: MakePair) -> None:
    one, other = await make_pair(rate_per_ms=600_000, new_conversations_per_hour=100)
    phone, tablet = await one.connect("alice", "phone"), await other.connect("alice", "tablet")
    bob = await other.connect("bob")
    first = await phone.say("bob", "first")
    await phone.request("edit", c=first["c"], cid=str(uuid.uuid4()), ref=1, body="First")
    floods = await asyncio.gather(*(flood(peer, "bob", cids(30)) for peer in (phone, tablet)))
    assert sum(reply["t"] == "ok" for replies in floods for reply in replies) == 8
    for replies in floods:
        codes = [reply.get("code", "ok") for reply in replies]
        done = codes.count("ok")
        assert codes == ["ok"] * done + ["rate_limited"] + ["blocked"] * (29 - done)
        assert 590_000 < replies[done]["retry_ms"] <= 600_000
        seqs = [reply["seq"] for reply in replies[:done]]
        assert seqs == sorted(seqs)
    assert [(await bob.push("entry"))["seq"] for _ in range(10)] == list(range(1, 11))
    for server in (one, other):
        assert server.node.metrics.quota_local == 0


async def test_a_known_cid_costs_nothing_on_any_node(make_pair: MakePair) -> None:
    one, other = await make_pair(rate_messages=3, rate_per_ms=600_000)
    phone = await one.connect("alice", "phone")
    known = cids(2)
    for cid in known:
        assert (await phone.say("bob", cid=cid))["t"] == "ok"
    tablet = await other.connect("alice", "tablet")
    for _ in range(3):
        for cid in known:
            assert (await tablet.say("bob", cid=cid, retry=True))["dup"] is True
    await other.node.chat.sends_queued()
    assert (await phone.say("bob"))["t"] == "ok"
    assert (await tablet.say("bob"))["code"] == "rate_limited"
    assert (await (await other.connect("alice", "third")).say("bob", cid=known[0], retry=True))["dup"] is True


async def test_new_conversations_an_hour_count_over_nodes_and_what_was_there_does_not(make_pair: MakePair) -> None:
    one, other = await make_pair(new_conversations_per_hour=2)
    phone, tablet = await one.connect("alice", "phone"), await other.connect("alice", "tablet")
    assert (await phone.say("bob"))["t"] == "ok"
    assert (await tablet.say("carol"))["t"] == "ok"
    for peer in (phone, tablet):
        refused = await peer.say("dave")
        assert (refused["code"], 3_590_000 < refused["retry_ms"] <= 3_600_001) == ("too_many_conversations", True)
    # Dave writes first: then it is there, and alice opens none.
    dave = await one.connect("dave")
    assert (await dave.say("alice"))["t"] == "ok"
    again = await other.connect("alice", "another")
    assert (await again.say("dave"))["t"] == "ok"


async def test_who_may_open_no_more_does_not_stop_the_one_who_writes_to_them(
    make_pair: MakePair, own_redis: OwnRedis
) -> None:
    one, other = await make_pair(new_conversations_per_hour=1)
    alice, dave = await one.connect("alice", "phone"), await one.connect("dave")
    assert (await (await other.connect("alice", "tablet")).say("bob"))["t"] == "ok"
    assert (await alice.push("entry"))["body"] == "hi", "her own, from the other node"
    own_redis.command("CLIENT", "PAUSE", 300)
    sent = await alice.post("send", to="dave", cid=str(uuid.uuid4()), body="may I?")
    await until(lambda: one.node.chat.new_conversations.waiting)
    answer = await dave.post("send", to="alice", cid=str(uuid.uuid4()), body="of course")
    assert (await alice.reply(sent))["code"] == "too_many_conversations"
    assert (await dave.reply(answer))["seq"] == 1
    assert (await alice.push("entry"))["body"] == "of course"
    making = one.node.chat.new_conversations
    assert (making._waiting, making._waiting_of, making.waiting) == ({}, {}, 0)


async def test_hammering_over_two_nodes_ends_by_the_strikes_of_both(make_pair: MakePair) -> None:
    one, other = await make_pair(rate_messages=1, rate_per_ms=60_000, rate_penalties_max=5)
    phone, tablet = await one.connect("alice", "phone"), await other.connect("alice", "tablet")
    assert (await phone.say("bob"))["t"] == "ok"
    cid = dict.fromkeys((phone, tablet), str(uuid.uuid4()))
    assert [(await peer.say("bob", cid=cid[peer]))["code"] for peer in (phone, tablet)] == ["rate_limited"] * 2
    strikes = 0
    with pytest.raises(ConnectionClosed) as ended:  # noqa: PT012
        for server, peer in itertools.cycle(((one, phone), (other, tablet))):
            strikes += 1
            refused = await peer.say("bob", cid=cid[peer])
            assert refused["retry_ms"] > 59_000
            await server.node.chat.sends_queued()
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 4008
    assert 5 < strikes <= 7, "a node learns of the other's with its own: it may be one behind"


async def test_with_redis_frozen_sends_go_on_by_the_count_of_each_node(
    make_pair: MakePair, own_redis: OwnRedis
) -> None:
    one, other = await make_pair(rate_messages=5, rate_per_ms=600_000, deadline_s=DEADLINE_S)
    phone, tablet = await one.connect("alice", "phone"), await other.connect("alice", "tablet")
    await phone.say("bob")
    await tablet.say("bob")
    own_redis.freeze()
    replies = await flood(phone, "bob", cids(6))
    assert [reply["t"] for reply in replies] == ["ok"] * 4 + ["err"] * 2
    replies = await flood(tablet, "bob", cids(6))
    assert [reply["t"] for reply in replies] == ["ok"] * 4 + ["err"] * 2
    for server in (one, other):
        assert server.node.metrics.quota_local > 0
    own_redis.thaw()
    for server in (one, other):
        await shared(server)
    carol, more = await one.connect("carol", "phone"), await other.connect("carol", "tablet")
    replies = [await peer.say("dan") for peer in (carol, more) for _ in range(3)]
    assert [reply["t"] for reply in replies] == ["ok"] * 5 + ["err"]


async def test_a_drain_answers_what_waits_at_the_gate(make_pair: MakePair, own_redis: OwnRedis) -> None:
    one, _ = await make_pair()
    alice = await one.connect("alice")
    assert (await alice.say("bob"))["t"] == "ok"
    own_redis.freeze()
    ids = [await alice.post("send", to="bob", cid=cid, body="x") for cid in cids(3)]
    await until(lambda: len(quota_of(one).queue) >= 3)
    draining = asyncio.ensure_future(one.node.drain())
    await until(lambda: one.node.pipeline.draining)
    own_redis.thaw()
    await draining
    assert await alice.closed() == 1012
    answers = {frame["id"]: frame for frame in alice.pushes if frame.get("id") in ids}
    assert [answers[id].get("code", "ok") for id in ids] == ["unavailable", "blocked", "blocked"]


@pytest.mark.parametrize("is_unknown", [True, False])
async def test_what_may_have_been_written_keeps_its_slot_on_all_nodes(
    make_pair: Callable[..., Awaitable[tuple[Server, Server]]], monkeypatch: pytest.MonkeyPatch, is_unknown: bool
) -> None:
    """The answer to a batch is lost, or says that nothing was done; the retry and what follows go
    to the other node.
    """
    one, two = await make_pair(rate_messages=3, rate_per_ms=600_000, lanes=1)
    phone, tablet = await one.connect("alice", "phone"), await two.connect("alice", "tablet")
    assert (await phone.say("alice", "1"))["t"] == "ok"
    lane = one.node.store.lanes.all[0]
    append = lane._append

    async def lost(batch: Any) -> Any:
        if is_unknown:
            await append(batch)
        raise Outage("the answer was lost", "away", is_unknown=is_unknown)

    monkeypatch.setattr(lane, "_append", lost)
    cid = str(uuid.uuid4())
    assert (await phone.say("alice", "2", cid=cid))["code"] == "unavailable"
    monkeypatch.undo()
    if not is_unknown:  # a slot that goes back is told with the next take
        assert (await phone.say("alice", "2", cid=cid, retry=True))["t"] == "ok"
    again = await tablet.say("alice", "2", cid=cid, retry=True)
    assert (again["t"], again["dup"]) == ("ok", True)
    assert (await tablet.say("alice", "3"))["t"] == "ok"
    assert (await tablet.say("alice", "4"))["code"] == "rate_limited", "three were written"
