"""What goes to other nodes, and what comes from them: between the bus and the services.

    Delivery, Chat ──entry, receipt, typing──► Relay ──► Bus          to the channels of those who may be on another node
    Bus ──heard──► Relay ──► Delivery (entries, receipts) | sessions (typing) | Mirror (presence)

The rule which channels get it: a user's, unless the user is here and the mirror knows of them
nowhere else. For two people on one node nothing is published; of two people on two nodes the one
who is not here. Should the mirror be late (a device that has just connected elsewhere), the feed
tells.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from chatd.chat.delivery import Delivery
from chatd.cluster.presence_sync import Mirror
from chatd.cluster.pubsub import Bus
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

ARRIVE_S: Final = 0.25  # a hello waits no longer for Redis
LOOK_BACK_S: Final = 0.2  # a presence batch is everywhere by then
GARBAGE_LOGGED_PER_S: Final = 1.0  # the metric counts all of it
GARBAGE_LOGGED_BURST: Final = 5


class Relay:
    """Implements `chat.ports.OtherNodes` and, with the mirror, `bus.Listener`."""

    share_log: Final = True

    def __init__(
        self,
        bus: Bus,
        mirror: Mirror,
        codec: Codec,
        presence: Presence,
        registry: Registry,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self.bus, self.mirror = bus, mirror
        self._codec, self._registry, self._metrics, self._now = codec, registry, metrics, now
        self._presence, self._elsewhere = presence, presence.elsewhere
        self.delivery: Delivery  # these are set by the owner
        self.pages: Callable[[], int] = lambda: 0  # of the feed
        self.wake_feed: Callable[[], None] = lambda: None
        self.typed: Callable[[Conversation, int], None] = lambda conv, side: None  # somebody types on another node
        # Another node has another log than this one: look which is there
        self.other_log: Callable[[], None] = lambda: None
        self._logged = TokenBucket(GARBAGE_LOGGED_PER_S, GARBAGE_LOGGED_BURST)

    def of_log(self, epoch: str) -> None:
        """The node has the log of this epoch from now on."""
        self._codec.of_log(epoch)

    # ---- who is held -----------------------------------------------------------------------------

    async def arrive(self, user: UserId, watch: Iterable[UserId]) -> None:
        """A session of the user begins: return when what others publish for them comes here and
        what others say of them and of those they watch is known.

        Waits `ARRIVE_S` at most: what comes later is pushed, or found by the feed.
        """
        self.bus.hold(user)
        self._presence.hold(user)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ARRIVE_S):
                await asyncio.gather(self.bus.subscribed(user), self.mirror.look((user, *watch)))

    async def look(self, users: Iterable[UserId]) -> None:
        """Return when it is known which of these are online elsewhere."""
        await self.mirror.look(users)

    async def look_back(self, user: User) -> None:
        """A node that held the user alone until now publishes nothing for them before it hears of
        the new session:

        Look whether that lost anything.
        """
        await asyncio.sleep(LOOK_BACK_S)
        self.delivery.gaps.look_up([conv.id for conv in user.peers.values()])

    def release(self, users: Iterable[UserId]) -> None:
        """These users are not held any more."""
        self.bus.release(users)
        for user in users:
            self._presence.unhold(user)

    # ---- out -------------------------------------------------------------------------------------

    def channels(self, me: User | None, peer_id: UserId, peer: User | None) -> tuple[UserId, ...]:
        """Whose channels an entry of `me` to `peer_id` goes to; `peer`: as they are held here."""
        to_peer = self._away(peer_id, peer)
        if me is None or peer is me:
            return (peer_id,) if to_peer else ()
        if self._away(me.id, me):
            return (peer_id, me.id) if to_peer else (me.id,)
        return (peer_id,) if to_peer else ()

    def _away(self, id: UserId, user: User | None) -> bool:
        """The user may be on another node; `user`: as they are held here."""
        return user is None or not user.sessions or self._elsewhere(id)

    def entry(self, channels: tuple[UserId, ...], conv: Conversation, item: Item, payload: bytes) -> None:
        """The conversation's head, just delivered here; `payload`: its JSON without the cid."""
        data = self._codec.entry(conv.id, conv.head, conv.ts, conv.na, conv.nb, item.side, item.kind, item.cid, payload)
        for user in channels:
            self.bus.publish(user, data)

    def receipt(self, conv: Conversation, side: int, me: User) -> None:
        """The cursors of one side, just moved here."""
        peer_id = conv.peer(me.id)
        if channels := self.channels(me, peer_id, self._registry.users.get(peer_id)):
            data = self._codec.receipt(conv.id, side, *conv.cursor(side))
            for user in channels:
                self.bus.publish(user, data)

    def typing(self, conv: Conversation, side: int, payload: bytes) -> None:
        """To the peer alone."""
        peer_id = conv.a if side else conv.b
        if self._away(peer_id, self._registry.users.get(peer_id)):
            self.bus.publish(peer_id, self._codec.typing(conv.id, side, payload))

    # ---- in --------------------------------------------------------------------------------------

    def heard(self, user: UserId, data: bytes) -> None:
        """Something came on a user's channel."""
        if self._codec.mine(data):
            return
        if self._codec.foreign(data):
            self.other_log()
            return
        e = self._codec.decode(data)
        if e is None:
            right = False
        elif isinstance(e, Entry):
            right = self.delivery.heard(user, e)
        else:
            conv = self._registry.convs.get(e.conv)
            right = conv is None or user in (conv.a, conv.b)
            if conv is None or not right:
                pass
            elif isinstance(e, Receipt):
                self.delivery.moved(conv, e.side, e.delivered, e.read)
            else:
                self.typed(conv, e.side)
        if not right:
            self._garbage(user, data)

    def heard_presence(self, data: bytes) -> None:
        self.mirror.heard(data)

    def away(self) -> None:
        """The bus is gone: until it is back the feed alone tells, and more often."""
        self.wake_feed()

    def back(self) -> None:
        """The bus is connected anew. Entries and receipts that were missed the feed brings."""
        self.mirror.back()

    def _garbage(self, user: UserId, data: bytes) -> None:
        self._metrics.bus_garbage += 1
        if self._logged.take(self._now()):
            log.warning("bus.garbage", channel=user, version=data[0] if data else None, bytes=len(data))
