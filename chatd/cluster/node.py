"""The parts that a node has only among others (with `redis_url`), put together: engine, bus,
mirror, relay, feed, quota.

    Redis ◄── Engine ◄── Bus ──► Relay ──► Delivery, Chat           fast, may lose
                 ◄────── Mirror ──► Presence                        leases, who is where
                 ◄────── Quota                                      limits over nodes
    PostgreSQL ◄──────── Feed ──► Delivery                          right, within a second

Redis away at the start is no reason not to start: the node serves its own users, and others' by the
feed, and says so in its log and metrics. A password that Redis refuses is one: nobody would mend
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

import structlog

from chatd import __version__
from chatd.chat import hello
from chatd.chat.delivery import Delivery
from chatd.chat.handlers import Chat
from chatd.chat.ports import Rates
from chatd.chat.services import Services
from chatd.clock import Clock
from chatd.cluster.change_feed import Feed
from chatd.cluster.presence_sync import Mirror
from chatd.cluster.pubsub import Bus
from chatd.cluster.redis.client import Away, Engine
from chatd.cluster.relay import Relay
from chatd.cluster.shared_limits import Quota
from chatd.config import Settings
from chatd.core.conversations import Registry
from chatd.core.steady_time import Steady
from chatd.errors import Unavailable
from chatd.ids import UserId
from chatd.metrics import Metrics
from chatd.postgres.change_feed_reader import CursorsChange, HeadChange
from chatd.postgres.rows import ConvRow
from chatd.presence import Change, Presence
from chatd.store import Store
from chatd.wire.node_messages import Codec

log = structlog.get_logger("cluster")

FEED_S: Final = 1.0  # between two readings
FEED_AWAY_S: Final = 0.2  # while Redis is away: entries of other nodes come by the feed alone
SETTLE_S: Final = 2.0  # a start waits no longer for Redis
SUSPECT_S: Final = 0.1  # what the feed tells may be on its way by the bus: so much later it is looked up


class Cluster:
    """Implements `mirror.Listener`.

    `relay` and `quota` are the services' ports. `attach`, `start`, then run `tasks`, in the end
    `stop`.
    """

    def __init__(
        self,
        s: Settings,
        store: Store,
        presence: Presence,
        registry: Registry,
        metrics: Metrics,
        *,
        rates: Rates,
        boot: str,
        facts: Callable[[], Mapping[str, object]],
        clock: Clock,
        steady: Steady,
    ) -> None:
        assert s.redis_url is not None
        self._s, self._store, self._registry = s, store, registry
        self._services: Services  # these come by `attach`
        self._delivery: Delivery
        self._chat: Chat
        self.engine = Engine(s.redis_url.get_secret_value())
        self.bus = Bus(self.engine, s.redis_prefix, metrics, boot)
        started = clock.now()
        host = socket.gethostname()
        self.mirror = Mirror(
            self.engine, self.bus, presence, metrics, boot=boot, prefix=s.redis_prefix, lease_ms=s.lease_ms,
            name=s.node_name or f"{host}:{s.port}", now=clock.now, now_ms=clock.now_ms, steady=steady,
            facts=lambda: {
                "host": host, "pid": os.getpid(), "version": __version__,
                "started_ms": clock.now_ms() - int((clock.now() - started) * 1000), **facts(),
            },
        )  # fmt: skip
        self.mirror.listener = self
        self.relay = Relay(self.bus, self.mirror, Codec(boot), presence, registry, metrics, clock.now)
        self.bus.listener = self.relay
        self.feed = Feed(
            store, metrics, now=clock.now, interval_s=lambda: FEED_S if self.bus.up else FEED_AWAY_S,
            heads=self._heads, cursors=self._cursors, found=self._found, clock=clock.sync,
            users=lambda: [(user.id, len(user.peers)) for user in registry.users.values()],
        )  # fmt: skip
        self.quota = Quota(self.engine, s.redis_prefix, metrics, rates, s.lane_queue_max, now=clock.now)
        self.relay.pages, self.relay.wake_feed = lambda: self.feed.pages, self.feed.wake
        self.relay.other_log = store.log.suspect
        for name, help, read in (
            ("bus_up", "1 while this node hears others over Redis", lambda: self.bus.up),
            ("presence_stale", "1 while others' presence may be old because Redis is away", lambda: self.mirror.stale),
            ("quota_open", "1 while limits are each node's own count because Redis is away", lambda: self.quota.open),
            ("nodes_known", "other nodes whose lease stands", lambda: self.mirror.nodes),
        ):
            metrics.gauge(name, help, read)

    def attach(self, services: Services, delivery: Delivery, chat: Chat) -> None:
        """These hear what comes from other nodes. Before `start`."""
        self._services, self._delivery, self._chat = services, delivery, chat
        self.relay.delivery, self.relay.typed = delivery, chat.typing.heard

    async def start(self) -> None:
        """See whether Redis is there. The store has started. Raises SettingError if it refuses us."""
        self.relay.of_log(self._store.epoch)
        try:
            await self.engine.check(self._s.redis_prefix)
        except Away as e:
            log.warning(
                "redis.away",
                reason=str(e),
                meanwhile="other nodes' entries come by the feed; presence of their users is unknown",
            )

    def tasks(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """To be watched: none may end."""
        return [
            ("publisher", self.bus.run_publisher()),
            ("bus", self.bus.run()),
            ("lease", self.mirror.run_beat()),
            ("presence", self.mirror.run_flush()),
            ("presence reader", self.mirror.run_read()),
            ("feed", self.feed.run()),
            ("quota", self.quota.run()),
        ]

    async def settled(self) -> None:
        """Return when this node knows who is where, or that Redis is away: whom it let in before
        would see people offline who are not.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self.mirror.tried.wait()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Close.

        The lease is left to lapse, after this time at the earliest: users on their way to another
        node do not look offline meanwhile.
        """
        await self.mirror.leave(grace_s)
        await self.engine.close()

    def log_moved(self) -> None:
        """The log is another one: the feed's transactions, too, and what other nodes say of the one
        before is not heard.
        """
        self.relay.of_log(self._store.epoch)
        self.feed.reset()

    # ---- mirror.Listener -------------------------------------------------------------------------

    def announce(self, change: Change | None) -> None:
        self._services.presence_push.announce(change)

    def devices_elsewhere(self, user: UserId) -> None:
        hello.close_displaced(self._services, user)

    def touch(self, users: Iterable[UserId], seconds: float) -> None:
        self._chat.touch(users, seconds)

    # ---- the feed --------------------------------------------------------------------------------

    def _found(self, rows: list[ConvRow]) -> None:
        """Conversations that may be unknown here: those of users who are held, and whose listing is
        over, are theirs from now on.
        """
        registry = self._registry
        with contextlib.suppress(Unavailable):
            hello.check_pairs(self._services, rows)
        for row in rows:
            if registry.fits(row.id, row.a, row.b) and any(
                (user := registry.users.get(id)) is not None and user.loaded for id in (row.a, row.b)
            ):
                conv = registry.hold(row.id, row.a, row.b)
                conv.floor = max(conv.floor, row.floor)

    def _heads(self, heads: list[HeadChange]) -> None:
        convs = self._registry.convs
        behind = [(conv, head) for id, head in heads if (conv := convs.get(id)) is not None and head > conv.head]
        if behind:
            look = self._delivery.gaps.look_up
            asyncio.get_running_loop().call_later(
                SUSPECT_S, lambda: look([conv.id for conv, head in behind if head > conv.head])
            )

    def _cursors(self, rows: list[CursorsChange]) -> None:
        convs = self._registry.convs
        for id, a_delivered, a_read, b_delivered, b_read in rows:
            if (conv := convs.get(id)) is not None:
                self._delivery.moved(conv, 0, a_delivered, a_read)
                self._delivery.moved(conv, 1, b_delivered, b_read)
