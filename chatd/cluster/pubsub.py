"""Fanout between nodes over Redis pub/sub: two channels per user, for messages and for presence.

    Relay ──publish──► queue ──one script call──► Redis
                       ──► subscription of every node that holds the user ──► heard(user, data)
    registry ──hold, release────► wanted channels ──batches──► SUBSCRIBE, UNSUBSCRIBE
    presence ──watch, unwatch───┘

A node hears of the users that it holds or watches, whatever other nodes do. Presence is published
by the script that writes it (presence_keys.py), so only its channels stand here. All their names
hash to the slot of the keys, where that script runs. Nodes of the release before have one channel
for all presence, which is used beside these until none of them is left.

Delivery is at most once, by design. The change feed finds what Redis loses (change_feed.py), so
nothing here is kept or repeated. Publishing is a group commit like a lane's: while one call is
under way, the messages of the next one gather. So calls grow with the load and nothing waits for a
timer. A publish alone costs 17 us; in calls of 50 it costs 3 us.

`run` owns the connection: connect, subscribe to everything wanted, call `back`, listen. The
connection ends when a ping is not answered within `PING_S`, because a network that swallows packets
shows no error. It also ends when an echo (a message that this node publishes to itself) does not
arrive: a proxy can keep a subscription at a master that was replaced, while commands go to the new
one. And it ends when a ping is answered and what was subscribed to before it is not confirmed: a
proxy has lost that, and who waits for it would wait for ever. The first retry is at once, later
ones after jittered pauses that double. While the connection is down nothing is published. The
change feed is read more often then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol

import structlog

from chatd.cluster.redis.client import RedisClient, RedisUnavailable, Subscription
from chatd.ids import UserId
from chatd.metrics import Metrics

log = structlog.get_logger("bus")  # "bus" in logs, metrics and docs is this module

QUEUE_MAX: Final = 20_000  # messages that wait for a call; more are dropped, and the change feed brings them
CALL_MAX: Final = 500  # messages in one call: some 150 KB, 1 ms of Redis
SUBSCRIBE_MAX: Final = 50_000  # channels on their way at once: some 3 MB unsent
PUBLISH_S: Final = 1.0  # a call that takes longer has failed
PING_S: Final = 1.0  # between pings; a ping must be answered before the next one is due
GATHER_S: Final = 0.002  # changes within this time go out in one SUBSCRIBE
BACKOFF_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
REASONS_MAX: Final = 10  # log lines for one outage

# The share of publishes that is lost on purpose. Only tests set it, in a process of their own
# (tests/fix_process.py).
DROPPED: float = 0.0
_dice: Final = random.Random()


def is_dropped() -> bool:
    """Whether a publish is to be lost on purpose."""
    return bool(DROPPED) and _dice.random() < DROPPED


class PubSubListener(Protocol):
    """Gets what arrives. None of these methods may raise or block."""

    def heard(self, user: UserId, data: bytes) -> None: ...
    def heard_presence(self, data: bytes) -> None:
        """A batch of a node of the release before."""

    def heard_status(self, user: UserId, data: bytes) -> None:
        """A batch on the channel of a user's presence."""

    def away(self) -> None:
        """The connection is down: nothing arrives any more."""

    def back(self) -> None:
        """Connected and subscribed to all that is wanted. Earlier messages may have been missed."""


class PubSub:
    """Publishes and subscribes. `run_publisher` and `run` are its tasks; neither ends."""

    def __init__(self, redis_client: RedisClient, prefix: str, metrics: Metrics, incarnation: str) -> None:
        self._redis_client, self._metrics = redis_client, metrics
        self._presence = f"{prefix}:presence"  # of all users of nodes of the release before
        self._status = f"{prefix}:p:{{{prefix}}}:"
        self._echo = f"{prefix}:echo:{incarnation}"
        self._user = f"{prefix}:u:"
        self._user_chars = len(self._user)
        self.listener: PubSubListener
        self.up = False
        self._queue: list[tuple[str, bytes]] = []
        self._filled = asyncio.Event()
        self._wanted: set[str] = set()  # channels
        self._joining: set[str] = set()  # wanted, and not subscribed to yet
        self._leaving: set[str] = set()  # subscribed to, and no longer wanted
        # Unconfirmed SUBSCRIBEs of this connection, by channel
        self._asked: Counter[str] = Counter()
        self._stale: Counter[str] = Counter()  # those that an UNSUBSCRIBE has followed: they do not count
        self._subscribed: set[str] = set()  # channels whose last command was SUBSCRIBE
        self._confirmed: set[str] = set()  # of these, the channels whose messages arrive
        self._changed = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._answered = True  # whether the last ping was
        # Channels: subscribed to, confirmed, and subscribed to before the last ping
        self._sent = self._confirmations = self._due = 0
        self._echoes: dict[str, bytes] = {}  # channel -> echo that was published there and has not arrived
        self._echo_n = 0

    # ---- out -------------------------------------------------------------------------------------

    def publish(self, user: UserId, data: bytes) -> None:
        """Publish to the nodes that hold a user. Dropped while pub/sub is down or full."""
        self._put(self._user + user, data)

    def publish_presence(self, data: bytes) -> None:
        """Publish a presence batch for nodes of the release before. Dropped as in `publish`."""
        self._put(self._presence, data)

    def _put(self, channel: str, data: bytes) -> None:
        queue = self._queue
        if not self.up or len(queue) >= QUEUE_MAX:
            self._metrics.publishes_lost += 1
            return
        if is_dropped():
            self._metrics.publishes_lost += 1
            return
        if not queue:
            self._filled.set()
        queue.append((channel, data))

    async def run_publisher(self) -> None:
        """Publish what is queued. Never returns."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                call, self._queue = self._queue[:CALL_MAX], self._queue[CALL_MAX:]
                try:
                    await self._redis_client.publish(call, PUBLISH_S)
                except RedisUnavailable as e:
                    self._metrics.publishes_lost += len(call) + len(self._queue)
                    self._queue.clear()  # the change feed brings it, and sooner than a Redis that hangs
                    log.warning("publish.failed", lost=len(call), reason=str(e))
                    await asyncio.sleep(BACKOFF_S)
                else:
                    self._metrics.publishes += len(call)

    # ---- in --------------------------------------------------------------------------------------

    def hold(self, user: UserId) -> None:
        """Subscribe to a user's channel; `subscribed` waits until it is done. Idempotent."""
        self._want(self._user + user)

    def release(self, users: Iterable[UserId]) -> None:
        """Unsubscribe from these users' channels."""
        for user in users:
            self._let_go(self._user + user)

    def watch(self, users: Iterable[UserId]) -> None:
        """Subscribe to the presence of users; `watched` waits until it is done. Idempotent."""
        for user in users:
            self._want(self._status + user)

    def unwatch(self, users: Iterable[UserId]) -> None:
        """Unsubscribe from the presence of these users."""
        for user in users:
            self._let_go(self._status + user)

    def status_channel(self, user: UserId) -> str:
        """The channel of a user's presence."""
        return self._status + user

    def _want(self, channel: str) -> None:
        if channel not in self._wanted:
            self._wanted.add(channel)
            self._joining.add(channel)
            self._changed.set()

    def _let_go(self, channel: str) -> None:
        if channel in self._wanted:
            self._wanted.discard(channel)
            self._leaving.add(channel)
            self._changed.set()

    async def subscribed(self, user: UserId) -> None:
        """Return when what is published for a held user arrives here.

        Returns at once while pub/sub is down, because only the change feed brings entries then.
        """
        await self._arriving([self._user + user])

    async def watched(self, users: Iterable[UserId]) -> None:
        """Return when what is published of the presence of these users arrives here.

        Returns at once while pub/sub is down: all presence is read when it is back.
        """
        await self._arriving([self._status + user for user in users])

    async def _arriving(self, channels: Iterable[str]) -> None:
        if self.up:
            await self._until_confirmed([channel for channel in channels if channel in self._wanted])

    async def run(self) -> None:
        """Connect and listen, again and again. Never returns."""
        backoff_s = 0.0
        logged: set[str] = set()  # reasons of this outage; each is logged once, as later ones may say more
        while True:
            reason = ""
            subscription = self._redis_client.subscription()
            try:
                await self._listen(subscription)
            except (RedisUnavailable, TimeoutError) as e:
                reason = str(e) or "no answer"
            finally:
                was_up, self.up = self.up, False
                for channels in (self._asked, self._stale, self._subscribed, self._confirmed, self._echoes):
                    channels.clear()
                self._release_waiting()
                self._queue.clear()
                with contextlib.suppress(RedisUnavailable, TimeoutError):
                    async with asyncio.timeout(PUBLISH_S):
                        await subscription.close()
            if was_up:
                self.listener.away()
                backoff_s = 0.0
                logged.clear()
            if reason not in logged and len(logged) < REASONS_MAX:
                logged.add(reason)
                log.warning("redis.away", reason=reason)
            self._metrics.bus_reconnects += 1
            await asyncio.sleep(random.uniform(0.5, 1.0) * backoff_s)
            backoff_s = min(max(2 * backoff_s, BACKOFF_S), BACKOFF_MAX_S)

    async def _listen(self, subscription: Subscription) -> None:
        async with asyncio.timeout(PUBLISH_S * 2):
            await subscription.connect()
        self._answered = True
        self._sent = self._confirmations = self._due = 0
        # Not a TaskGroup: in Python 3.11 a group whose tasks fail while it is cancelled swallows
        # the cancellation, and the node would not end.
        tasks = [
            asyncio.create_task(work)
            for work in (subscription.listen(self), self._subscribe(subscription), self._ping(subscription))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        faults = [end for end in ends if isinstance(end, Exception)]
        for fault in faults:
            if not isinstance(fault, RedisUnavailable | TimeoutError):
                raise fault
        raise RedisUnavailable("; ".join(str(fault) or "no answer" for fault in faults))

    async def _subscribe(self, subscription: Subscription) -> None:
        """Keep the subscriptions equal to what is wanted. The first round sets `up`."""
        self._joining, self._leaving = set(self._wanted), set()
        first = [self._presence, *subscription.echoes(self._echo)]
        while True:
            self._changed.clear()
            joining, self._joining = self._joining, set()
            leaving, self._leaving = self._leaving, set()
            old = list((leaving - self._wanted) & self._subscribed)
            new = list((joining & self._wanted) - self._subscribed) + first
            first = []
            self._note(old, new)
            if old:
                await subscription.unsubscribe(old)
            for at in range(0, len(new), SUBSCRIBE_MAX):
                if at:
                    await self._until_confirmed(new[at - SUBSCRIBE_MAX : at])
                part = new[at : at + SUBSCRIBE_MAX]
                self._sent += len(part)
                await subscription.subscribe(part)
            if not self.up:
                await self._until_confirmed(new)
                self.up = True
                log.info("bus.up", channels=len(new))
                self.listener.back()
            await self._changed.wait()
            await asyncio.sleep(GATHER_S)

    def _note(self, old: list[str], new: list[str]) -> None:
        """Record the UNSUBSCRIBE of `old` and the SUBSCRIBE of `new`, which are sent next.

        A confirmation under way for a channel of `old` must not count when the channel is wanted
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

    def confirmed(self, channel: str) -> None:
        """A SUBSCRIBE was confirmed: `SubscriptionListener`.

        Redis confirms in the order of the commands.
        """
        self._confirmations += 1
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

    def heard(self, channel: str, data: bytes) -> None:
        """A message arrived: `SubscriptionListener`."""
        if channel.startswith(self._user):
            self._metrics.bus_messages += 1
            self.listener.heard(UserId(channel[self._user_chars :]), data)
        elif channel.startswith(self._status):
            self._metrics.bus_messages += 1
            self._metrics.presence_heard += 1
            self.listener.heard_status(UserId(channel[len(self._status) :]), data)
        elif channel.startswith(self._echo):
            if self._echoes.get(channel) == data:
                del self._echoes[channel]
        else:
            self._metrics.bus_messages += 1
            self._metrics.presence_heard += 1
            self.listener.heard_presence(data)

    def ponged(self) -> None:
        """The last ping was answered: `SubscriptionListener`."""
        self._answered = True
        if self._confirmations < self._due:  # Redis answers in order: a proxy has lost one
            raise RedisUnavailable("a subscription was not confirmed")

    async def _ping(self, subscription: Subscription) -> None:
        echoes = subscription.echoes(self._echo)
        while True:
            await asyncio.sleep(PING_S)
            if not self._answered:
                raise RedisUnavailable("a ping was not answered")
            if self._echoes:
                raise RedisUnavailable("what is published is not heard: the subscription is at another Redis")
            if subscription.outdated:
                raise RedisUnavailable("the nodes have agreed on another kind of channels")
            self._answered, self._due = False, self._sent
            async with asyncio.timeout(PING_S):
                await subscription.ping()
            if self.up:
                await self._publish_echoes(echoes)

    async def _publish_echoes(self, channels: list[str]) -> None:
        """Publish an echo on each connection; each must arrive before the next ping.

        An echo that cannot be published says nothing about the subscription.
        """
        self._echo_n += 1
        echo = b"%d" % self._echo_n
        # Before it is published, because it may arrive before the publish is answered
        self._echoes = dict.fromkeys(channels, echo)
        try:
            await self._redis_client.publish([(channel, echo) for channel in channels], PUBLISH_S)
        except RedisUnavailable:
            self._echoes.clear()

    def _release_waiting(self) -> None:
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
