"""All commands of a node to one server of Redis, on one connection, in order.

    call(packed) ─┐                        ┌─► reply ──► the call whose turn it is
    call(packed) ─┼─► one write a loop turn┴─► one read of what Redis has answered by then
    call(packed) ─┘

Redis answers in the order of the commands, so a reply belongs to the oldest call that has none. A
call that is given up, by its deadline or by its caller, keeps its place, and its reply is dropped:
no call gets the answer of another one. A connection on which a call has had no answer for
`SILENT_S` is dead, also if nobody waits for it any more, and is closed.

Redis loses no answer, but a proxy between may, or may give one twice. From then on each call would
get the answer of its neighbour, for ever, as long as calls follow each other fast enough. So about
once in `CHECK_S` a PING with a number goes in front of a call, and the connection ends where
something else comes back in its place.

When a connection ends, all that wait get RedisUnavailable, and nothing is repeated. The next call
makes a new one: by name, and by asking the Sentinels, as for the first. It also ends by an error
that says that the server is no master any more.

Because the answers come in order, nothing that blocks in Redis may be called here (BLPOP).
Rejected: a connection for each call under way, as redis-py has them; then several of them are
written and read in one loop turn, and a call given up costs a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import ConnectionPool

from chatd.cluster.redis.connect import RedisPyClient, RedisUnavailable, is_about_the_way, unavailable, unreadable
from chatd.cluster.redis.connection import Connection, pack
from chatd.cluster.redis.url import RedisUrl
from chatd.loop.deadline import READ_TURNS

CALLS_MAX: Final = 1_000  # that wait for an answer; one more fails at once
SILENT_S: Final = 1.0  # after so long without an answer the connection is dead
CHECK_S: Final = 1.0  # between two looks whether answers and calls still fit
TIMER_S: Final = 0.001  # resolution of the loop's timers, which may be early by a part of it


class PipelineSource(Protocol):
    """What a pipeline needs of RedisClient."""

    url: RedisUrl
    deadline_s: float

    async def run(self, command: Callable[[RedisPyClient], Awaitable[Connection]]) -> Connection:
        """Run a step of connecting within its deadline. Raises RedisUnavailable."""

    async def sources(self, client: RedisPyClient) -> tuple[Mapping[str, ConnectionPool | ClusterNode], bool]:
        """(places to connect to, by name; whether the channels are sharded over them)."""


class _Call:
    """One call under way: `replies` of its answers are missing. `number`: of a PING, its answer."""

    __slots__ = ("dead_at", "due", "error", "future", "number", "replies", "within_s")

    def __init__(self, future: asyncio.Future[Any], replies: int, within_s: float, due: float, dead_at: float) -> None:
        self.future, self.replies, self.within_s, self.due = future, replies, within_s, due
        self.dead_at = dead_at  # without an answer by then, the connection is dead
        self.error: Exception | None = None  # the first one
        self.number: bytes | None = None


class Pipeline:
    """Calls of one server. Connects by the first call, and again by the first one after an end."""

    def __init__(self, redis_client: PipelineSource) -> None:
        self._redis_client = redis_client
        self._silent_s = min(SILENT_S, redis_client.deadline_s)
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting = 0  # calls that wait for the connection
        self._calls: deque[_Call] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf
        self._check_at, self._checks = math.inf, 0
        self._closed = False

    @property
    def is_connected(self) -> bool:
        """Whether its connection is open."""
        return self._connection is not None

    async def call(self, packed: bytes, within_s: float, replies: int = 1) -> Any:
        """The answer to packed commands: the last of so many `replies`.

        Raises RedisUnavailable for the first error among them, or after `within_s`, connecting
        included. May be cancelled.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = now + within_s
        if len(self._calls) + self._waiting >= CALLS_MAX:
            raise RedisUnavailable(f"{CALLS_MAX} calls wait for Redis")
        if self._connection is None:
            await self._connected(within_s)
            now = loop.time()
        connection = self._connection
        if connection is None or self._closed:
            raise RedisUnavailable("closed" if self._closed else "Redis closed the connection")
        if connection.is_full:
            raise RedisUnavailable("Redis does not read what it is sent")
        dead_at = now + self._silent_s
        if within_s >= self._silent_s and due < dead_at:  # some of its time went into connecting
            dead_at = due
        if now >= self._check_at:
            packed = self._check(loop, now) + packed
        call = _Call(loop.create_future(), replies, within_s, due, dead_at)
        self._calls.append(call)
        self._ring_by(min(due, dead_at))
        connection.write(packed)
        return await call.future

    def _check(self, loop: asyncio.AbstractEventLoop, now: float) -> bytes:
        """A PING to go in front of a call: its answer shows whether answers and calls still fit."""
        self._check_at, self._checks = now + CHECK_S, self._checks + 1
        call = _Call(loop.create_future(), 1, self._silent_s, math.inf, now + self._silent_s)
        call.number = b"chatd:%d" % self._checks
        self._calls.append(call)
        return pack(("PING", call.number))

    async def close(self) -> None:
        """Call it last: no call may be under way. Idempotent."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._connection is not None:
            self._connection.fail(RedisUnavailable("closed"))

    # ---- the connection --------------------------------------------------------------------------

    async def _connected(self, within_s: float) -> None:
        """Return when there is a connection. Raises RedisUnavailable. One task connects for all."""
        self._waiting += 1
        try:
            async with asyncio.timeout(within_s):
                if self._connecting is not None:  # began before this call: its failure may be of the past
                    with contextlib.suppress(RedisUnavailable):
                        await self._attempt()
                if self._connection is None:
                    await self._attempt()
        except TimeoutError as e:
            raise RedisUnavailable(f"no answer within {within_s:g} s") from e
        finally:
            self._waiting -= 1

    async def _attempt(self) -> None:
        if self._closed:
            raise RedisUnavailable("closed")
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="redis connect")
            self._connecting.add_done_callback(self._has_tried)
        await asyncio.shield(self._connecting)

    async def _connect(self) -> None:
        async def step(client: RedisPyClient) -> Connection:
            sources, _ = await self._redis_client.sources(client)
            (source,) = sources.values()
            return await Connection.open(source, self._redis_client.url, self._take, self._lost)

        try:
            connection = await self._redis_client.run(step)
        except RedisUnavailable:
            raise
        except Exception as e:
            raise unreadable(e) from e
        self._connection = connection
        self._check_at = asyncio.get_running_loop().time() + CHECK_S
        connection.start()

    def _has_tried(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # seen, though nobody may wait for it any more

    def _lost(self, fault: Exception) -> None:
        self._connection = None
        calls, self._calls = self._calls, deque()
        away = fault if isinstance(fault, RedisUnavailable) else unreadable(fault)
        for call in calls:
            each = RedisUnavailable(str(away))
            each.__cause__ = away.__cause__
            _fail(call, each)

    # ---- answers ---------------------------------------------------------------------------------

    def _take(self, reply: Any) -> None:
        if not self._calls:
            raise RedisUnavailable("an answer that nobody asked for")
        call = self._calls[0]
        if call.number is not None and reply != call.number and not isinstance(reply, Exception):
            raise RedisUnavailable("an answer that belongs to another call")
        call.replies -= 1
        if isinstance(reply, Exception) and call.error is None:
            call.error = reply
        if call.replies:
            return
        self._calls.popleft()
        if call.error is None:
            if not call.future.done():
                call.future.set_result(reply)
            return
        away = unavailable(self._redis_client.url, call.error)
        _fail(call, away)
        if is_about_the_way(call.error):
            raise away  # the next call asks again who the master is

    # ---- deadlines -------------------------------------------------------------------------------

    def _ring_by(self, at: float) -> None:
        """One timer serves all deadlines, because most are met before it rings."""
        if at < self._rings_at:
            if self._timer is not None:
                self._timer.cancel()
            self._rings_at = at
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(at - loop.time(), TIMER_S), self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, math.inf
        self._end_late(READ_TURNS)

    def _end_late(self, turns: int) -> None:
        """End what is past its deadline, `turns` loop turns from now."""
        if not self._calls or self._connection is None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = [call for call in self._calls if call.due <= now and not call.future.done()]
        is_dead = self._calls[0].dead_at <= now
        if (late or is_dead) and turns:
            loop.call_soon(self._end_late, turns - 1)
            return
        for call in late:
            _fail(call, RedisUnavailable(f"no answer within {call.within_s:g} s"))
        if is_dead:
            self._connection.fail(RedisUnavailable(f"no answer within {self._silent_s:g} s"))
            return
        self._ring_by(
            min(
                self._calls[0].dead_at,
                min((call.due for call in self._calls if not call.future.done()), default=math.inf),
            )
        )


def _fail(call: _Call, away: RedisUnavailable) -> None:
    if not call.future.done():
        call.future.set_exception(away)
        call.future.exception()  # seen, though its caller may be cancelled in this loop turn
