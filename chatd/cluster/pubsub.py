"""Fanout between nodes over Redis pub/sub: one channel per user, and one for the presence of all.

    Delivery, Chat ──publish──► queue ──one script call──► Redis ──► subscription of every node that holds the user ──► heard(user, data)
    registry ──hold, release──► wanted channels ──batches──► SUBSCRIBE, UNSUBSCRIBE

At most once, by design: what Redis loses the feed finds (cluster/change_feed.py), so nothing here
is kept, repeated or waited for. Publishing is a group commit like a lane's: while a call is on its
way the next one gathers, so that calls grow with the load and nobody waits for a timer. Alone a
publish costs 80 us, in calls of 50 it costs 2.7 us.

`run` owns the connection's life: connect, subscribe to everything wanted, tell `back`, listen; a
ping that is not answered within `PING_S` ends it, for a network that went without a word shows no
error at all. So does an echo that is not heard: what this node publishes to itself. A subscription
can be alive and deaf: a proxy keeps it at a master that was replaced, while commands go to the new
one. First retry at once, then jittered pauses that double. While it is down nothing is published:
whoever would read it is told by the feed, which is read more often then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol

import structlog

from chatd.cluster.redis.client import Away, Engine, Message, Subscribed, Subscription
from chatd.ids import UserId
from chatd.metrics import Metrics

log = structlog.get_logger("bus")

QUEUE_MAX: Final = 20_000  # messages that wait for a call; past it they are dropped, and the feed tells of them
CALL_MAX: Final = 500  # messages a call: some 150 KB, 1 ms of Redis
PUBLISH_S: Final = 1.0  # a call that takes longer has failed
PING_S: Final = 1.0  # a ping goes out this often, and is to be answered by the next but one
GATHER_S: Final = 0.002  # what is subscribed to within it goes in one command
BACKOFF_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
REASONS_MAX: Final = 10  # lines about one outage

# Tests alone set these, in a process of their own (tests/fix_process.py): the share of publishes
# that is lost on purpose.
DROPPED: float = 0.0
_dice: Final = random.Random()


class Listener(Protocol):
    """Who hears what comes. None of these may raise or block."""

    def heard(self, user: UserId, data: bytes) -> None: ...
    def heard_presence(self, data: bytes) -> None: ...
    def away(self) -> None:
        """Nothing comes any more."""

    def back(self) -> None:
        """Connected, and subscribed to all that is wanted: whatever was published before may have
        been missed.
        """


class Bus:
    """`run_publisher` and `run` are its tasks, for the life of the node."""

    def __init__(self, engine: Engine, prefix: str, metrics: Metrics, boot: str) -> None:
        self._engine, self._metrics = engine, metrics
        self._presence = f"{prefix}:presence"
        self._echo = f"{prefix}:echo:{boot}"
        self._user = f"{prefix}:u:"
        self.listener: Listener
        self.up = False
        self._queue: list[tuple[str, bytes]] = []
        self._filled = asyncio.Event()
        self._wanted: set[UserId] = set()
        self._joining: set[UserId] = set()  # wanted, and not subscribed to yet
        self._leaving: set[UserId] = set()  # the other way round
        # Channels of this connection: SUBSCRIBEs that are not confirmed, of those that are still to
        # count
        self._asked: Counter[str] = Counter()
        self._stale: Counter[str] = Counter()  # and of those that an UNSUBSCRIBE has followed
        self._subscribed: set[str] = set()  # channels whose last command was SUBSCRIBE
        self._confirmed: set[str] = set()  # of these, those that are heard
        self._changed = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._answered = True  # the last ping
        self._echoes: dict[str, bytes] = {}  # channel -> what was published there and has not been heard
        self._echo_n = 0

    # ---- out -------------------------------------------------------------------------------------

    def publish(self, user: UserId, data: bytes) -> None:
        """Tell the other nodes that hold a user. Dropped while the bus is down or full."""
        self._put(self._user + user, data)

    def publish_presence(self, data: bytes) -> None:
        self._put(self._presence, data)

    def _put(self, channel: str, data: bytes) -> None:
        queue = self._queue
        if not self.up or len(queue) >= QUEUE_MAX:
            self._metrics.publishes_lost += 1
            return
        if DROPPED and _dice.random() < DROPPED:
            self._metrics.publishes_lost += 1
            return
        if not queue:
            self._filled.set()
        queue.append((channel, data))

    async def run_publisher(self) -> None:
        """Publish what is queued, for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                call, self._queue = self._queue[:CALL_MAX], self._queue[CALL_MAX:]
                try:
                    async with asyncio.timeout(PUBLISH_S):
                        await self._engine.publish(call)
                except (Away, TimeoutError) as e:
                    self._metrics.publishes_lost += len(call) + len(self._queue)
                    self._queue.clear()  # its receivers hear of it by the feed, and sooner than from a Redis that hangs
                    log.warning("publish.failed", lost=len(call), reason=str(e) or "no answer")
                    await asyncio.sleep(BACKOFF_S)
                else:
                    self._metrics.publishes += len(call)

    # ---- in --------------------------------------------------------------------------------------

    def hold(self, user: UserId) -> None:
        """Hear of a user from now on; `subscribed` tells when. Idempotent."""
        if user not in self._wanted:
            self._wanted.add(user)
            self._joining.add(user)
            self._changed.set()

    def release(self, users: Iterable[UserId]) -> None:
        """These users are not held any more."""
        for user in users:
            if user in self._wanted:
                self._wanted.discard(user)
                self._leaving.add(user)
                self._changed.set()

    async def subscribed(self, user: UserId) -> None:
        """Return when what is published for a held user comes here; at once while the bus is down,
        for then the feed tells.
        """
        channel = self._user + user
        if not self.up or channel in self._confirmed or user not in self._wanted:
            return
        waiter = self._waiting.get(channel)
        if waiter is None:
            waiter = self._waiting[channel] = asyncio.get_running_loop().create_future()
        await asyncio.wait([waiter])

    async def run(self) -> None:
        """Connect and listen, for ever."""
        backoff_s = 0.0
        told: set[str] = set()  # why it is down: each reason once, as the first may be the least of them
        while True:
            reason = ""
            subscription = self._engine.subscription()
            try:
                await self._listen(subscription)
            except (Away, TimeoutError) as e:
                reason = str(e) or "no answer"
            finally:
                was_up, self.up = self.up, False
                for channels in (self._asked, self._stale, self._subscribed, self._confirmed, self._echoes):
                    channels.clear()
                self._release_waiting()
                self._queue.clear()
                with contextlib.suppress(Away, TimeoutError):
                    async with asyncio.timeout(PUBLISH_S):
                        await subscription.close()
            if was_up:
                self.listener.away()
                backoff_s = 0.0
                told.clear()
            if reason not in told and len(told) < REASONS_MAX:
                told.add(reason)
                log.warning("redis.away", reason=reason)
            self._metrics.bus_reconnects += 1
            await asyncio.sleep(random.uniform(0.5, 1.0) * backoff_s)
            backoff_s = min(max(2 * backoff_s, BACKOFF_S), BACKOFF_MAX_S)

    async def _listen(self, subscription: Subscription) -> None:
        async with asyncio.timeout(PUBLISH_S * 2):
            await subscription.connect()
        self._answered = True
        # No TaskGroup: one whose tasks fail while it is cancelled keeps the cancellation to itself
        # (3.11), and the node would not end.
        tasks = [
            asyncio.create_task(work)
            for work in (self._receive(subscription), self._subscribe(subscription), self._ping(subscription))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        faults = [end for end in ends if isinstance(end, Exception)]
        for fault in faults:
            if not isinstance(fault, Away | TimeoutError):
                raise fault
        raise Away("; ".join(str(fault) or "no answer" for fault in faults))

    async def _subscribe(self, subscription: Subscription) -> None:
        """Keep the subscriptions equal to what is wanted. The first round makes the bus `up`."""
        self._joining, self._leaving = set(self._wanted), set()
        first = [self._presence, *subscription.echoes(self._echo)]
        while True:
            self._changed.clear()
            joining, self._joining = self._joining, set()
            leaving, self._leaving = self._leaving, set()
            old = [channel for user in leaving - self._wanted if (channel := self._user + user) in self._subscribed]
            new = [
                channel for user in joining & self._wanted if (channel := self._user + user) not in self._subscribed
            ] + first
            first = []
            self._note(old, new)
            if old:
                await subscription.unsubscribe(old)
            if new:
                await subscription.subscribe(new)
            if not self.up:
                await self._until_confirmed(new)
                self.up = True
                log.info("bus.up", channels=len(new))
                self.listener.back()
            await self._changed.wait()
            await asyncio.sleep(GATHER_S)

    def _note(self, old: list[str], new: list[str]) -> None:
        """What is about to be sent.

        A confirmation that is under way for a channel of `old` is not one for it when it is wanted
        again.
        """
        for channel in old:
            self._subscribed.discard(channel)
            self._confirmed.discard(channel)
            self._stale[channel] += self._asked.pop(channel, 0)
            if (waiter := self._waiting.pop(channel, None)) is not None and not waiter.done():
                waiter.set_result(None)
        self._stale += Counter()  # drops the zeros
        self._subscribed.update(new)
        self._asked.update(new)

    def _confirm(self, channel: str) -> None:
        """Confirmations come in the order of the commands."""
        if self._stale[channel] > 0:
            self._stale[channel] -= 1
            return
        self._asked.pop(channel, None)
        if channel not in self._subscribed:
            return
        self._confirmed.add(channel)
        if (waiter := self._waiting.pop(channel, None)) is not None and not waiter.done():
            waiter.set_result(None)

    async def _until_confirmed(self, channels: Iterable[str]) -> None:
        loop = asyncio.get_running_loop()
        waits = [self._waiting.setdefault(c, loop.create_future()) for c in channels if c not in self._confirmed]
        if waits:
            await asyncio.wait(waits)

    async def _receive(self, subscription: Subscription) -> None:
        cut = len(self._user)
        async for event in subscription.events():
            if type(event) is Message:
                if event.channel == self._presence:
                    self._metrics.bus_messages += 1
                    self.listener.heard_presence(event.data)
                elif event.channel.startswith(self._echo):
                    if self._echoes.get(event.channel) == event.data:
                        del self._echoes[event.channel]
                else:
                    self._metrics.bus_messages += 1
                    self.listener.heard(UserId(event.channel[cut:]), event.data)
            elif type(event) is Subscribed:
                self._confirm(event.channel)
            else:
                self._answered = True
        raise Away("the subscription ended")

    async def _ping(self, subscription: Subscription) -> None:
        echoes = subscription.echoes(self._echo)
        while True:
            await asyncio.sleep(PING_S)
            if not self._answered:
                raise Away("a ping was not answered")
            if self._echoes:
                raise Away("what is published is not heard: the subscription is at another Redis")
            if subscription.outdated:
                raise Away("the nodes have agreed on another kind of channels")
            self._answered = False
            async with asyncio.timeout(PING_S):
                await subscription.ping()
            if self.up:
                await self._publish_echoes(echoes)

    async def _publish_echoes(self, channels: list[str]) -> None:
        """To be heard before the next ping.

        Where it cannot be published, the subscription is not to blame.
        """
        self._echo_n += 1
        said = b"%d" % self._echo_n
        self._echoes = dict.fromkeys(channels, said)  # before it is published: it may be heard before that is answered
        try:
            async with asyncio.timeout(PUBLISH_S):
                await self._engine.publish([(channel, said) for channel in channels])
        except (Away, TimeoutError):
            self._echoes.clear()

    def _release_waiting(self) -> None:
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
