"""Publishes entries, receipts and typing to other nodes, and hands on what they publish.

    Delivery, Chat ──entry, receipt, typing──► Relay ──► PubSub
                                              to the channels of users who may be on another node
    PubSub ──heard──► Relay ──► RemoteEntries, Receipts, sessions (typing), PresenceSync

A user's channel gets a message unless the user is connected here and PresenceSync knows of no
session on another node. So nothing is published for two users on one node. For two users on two
nodes, only the channel of the user who is not here gets it. If PresenceSync is late (a device has
just connected elsewhere), the change feed brings the entry.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from chatd import protocol
from chatd.chat.delivery import Delivery
from chatd.chat.remote_entries import RemoteEntries
from chatd.cluster.presence_sync import PresenceSync
from chatd.cluster.pubsub import PubSub
from chatd.core.batch import Item
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.rate_limit import TokenBucket
from chatd.core.session import User
from chatd.ids import UserId
from chatd.metrics import Metrics
from chatd.presence import Presence
from chatd.wire.node_messages import Codec, Entry, Receipt

log = structlog.get_logger("relay")

ARRIVE_S: Final = 0.25  # the longest that a hello waits for its subscription
LOOK_BACK_S: Final = 0.2  # by then every node has got a presence batch
GARBAGE_LOGGED_PER_S: Final = 1.0  # the metric `bus_garbage` counts every message
GARBAGE_LOGGED_BURST: Final = 5


class Relay:
    """Implements `chat.ports.OtherNodes` and `pubsub.PubSubListener`."""

    share_log: Final = True

    def __init__(
        self,
        pubsub: PubSub,
        presence_sync: PresenceSync,
        codec: Codec,
        presence: Presence,
        registry: Registry,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self.pubsub, self.presence_sync = pubsub, presence_sync
        self._codec, self._registry, self._metrics, self._now = codec, registry, metrics, now
        self._presence, self._elsewhere = presence, presence.elsewhere
        self.delivery: Delivery  # this and the following are set by the owner
        self.entries: RemoteEntries
        self.pages: Callable[[], int] = lambda: 0  # pages of the change feed read so far
        self.wake_change_feed: Callable[[], None] = lambda: None
        # A user types on another node: conversation, side
        self.typed: Callable[[Conversation, int], None] = lambda conv, side: None
        # Another node has another log: check which one the database holds
        self.other_log: Callable[[], None] = lambda: None
        self._logged = TokenBucket(GARBAGE_LOGGED_PER_S, GARBAGE_LOGGED_BURST)

    @property
    def hears(self) -> bool:
        return self.pubsub.up

    def of_log(self, epoch: str) -> None:
        """From now on the node has the log of this epoch, and marks its messages with it."""
        self._codec.of_log(epoch)

    # ---- users held by this node -----------------------------------------------------------------

    async def arrive(self, user: UserId, watch: Iterable[UserId]) -> None:
        """A session of the user begins: subscribe to the user, and read the presence of `watch`.

        Returns when this node receives what others publish for the user, and knows what they say of
        the user and of `watch`. Waits `ARRIVE_S` at most for the subscription (the change feed
        brings entries that were missed), and as `PresenceSync.look` for presence.
        """
        self.pubsub.hold(user)
        self._presence.hold(user)
        await asyncio.gather(self._subscribed(user), self.presence_sync.reader.look((user, *watch)))

    async def _subscribed(self, user: UserId) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ARRIVE_S):
                await self.pubsub.subscribed(user)

    async def look(self, users: Iterable[UserId]) -> None:
        """Return when it is known which of these users are online elsewhere."""
        await self.presence_sync.reader.look(users)

    async def look_back(self, user: User) -> None:
        """Look up the user's conversations once every node knows of the new session.

        Another node that alone held the user publishes nothing for them until it knows of the
        session here. So an entry of that time would be missing.
        """
        await asyncio.sleep(LOOK_BACK_S)
        self.delivery.gaps.look_up([conv.id for conv in user.peers.values()])

    def release(self, users: Iterable[UserId]) -> None:
        """This node no longer holds these users."""
        self.pubsub.release(users)
        for user in users:
            self._presence.unhold(user)

    # ---- out -------------------------------------------------------------------------------------

    def channels(self, me: User | None, peer_id: UserId, peer: User | None) -> tuple[UserId, ...]:
        """Whose channels get an entry of `me` to `peer_id`; `peer`: as held here, if so."""
        to_peer = self._away(peer_id, peer)
        if me is None or peer is me:
            return (peer_id,) if to_peer else ()
        if self._away(me.id, me):
            return (peer_id, me.id) if to_peer else (me.id,)
        return (peer_id,) if to_peer else ()

    def _away(self, id: UserId, user: User | None) -> bool:
        """Whether the user may be on another node; `user`: as held here, if so."""
        return user is None or not user.sessions or self._elsewhere(id)

    def entry(self, channels: tuple[UserId, ...], conv: Conversation, item: Item, payload: bytes) -> None:
        """Publish the head, which was just delivered here; `payload`: its JSON without the cid."""
        data = self._codec.entry(conv.id, conv.head, conv.ts, conv.na, conv.nb, item.side, item.kind, item.cid, payload)
        for user in channels:
            self.pubsub.publish(user, data)

    def ahead(self, conv: Conversation, first: int, ts: int, items: list[Item]) -> None:
        """Publish committed entries that wait here for others before them.

        Two nodes that write in turn would each wait for the other with every entry. How many
        messages there were before is known to who delivers them.
        """
        users = self._registry.users
        for seq, item in enumerate(items, first):
            if channels := self.channels(users.get(conv.peer(item.peer)), item.peer, users.get(item.peer)):
                names = conv.names(item.side)
                payload = protocol.entry(conv.id, seq, ts, *names, item.kind, item.ref, item.body, None)
                data = self._codec.entry(conv.id, seq, ts, 0, 0, item.side, item.kind, item.cid, payload)
                for user in channels:
                    self.pubsub.publish(user, data)

    def receipt(self, conv: Conversation, side: int, me: User) -> None:
        """Publish the cursors of one side, just moved here."""
        peer_id = conv.peer(me.id)
        if channels := self.channels(me, peer_id, self._registry.users.get(peer_id)):
            data = self._codec.receipt(conv.id, side, *conv.cursor(side))
            for user in channels:
                self.pubsub.publish(user, data)

    def typing(self, conv: Conversation, side: int, payload: bytes) -> None:
        """Publish that one side types, to the peer alone."""
        peer_id = conv.a if side else conv.b
        if self._away(peer_id, self._registry.users.get(peer_id)):
            self.pubsub.publish(peer_id, self._codec.typing(conv.id, side, payload))

    # ---- in --------------------------------------------------------------------------------------

    def heard(self, user: UserId, data: bytes) -> None:
        """A message arrived on a user's channel."""
        if self._codec.mine(data):
            return
        if self._codec.foreign(data):
            self.other_log()
            return
        e = self._codec.decode(data)
        if e is None:
            right = False
        elif isinstance(e, Entry):
            right = self.entries.heard(user, e)
        else:
            conv = self._registry.convs.get(e.conv)
            right = conv is None or user in (conv.a, conv.b)
            if conv is None or not right:
                pass
            elif isinstance(e, Receipt):
                self.delivery.receipts.moved(conv, e.side, e.delivered, e.read)
            else:
                self.typed(conv, e.side)
        if not right:
            self._garbage(user, data)

    def heard_presence(self, data: bytes) -> None:
        self.presence_sync.heard(data)

    def heard_status(self, user: UserId, data: bytes) -> None:
        self.presence_sync.heard_status(user, data)

    def away(self) -> None:
        """Pub/sub is down. Until it is back only the change feed brings entries, and more often."""
        self.wake_change_feed()

    def back(self) -> None:
        """Pub/sub is connected again. The change feed brings what was missed."""
        self.presence_sync.back()

    def _garbage(self, user: UserId, data: bytes) -> None:
        self._metrics.bus_garbage += 1
        if self._logged.take(self._now()):
            log.warning("bus.garbage", channel=user, version=data[0] if data else None, bytes=len(data))
