"""Builds and connects the parts that a node has only with `redis_url`.

    Redis ◄── RedisClient ◄── PubSub ──► Relay ──► Delivery, Chat   fast, may lose messages
                          ◄── PresenceSync ──► Presence             leases, who is online where
                          ◄── SharedLimits                          rate limits over all nodes
    PostgreSQL ◄──────────── ChangeFeed ──► Delivery                complete, within a second

A node starts although Redis is away. It then serves its own users, gets the messages of other nodes
by the change feed, and says so in its log and metrics. It does not start if Redis refuses its
password, because that does not pass by itself.
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
from chatd.chat import device_limit, listing
from chatd.chat.delivery import Delivery
from chatd.chat.handlers import Chat
from chatd.chat.ports import Rates
from chatd.chat.remote_entries import RemoteEntries
from chatd.chat.services import Services
from chatd.clock import Clock
from chatd.cluster.change_feed import ChangeFeed
from chatd.cluster.presence_sync import PresenceSync
from chatd.cluster.pubsub import PubSub
from chatd.cluster.redis.client import RedisClient, RedisUnavailable
from chatd.cluster.relay import Relay
from chatd.cluster.shared_limits import SharedLimits
from chatd.config import Settings
from chatd.core.conversations import Registry
from chatd.core.feed_filter import FeedFilter
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

FEED_S: Final = 1.0  # between two reads of the change feed
FEED_AWAY_S: Final = 0.2  # while Redis is away, when the feed alone brings entries of other nodes
SETTLE_S: Final = 2.0  # the longest that a start waits for Redis
# An entry that the feed reports may still arrive by pub/sub. It is looked up only after this time.
SUSPECT_S: Final = 0.1


class Cluster:
    """The parts of one node that need other nodes. Implements `presence_sync.PresenceListener`.

    Call `attach`, then `start`, run `tasks`, and call `stop` at the end. `relay` and
    `shared_limits` implement the ports `OtherNodes` and `Admission` of chat/ports.py.
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
        incarnation: str,
        facts: Callable[[], Mapping[str, object]],
        clock: Clock,
        steady: Steady,
    ) -> None:
        assert s.redis_url is not None
        self._s, self._store, self._registry = s, store, registry
        self._services: Services  # these two are set by `attach`
        self._delivery: Delivery
        self.redis_client = RedisClient(s.redis_url.get_secret_value())
        self.pubsub = PubSub(self.redis_client, s.redis_prefix, metrics, incarnation)
        started = clock.now()
        host = socket.gethostname()
        self.presence_sync = PresenceSync(
            self.redis_client, self.pubsub, presence, metrics,
            incarnation=incarnation, prefix=s.redis_prefix, lease_ms=s.lease_ms,
            name=s.node_name or f"{host}:{s.port}", now=clock.now, now_ms=clock.now_ms, steady=steady,
            facts=lambda: {
                "host": host, "pid": os.getpid(), "version": __version__,
                "started_ms": clock.now_ms() - int((clock.now() - started) * 1000),
                "postgres_connections": store.opener.connections,
                "redis_connections": self.redis_client.connections, **facts(),
            },
        )  # fmt: skip
        self.presence_sync.listen(self)
        self.relay = Relay(self.pubsub, self.presence_sync, Codec(incarnation), presence, registry, metrics, clock.now)
        self.pubsub.listener = self.relay
        wanted = FeedFilter(registry.convs)
        registry.on_hold = wanted.add
        self.change_feed = ChangeFeed(
            store, metrics, now=clock.now, interval_s=lambda: FEED_S if self.pubsub.up else FEED_AWAY_S,
            heads=self._heads, cursors=self._cursors, found=self._found, clock=clock.sync,
            users=lambda: [(user.id, len(user.peers)) for user in registry.users.values()],
            wanted=wanted,
        )  # fmt: skip
        self.shared_limits = SharedLimits(
            self.redis_client, s.redis_prefix, metrics, rates, s.lane_queue_max, now=clock.now
        )
        self.relay.pages, self.relay.wake_change_feed = lambda: self.change_feed.pages, self.change_feed.wake
        self.relay.other_log = store.log.suspect
        self._add_gauges(metrics)

    def _add_gauges(self, metrics: Metrics) -> None:
        for name, help, read in (
            # The names of metrics are released: `bus` is pub/sub, `quota` the shared limits
            ("bus_up", "1 while this node receives messages of other nodes over Redis", lambda: self.pubsub.up),
            (
                "presence_stale",
                "1 while presence of other nodes' users may be old because Redis is away",
                lambda: self.presence_sync.stale,
            ),
            (
                "quota_open",
                "1 while each node counts rate limits alone because Redis is away",
                lambda: self.shared_limits.open,
            ),
            (
                "redis_connections",
                "connections to Redis that are open, the subscription included",
                lambda: self.redis_client.connections,
            ),
            ("nodes_known", "other nodes with a valid lease", lambda: self.presence_sync.nodes),
        ):
            metrics.gauge(name, help, read)

    def attach(self, services: Services, delivery: Delivery, chat: Chat) -> None:
        """Set what gets the messages of other nodes. Call it before `start`."""
        self._services, self._delivery = services, delivery
        self.relay.entries = RemoteEntries(self._registry, self._store, delivery, self._services.clock.now_ms)
        self.relay.delivery, self.relay.typed = delivery, chat.typing.heard

    async def start(self) -> None:
        """Check Redis. The store has started. Raises SettingError if Redis refuses this node."""
        self.relay.of_log(self._store.epoch)
        try:
            await self.redis_client.check(self._s.redis_prefix)
        except RedisUnavailable as e:
            log.warning(
                "redis.away",
                reason=str(e),
                meanwhile="other nodes' entries arrive by the change feed; presence of their users is unknown",
            )

    def tasks(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """(name, coroutine) of each background task. The caller watches them: none may end."""
        return [
            ("publisher", self.pubsub.run_publisher()),
            ("bus", self.pubsub.run()),
            ("lease", self.presence_sync.run_beat()),
            ("presence", self.presence_sync.run_flush()),
            ("presence reader", self.presence_sync.reader.run()),
            ("feed", self.change_feed.run()),
            ("quota", self.shared_limits.run()),
        ]

    async def settled(self) -> None:
        """Return when this node knows who is online where, or that Redis is away.

        A client that it served before would see users offline who are online. Waits `SETTLE_S` at
        most.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self.presence_sync.tried.wait()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Leave the other nodes and close.

        The lease is not deleted. It lapses after `grace_s` at the earliest, so that users who move
        to another node do not look offline in between.
        """
        await self.presence_sync.leave(grace_s)
        await self.redis_client.close()

    def redis_away(self) -> str:
        """Why this node does not hear the others; "" if it does."""
        if self.pubsub.up and not self.presence_sync.stale:
            return ""
        return (
            "Redis is away: entries of other nodes come by PostgreSQL within a second, "
            "presence of their users may be old"
        )

    def log_moved(self) -> None:
        """The database now holds another log (its epoch changed).

        The change feed starts again, and messages of nodes with the old log are ignored.
        """
        self.relay.of_log(self._store.epoch)
        self.change_feed.reset()

    # ---- presence_sync.PresenceListener ----------------------------------------------------------

    def announce(self, change: Change | None) -> None:
        self._services.presence_push.announce(change)

    def devices_elsewhere(self, user: UserId) -> None:
        device_limit.close_displaced(self._services, user)

    def touch(self, users: Iterable[UserId], seconds: float) -> None:
        device_limit.publish_activity(self._services, users, seconds)

    # ---- what the change feed reports ------------------------------------------------------------

    def _found(self, rows: list[ConvRow]) -> None:
        """Conversations that this node may not know.

        It takes up those of users that it holds and whose listing is complete.
        """
        registry = self._registry
        with contextlib.suppress(Unavailable):
            listing.check_pairs(self._services, rows)
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
                self._delivery.receipts.moved(conv, 0, a_delivered, a_read)
                self._delivery.receipts.moved(conv, 1, b_delivered, b_read)
