"""Delays and failures around every call of the store and of Redis, by a seeded dice.

    Injector.around(call)        before and after it: nothing, a pause in which others run, a failure, a hang
    installed(injector)          wraps Store's and StateFlush's methods, the driver's `execute` under them, and
                                 RedisClient, Pipeline and Subscription

A failure before the call leaves nothing done; one after it loses the answer of what was done. A
hang ends by the caller's deadline, with either. The wrappers stand in the classes, so all nodes of
the process are met. Nothing is injected while `is_on` is false.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest

import chatd.cluster.presence_sync
import chatd.cluster.pubsub
from chatd import errors
from chatd.cluster.redis.client import RedisClient, RedisUnavailable, Subscription
from chatd.cluster.redis.connection import Connection
from chatd.cluster.redis.pipeline import Pipeline
from chatd.postgres.state_flush import StateFlush
from chatd.store import Store

HANG_S: Final = 0.4
RETRY_MS: Final = 30

# Which of Store's methods are wrapped; `True`: its answer can be lost, too. Where it cannot, what
# lies between the driver and the caller is one turn.
STORE: Final = {
    "resolve": True,
    "list_changed": True,
    "swept": True,
    "list_conversations": True,
    "list_recent": True,
    "load_conversations": True,
    "open_pairs": True,
    "entries_before": True,
    "entries_after": True,
    "entries_many": True,
    "heads": True,
    "seen": True,
    "feed": False,
    "states": True,
    "states_of": True,
    "feed_prune": True,
    "make_partition": True,
    "ping": True,
    "partitions_left": True,
}
FLUSHES: Final = ("_write_cursors", "_write_users")  # of StateFlush; their answers can be lost

# SQLSTATEs that PostgreSQL may answer with at any statement; those in CUTS end the connection.
ANSWERS: Final = (
    "40001",
    "40P01",
    "25006",
    "53100",
    "53200",
    "53300",
    "55P03",
    "57014",
    "58030",
    "XX000",
    "0A000",
    "42501",
)
CUTS: Final = ("57P01", "57P02", "08006")


@dataclass(slots=True)
class Odds:
    """Chances of one call."""

    pause: float = 0.3
    long_pause: float = 0.02
    fail: float = 0.03
    lose: float = 0.03  # the answer
    hang: float = 0.003


class Injector:
    """`counts`: what was injected so far."""

    def __init__(self, rng: random.Random, odds: Odds) -> None:
        self.rng, self.odds = rng, odds
        self.is_on = False
        self.counts: Counter[str] = Counter()
        self.bus_lost = 0.0
        self.script_offset_key = ""
        self.clock_offset_ms = 0  # of PostgreSQL's clock, as the nodes read it

    def hits(self, chance: float) -> bool:
        return self.is_on and self.rng.random() < chance

    def pause_s(self, what: str) -> float:
        """How long what is read waits: mostly not, or for longer than most requests take."""
        if not self.hits(self.odds.long_pause):
            return 0.0
        self.counts[f"{what}: long pause"] += 1
        return self.rng.uniform(0.03, 0.2)

    async def pause(self, what: str) -> None:
        """Let others run: for a turn or some, or for longer than most requests take."""
        if pause_s := self.pause_s(what):
            await asyncio.sleep(pause_s)
        elif self.hits(self.odds.pause):
            for _ in range(self.rng.randrange(1, 4)):
                await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.002, 0.01)))

    async def around(
        self, what: str, call: Callable[[], Awaitable[Any]], fault: Callable[[bool], Exception], *, loses: bool = True
    ) -> Any:
        """`fault(hung)` makes the failure; for the driver it ends the connection as well."""
        if not self.is_on:
            return await call()
        await self.pause(what)
        if self.hits(self.odds.fail):
            self.counts[f"{what}: failed"] += 1
            raise fault(False)
        if self.hits(self.odds.hang):
            self.counts[f"{what}: hung before"] += 1
            await self._hang(fault)
        answer = await call()
        if loses and self.hits(self.odds.lose):
            self.counts[f"{what}: answer lost"] += 1
            raise fault(False)
        if loses and self.hits(self.odds.hang):
            self.counts[f"{what}: hung after"] += 1
            await self._hang(fault)
        await self.pause(what)
        return answer

    async def _hang(self, fault: Callable[[bool], Exception]) -> None:
        try:
            await asyncio.sleep(HANG_S)
        except asyncio.CancelledError:
            fault(True)
            raise
        raise fault(True)


def _unavailable(rng: random.Random) -> Exception:
    if rng.random() < 0.2:
        return errors.Overloaded("chaos", retry_ms=RETRY_MS)
    return errors.Unavailable("chaos", retry_ms=RETRY_MS)


@contextlib.contextmanager
def installed(injector: Injector) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _wrap_store(injector, patch)
        _wrap_driver(injector, patch)
        _wrap_redis(injector, patch)
        yield


def _wrap_store(injector: Injector, patch: pytest.MonkeyPatch) -> None:
    for name, loses in STORE.items():
        patch.setattr(Store, name, _method(injector, name, getattr(Store, name), loses))
    for name in FLUSHES:
        patch.setattr(StateFlush, name, _method(injector, name, getattr(StateFlush, name), True))


def _method(injector: Injector, name: str, real: Any, loses: bool) -> Any:
    async def method(self: Store | StateFlush, *args: Any, **keys: Any) -> Any:
        return await injector.around(
            f"store.{name}", lambda: real(self, *args, **keys), lambda hung: _unavailable(injector.rng), loses=loses
        )  # fmt: skip

    return method


def _wrap_driver(injector: Injector, patch: pytest.MonkeyPatch) -> None:
    real = psycopg.AsyncRawCursor.execute
    rng = injector.rng

    async def execute(self: Any, *args: Any, **keys: Any) -> Any:
        done = False

        async def call() -> Any:
            nonlocal done
            answer = await real(self, *args, **keys)
            done = True
            return answer

        def fault(hung: bool) -> Exception:
            if not done and not hung and rng.random() < 0.6:
                code = rng.choice(ANSWERS)
                injector.counts[f"driver: {code}"] += 1
                return psycopg.errors.lookup(code)("chaos")
            self.connection.pgconn.finish()
            return (
                psycopg.errors.lookup(rng.choice(CUTS))("chaos")
                if rng.random() < 0.3
                else psycopg.OperationalError("chaos: cut")
            )

        return await injector.around("driver", call, fault)

    patch.setattr(psycopg.AsyncRawCursor, "execute", execute)


def _wrap_redis(injector: Injector, patch: pytest.MonkeyPatch) -> None:
    run, call, take, write = RedisClient.run, Pipeline.call, Subscription._take, Subscription._write

    async def chaotic_run(self: RedisClient, command: Any) -> Any:
        return await injector.around("redis", lambda: run(self, command), lambda hung: RedisUnavailable("chaos"))

    async def chaotic_call(self: Pipeline, packed: bytes, within_s: float, replies: int = 1) -> Any:
        try:
            async with asyncio.timeout(within_s):
                return await injector.around(
                    "redis", lambda: call(self, packed, within_s, replies), lambda hung: RedisUnavailable("chaos")
                )
        except TimeoutError as e:
            raise RedisUnavailable("chaos: no answer") from e

    def chaotic_take(self: Subscription, name: str, reply: Any) -> None:
        if injector.hits(injector.odds.fail / 20):
            injector.counts["subscription: lost"] += 1
            raise RedisUnavailable("chaos")
        take(self, name, reply)
        pause_s = injector.pause_s("subscription")
        if pause_s and self._open:
            connection = self._connections[name]
            connection._transport.pause_reading()
            asyncio.get_running_loop().call_later(pause_s, connection.start)

    def chaotic_write(self: Subscription, leg: Connection, commands: Any) -> None:
        if injector.hits(injector.odds.fail):
            injector.counts["subscription: failed"] += 1
            fault = RedisUnavailable("chaos")
            self._end(fault)
            raise fault
        write(self, leg, commands)

    patch.setattr(RedisClient, "run", chaotic_run)
    patch.setattr(Pipeline, "call", chaotic_call)
    patch.setattr(Subscription, "_take", chaotic_take)
    patch.setattr(Subscription, "_write", chaotic_write)
    put = chatd.cluster.pubsub.PubSub._put

    def lossy_put(self: Any, channel: str, data: bytes) -> None:
        if injector.hits(injector.bus_lost):
            injector.counts["bus: dropped"] += 1
            return
        put(self, channel, data)

    patch.setattr(chatd.cluster.pubsub.PubSub, "_put", lossy_put)
    patch.setattr(chatd.cluster.presence_sync, "is_dropped", lambda: injector.hits(injector.bus_lost))
