"""The calls: gathered by loop turn, one at a time, in time or not at all; and the breaker, in a
time of the test's.

What passes the gate is in `test_admission.py`, with order under trouble in `test_session_order.py`; what
Redis does in `tests/cluster/test_shared_limits.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from chatd.chat.ports import Rates
from chatd.cluster.redis.client import RedisUnavailable
from chatd.cluster.shared_limits import DEADLINE_S, PROBE_MAX_S, PROBE_S, SharedLimits, read_answer
from chatd.core.admission import Grant
from chatd.core.rate_limit import SharedWindow
from chatd.ids import UserId
from chatd.loop.deadline import READ_TURNS, within
from chatd.metrics import Metrics
from tests.limits_model import US, Model
from tests.until import until

RATES = Rates(messages=3, per_s=5.0, strikes_max=8, new_per_hour=2)
QUEUE_MAX = 100
REDIS_EPOCH_US = 1_790_000_000_000_000
Call = tuple[list[str], list[list[Any]]]


class Redis:
    """In the script's place: answers at once, or when `let` is called, or as `fault` says.

    Keeps the calls.
    """

    def __init__(self) -> None:
        self.model = Model()
        self.calls: list[Call] = []
        self.fault: Callable[[], Coroutine[Any, Any, object]] | None = None
        self.held: list[asyncio.Future[None]] | None = None
        self.asked = asyncio.Event()
        self.under_way = self.most_under_way = 0
        self.now = 0.0

    async def __call__(self, keys: Sequence[Any], args: Sequence[Any], within_s: float | None = None) -> object:
        if within_s is None:
            return await self._answer(keys, args)
        try:
            return await within(within_s, self._answer(keys, args))
        except TimeoutError as e:
            raise RedisUnavailable("no answer") from e

    async def _answer(self, keys: Sequence[Any], args: Sequence[Any]) -> object:
        trial = list(keys) == ["{chatd}:rate:"]
        if not trial:
            self.calls.append((list(keys), orjson.loads(args[1])))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.asked.set()
        try:
            if self.fault is not None:
                return await self.fault()
            if self.held is not None and not trial:
                self.held.append(asyncio.get_running_loop().create_future())
                await self.held[-1]
            return self.model.answer(REDIS_EPOCH_US + round(self.now * US), keys, args)
        finally:
            self.under_way -= 1

    def hold(self) -> list[asyncio.Future[None]]:
        self.held = []
        return self.held


class Node:
    """Shared limits whose clock and pauses are the test's."""

    def __init__(self, redis: Redis, *, deadline_s: float = DEADLINE_S) -> None:
        self.metrics = Metrics()
        self.now = 1_000.0
        self.pauses: list[float] = []
        self.pausing = asyncio.Event()
        self.over = asyncio.Event()
        self.shared_limits = SharedLimits(
            redis,
            "chatd",
            self.metrics,
            RATES,
            QUEUE_MAX,
            now=lambda: self.now,
            sleep=self.sleep,
            deadline_s=deadline_s,
        )

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.pausing.set()
        await self.over.wait()
        self.over.clear()

    async def wake(self) -> None:
        """End the pause; returns in the next one, or when Redis answers."""
        self.pausing.clear()
        self.over.set()
        await until(lambda: self.pausing.is_set() or not self.shared_limits.open)

    def window(self, user: str) -> SharedWindow:
        window = self.shared_limits.windows(UserId(user)).window
        assert isinstance(window, SharedWindow)
        return window


@asynccontextmanager
async def running(node: Node, *, up: bool = True) -> AsyncIterator[SharedLimits]:
    task = asyncio.ensure_future(node.shared_limits.run())
    await until(lambda: not up or not node.shared_limits.open)
    try:
        yield node.shared_limits
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def passes(shared_limits: SharedLimits, window: SharedWindow, passed: list[tuple[str, bool]]) -> bool:
    return shared_limits.put(window, lambda came: passed.append((window.user, window.take(came) == 0.0)))


async def test_all_that_comes_in_a_loop_turn_is_one_call_in_the_order_it_came() -> None:
    redis = Redis()
    node = Node(redis)
    async with running(node) as shared_limits:
        alice, bob = node.window("alice"), node.window("bob")
        passed: list[tuple[str, bool]] = []
        for window in (alice, bob, alice, alice, alice, bob):
            assert passes(shared_limits, window, passed)
        assert passed == []
        await shared_limits.idle()
        assert redis.calls == [(["{chatd}:rate:alice", "{chatd}:rate:bob"], [[1, 3], [1, 2]])]
        assert passed == [
            ("alice", True),
            ("bob", True),
            ("alice", True),
            ("alice", True),
            ("alice", False),
            ("bob", True),
        ]
        assert node.metrics.quota_local == 0


async def test_while_a_call_is_under_way_the_next_one_gathers() -> None:
    redis = Redis()
    node = Node(redis, deadline_s=60)
    held = redis.hold()
    async with running(node) as shared_limits:
        passed: list[tuple[str, bool]] = []
        redis.asked.clear()
        passes(shared_limits, node.window("alice"), passed)
        await redis.asked.wait()
        for user in ("bob", "carol", "dave"):
            passes(shared_limits, node.window(user), passed)
            await asyncio.sleep(0)
        assert len(redis.calls) == 1
        redis.asked.clear()
        held[0].set_result(None)
        await redis.asked.wait()
        assert passed == [("alice", True)]
        held[1].set_result(None)
        await shared_limits.idle()
        assert [keys for keys, _ in redis.calls] == [
            ["{chatd}:rate:alice"],
            [f"{{chatd}}:rate:{user}" for user in ("bob", "carol", "dave")],
        ]
        assert [user for user, _ in passed] == ["alice", "bob", "carol", "dave"]
        assert redis.most_under_way == 1
        assert node.metrics.quota_calls == 2 + 2  # the first trial counts


async def test_what_this_node_forbids_is_asked_of_nobody_and_keeps_its_place() -> None:
    redis = Redis()
    node = Node(redis)
    async with running(node) as shared_limits:
        alice = node.window("alice")
        passed: list[tuple[str, bool]] = []
        for _ in range(3):
            passes(shared_limits, alice, passed)
        await shared_limits.idle()
        redis.hold()
        redis.asked.clear()
        passes(shared_limits, node.window("bob"), passed)
        passes(shared_limits, alice, passed)
        await redis.asked.wait()
        assert redis.calls[-1] == (["{chatd}:rate:bob"], [[1, 1]])
        assert passed == [("alice", True)] * 3, "not before bob, who came before"


async def test_a_new_conversation_is_asked_for_by_its_own_key() -> None:
    redis = Redis()
    node = Node(redis)
    async with running(node) as shared_limits:
        first, second = (shared_limits.windows(UserId("alice")).new_convs for _ in range(2))
        assert await shared_limits.take(first) == (0.0, 1_000.0)
        assert await shared_limits.take(second) == (0.0, 1_000.0)
        wait, _ = await shared_limits.take(second)
        assert wait == 3_600.0
        assert [keys for keys, _ in redis.calls] == [["{chatd}:new:alice"]] * 3
        first.give_back(1_000.0)
        await shared_limits.idle()
        assert (await shared_limits.take(shared_limits.windows(UserId("alice")).new_convs))[0] == 0.0
        assert not redis.model.states["{chatd}:rate:alice"].takes


async def test_strikes_and_slots_that_come_back_are_told_without_anybody_waiting() -> None:
    redis = Redis()
    node = Node(redis)
    async with running(node) as shared_limits:
        window, penalty, _ = shared_limits.windows(UserId("alice"))
        passed: list[tuple[str, bool]] = []
        assert isinstance(window, SharedWindow)
        passes(shared_limits, window, passed)
        await shared_limits.idle()
        window.give_back(node.now)
        penalty.refused(node.now, 1.0, True)
        await shared_limits.idle()
        assert redis.calls[-1] == (["{chatd}:rate:alice"], [[1, 0, [REDIS_EPOCH_US], [2_000_000]]])
        state = redis.model.states["{chatd}:rate:alice"]
        assert (state.takes, state.strikes, state.until) == ([], 1, REDIS_EPOCH_US + 2_000_000)
        # Another node, where the user comes next: it learns of the penalty with the refusal.
        other = Node(redis)
        async with running(other) as elsewhere:
            window, penalty, _ = elsewhere.windows(UserId("alice"))
            assert isinstance(window, SharedWindow)
            passes(elsewhere, window, passed)
            await elsewhere.idle()
            assert passed[-1] == ("alice", False)
            assert penalty.until == other.now + 2.0
            assert penalty.refused(other.now + 0.5, 1.5, True).wait_s == 4.0


# ---- the deadline and the breaker ----------------------------------------------------------------


async def for_ever() -> object:
    return await asyncio.get_running_loop().create_future()


async def away() -> object:
    raise RedisUnavailable("full")


async def garbage() -> object:
    return b"1 2 x"


async def another() -> object:
    return b"1 2 3"


async def nothing() -> object:
    return None


@pytest.mark.parametrize("fault", [for_ever, away, garbage, another, nothing])
async def test_a_call_that_is_late_or_fails_opens_the_breaker_and_then_nobody_waits(
    fault: Callable[[], Coroutine[Any, Any, object]],
) -> None:
    redis = Redis()
    node = Node(redis, deadline_s=0.01)
    async with running(node) as shared_limits:
        passed: list[tuple[str, bool]] = []
        alice = node.window("alice")
        redis.fault = fault
        passes(shared_limits, alice, passed)
        await shared_limits.idle()
        assert passed == [("alice", True)]
        assert shared_limits.open
        for _ in range(3):
            passes(shared_limits, alice, passed)
        assert [took for _, took in passed] == [True] * 3 + [False], "at once, by this node's own count"
        assert node.metrics.quota_local == 4
        assert len(redis.calls) == 1
        alice.give_back(node.now)
        await node.pausing.wait()
        for _ in range(4):
            redis.fault = away  # a trial may take as long as it likes; here, no time
            await node.wake()
        assert node.pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
        redis.fault = None
        await node.wake()
        assert not shared_limits.queue.away
        node.now += 10
        passes(shared_limits, alice, passed)
        assert len(passed) == 4
        await shared_limits.idle()
        assert passed[-1] == ("alice", True)
        assert redis.calls[-1] == (["{chatd}:rate:alice"], [[1, 1]]), "what came back meanwhile is not told"
    assert (PROBE_S, PROBE_MAX_S) == (1.0, 5.0)


async def test_who_waits_behind_a_call_that_fails_is_decided_with_it_in_order() -> None:
    redis = Redis()
    node = Node(redis, deadline_s=60)
    held = redis.hold()
    async with running(node) as shared_limits:
        passed: list[tuple[str, bool]] = []
        redis.asked.clear()
        for user in ("alice", "bob"):
            passes(shared_limits, node.window(user), passed)
            await redis.asked.wait()
        passes(shared_limits, node.window("carol"), passed)
        held[0].set_exception(RedisUnavailable("gone"))
        await shared_limits.idle()
        assert [user for user, _ in passed] == ["alice", "bob", "carol"]
        assert len(redis.calls) == 1


async def test_a_call_given_up_is_cancelled_and_its_end_is_not_waited_for() -> None:
    redis = Redis()
    node = Node(redis, deadline_s=0.01)
    cancelled = asyncio.Event()
    finish = asyncio.Event()

    async def stubborn() -> object:
        try:
            return await for_ever()
        finally:
            cancelled.set()
            await finish.wait()
            raise RedisUnavailable("in the end")

    async with running(node) as shared_limits:
        passed: list[tuple[str, bool]] = []
        redis.fault = stubborn
        passes(shared_limits, node.window("alice"), passed)
        await shared_limits.idle()
        assert passed == [("alice", True)]
        await cancelled.wait()
        finish.set()
        await until(lambda: not redis.under_way)


async def test_an_answer_that_is_there_at_the_deadline_counts_though_we_were_too_busy_to_read_it() -> None:
    redis = Redis()
    node = Node(redis, deadline_s=0.0)

    async def some_turns_later() -> object:
        for _ in range(READ_TURNS):
            await asyncio.sleep(0)
        return redis.model.answer(REDIS_EPOCH_US, ["{chatd}:rate:alice"], [b"[[3,5000000]]", b"[[1,1]]", 60_000_000])

    async with running(node, up=False) as shared_limits:
        shared_limits.queue.back()
        passed: list[tuple[str, bool]] = []
        redis.fault = some_turns_later
        passes(shared_limits, node.window("alice"), passed)
        await shared_limits.idle()
        assert passed == [("alice", True)]
        assert not shared_limits.open
        assert node.metrics.quota_local == 0


async def test_nobody_waits_for_the_first_connection() -> None:
    redis = Redis()
    node = Node(redis)
    release = asyncio.Event()

    async def connecting() -> object:
        await release.wait()
        redis.fault = None
        return redis.model.answer(REDIS_EPOCH_US, ["{chatd}:rate:"], [b"[[3,5000000]]", b"[[1,1]]", 60_000_000])

    redis.fault = connecting
    async with running(node, up=False) as shared_limits:
        passed: list[tuple[str, bool]] = []
        passes(shared_limits, node.window("alice"), passed)
        assert passed == [("alice", True)]
        await redis.asked.wait()
        release.set()
        await until(lambda: not shared_limits.open)
        assert node.pauses == []


async def test_too_many_that_wait_are_refused() -> None:
    redis = Redis()
    node = Node(redis, deadline_s=60)
    redis.hold()
    async with running(node) as shared_limits:
        passed: list[tuple[str, bool]] = []
        taken = [passes(shared_limits, node.window("alice"), passed) for _ in range(QUEUE_MAX + 1)]
        assert taken == [True] * QUEUE_MAX + [False]
        wait, _ = await shared_limits.take(shared_limits.windows(UserId("alice")).new_convs)
        assert wait > 0


@pytest.mark.parametrize(
    ("rows", "grants"),
    [
        ([], []),
        ([b"1 0 0 0 0"], [Grant(1, 0.0, 0.0, 0, 0.0)]),
        ([b"1 0 0 0 0"] * 3, [Grant(1, 0.0, 0.0, 0, 0.0)] * 3),
        ([b"1 0 0 0 0", b"0 500000 0 0 0"], [Grant(1, 0.0, 0.0, 0, 0.0), Grant(0, 0.5, 0.0, 0, 0.0)]),
        ([b"0 2000000 2000000 3 4000000", b"1 0 0 0 0"], [Grant(0, 2.0, 2.0, 3, 4.0), Grant(1, 0.0, 0.0, 0, 0.0)]),
        ([b"1 0 0 0 00"], [Grant(1, 0.0, 0.0, 0, 0.0)]),
    ],
)
def test_an_answer_has_a_row_for_each_window(rows: list[bytes], grants: list[Grant]) -> None:
    """Alike for the short way of rows that say nothing but granted, and for all others."""
    answer = b" ".join([b"1796071579883170", *rows])
    assert read_answer(answer, len(rows)) == (1_796_071_579_883_170, grants)
    with pytest.raises(ValueError, match="another script"):
        read_answer(answer, len(rows) + 1)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        7,
        "1",
        b"",
        b"x",
        b"1 1 0 0 0",
        b"1 1 0 0 0 0 1",
        b"1 -1 0 0 0 0",
        b"-1 1 0 0 0 0",
        b"1 1 0 0 0 1" + b"0" * 400,
        b"1 1 inf 0 0 0",
        b"1 nan 0 0 0 0",
        [b"1 1 0 0 0 0"],
        b"1" + b"0" * 40 + b" 1 0 0 0 0",
    ],
)
def test_what_is_no_answer_of_the_script_is_an_error(answer: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_answer(answer, 1)
