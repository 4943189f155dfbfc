"""Shares presence between nodes: who is online where.

    Presence (this node) ──take_dirty──► own hash `{p}:on:<incarnation>`, index, and the channel of
                                         each user ──► Presence.remote (nodes that keep the user)
    beat: renew the own lease, read all leases ──► a node died: remove its users
                                                   it listed its users again: read them
                                                   our lease had lapsed: write our hash again

Each node's own map is the truth. Redis holds a copy of it: one hash per node, which expires with
the node's lease, so no user outlives a node and nothing has to scan. Other nodes keep the states
only of users that they watch or hold. Their states stay right although pub/sub loses messages:

- What a user does is published on a channel of the user, by the script that writes it: nothing is
  written and not published. A node subscribes to the users that it keeps, and reads each of them
  once after that. If its subscription ends, or hears nothing, it reads all of them again. So what
  a node hears and reads depends on the users that it keeps, and not on the number of nodes.
- The batches of an incarnation are numbered, and a node that lists all users again counts its
  listings. A beat that reports another listing has the node's users read again.
- A hash holds the number of its last batch, and refuses a batch if it lacks the one before. The
  beat of its node compares the number, and lists all users again if Redis has lost some. Other
  nodes use a hash only if it is complete and not behind the batches they have received. A Redis
  that is empty or fell back is ignored, and the last known state stays.
- A lease has lapsed if it did not change while Redis was reachable for a whole lease (leases.py).
  No node is declared dead while Redis is away.
- A node that was itself stopped (its lease had lapsed, or its own clock jumped) lists its users
  again with higher versions, and reads the hashes of all others again.

A node of the release before publishes numbered batches on one channel for all, and knows no other.
While one is there, batches are published on that channel, too, and its batches are heard there:
after a hole in them, or a beat that reports a higher number, its hash is read again.

No answer of Redis ends a task here: each is checked (presence_keys.py), and a wrong one counts as
an outage.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import orjson
import structlog

from chatd.cluster.leases import BEATS, Lease, Leases, RemoteNode
from chatd.cluster.presence_keys import LAPSED, STANDS, Beat, PresenceKeys
from chatd.cluster.presence_reader import PresenceReader, ReadListener
from chatd.cluster.pubsub import PubSub, is_dropped
from chatd.cluster.redis.client import RedisClient, RedisUnavailable
from chatd.core.steady_time import Steady
from chatd.core.user_status import Remote
from chatd.ids import UserId
from chatd.metrics import Metrics
from chatd.presence import Presence
from chatd.wire import presence_codec

log = structlog.get_logger("mirror")  # the released name of this logger

FLUSH_S: Final = 0.02  # changes gather for this long
FLUSH_USERS: Final = 500  # users in one batch
SOON_S: Final = 0.02  # least time between two beats, however many are asked for
LEAVE_S: Final = 0.25  # for the last beat: a node must end within its drain although Redis hangs
TOUCH_S: Final = 5.0  # between two reports of activity, for users with devices on several nodes


class PresenceListener(ReadListener, Protocol):
    """Gets what changed on other nodes. None of these methods may raise or block."""

    def touch(self, users: Iterable[UserId], seconds: float) -> None:
        """Mark the devices of these users that were active in the last `seconds`."""


class PresenceSync:
    """Publishes our users' presence, and keeps that of other nodes.

    `run_beat`, `run_flush` and `reader.run` are its tasks. `facts` returns what `chatd nodes` shows
    of this node.
    """

    def __init__(
        self,
        redis_client: RedisClient,
        pubsub: PubSub,
        presence: Presence,
        metrics: Metrics,
        *,
        incarnation: str,
        prefix: str,
        lease_ms: int,
        name: str,
        now: Callable[[], float],
        now_ms: Callable[[], int],
        steady: Steady,
        facts: Callable[[], Mapping[str, object]],
    ) -> None:
        self._redis_client, self._pubsub, self._presence, self._metrics = redis_client, pubsub, presence, metrics
        self.incarnation, self._name, self._lease_s = incarnation, name, lease_ms / 1000
        self._now, self._now_ms, self._steady, self._facts = now, now_ms, steady, facts
        self._keys = PresenceKeys(redis_client, prefix, incarnation, lease_ms)
        self._leases = Leases(incarnation, name, self._lease_s)
        self.reader = PresenceReader(
            self._keys, self._leases, pubsub, presence, metrics, now_ms=now_ms, is_away=lambda: self.stale,
            again=self.back,
        )  # fmt: skip
        self._n = 0  # number of our last batch
        self._listing = 0  # number of our last listing of all users
        self._beaten_at = -math.inf
        self._through = False  # whether the last beat succeeded
        self._written = False  # whether our hash is complete
        self._dirty = asyncio.Event()  # there is something to publish
        presence.on_dirty(self._dirty.set)
        self._writing = asyncio.Lock()  # of our hash: a batch and a new listing must not mix
        self._lease_ms, self._grace_ms = lease_ms, 0
        self.tried = asyncio.Event()  # a first beat ended: we know who is where, or that Redis is away
        self._soon = asyncio.Event()  # a beat is wanted now
        self._touched_at = 0.0
        self._mode_asked_at = -math.inf
        self._leaving = False
        self._listed: frozenset[str] = frozenset()

    def listen(self, listener: PresenceListener) -> None:
        """Set who gets what changed on other nodes. Call it before the tasks run."""
        self.listener = self.reader.listener = listener

    @property
    def nodes(self) -> int:
        """How many other nodes are alive."""
        return len(self._leases.nodes)

    @property
    def listed(self) -> frozenset[str] | None:
        """Incarnations that Redis lists, lapsed ones too; None: Redis is away."""
        return None if self.stale else self._listed

    @property
    def stale(self) -> bool:
        """Whether Redis is away, so that presence of other nodes' users may be old."""
        return self._now() - self._beaten_at > self._lease_s

    # ---- out: our own users ----------------------------------------------------------------------

    async def run_flush(self) -> None:
        """Publish what changed, a batch at a time. Never returns."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(FLUSH_S)
            self._dirty.clear()
            async with self._writing:
                if not self._written:
                    # A beat will list all users who are here. Without this, changes of users who
                    # left would gather without a bound.
                    self._drop_dirty()
                    continue
                while batch := self._presence.take_dirty(FLUSH_USERS):
                    try:
                        await self._publish(batch)
                    except (RedisUnavailable, TimeoutError) as e:
                        self._written = False  # a listing that includes this batch is written when Redis is back
                        self._soon.set()
                        self._dirty.set()  # so that the rest is dropped
                        log.warning("presence.late", users=len(batch), reason=str(e) or "no answer")
                        break

    def _drop_dirty(self) -> None:
        while self._presence.take_dirty(FLUSH_USERS):
            pass

    async def _publish(self, batch: list[tuple[UserId, Remote]]) -> None:
        """Write a batch and its number to the hash, and publish each user on the user's channel.

        The hash is first, so that a node that misses the batch finds it in the hash.
        """
        n = self._n + 1
        messages = [
            (self._pubsub.status_channel(user), presence_codec.encode_batch(self.incarnation, n, [(user, said)]))
            for user, said in batch
            if not is_dropped()
        ]
        self._metrics.publishes_lost += len(batch) - len(messages)
        try:
            await self._keys.write(batch, n, messages)
        finally:
            # Not earlier, because a beat under way compares `_n` with the hash. Also after a
            # failure, because the write may have been done.
            self._n = n
        self._metrics.presence_batches += 1
        self._metrics.publishes += len(messages)
        if any(node.listing is None for node in self._leases.nodes.values()):
            self._pubsub.publish_presence(presence_codec.encode_batch(self.incarnation, n, batch))

    async def _rewrite(self) -> None:
        """List our users in the hash again: Redis lost it, or others may have declared us dead.

        Changes after the listing, removals included, stay dirty and are written after it.
        """
        async with self._writing:
            self._presence.republish(self._now_ms())
            self._drop_dirty()  # all of it is in the listing below, which nodes that see `n` read
            entries = list(self._presence.local_entries())
            await self._keys.begin()
            for at in range(0, len(entries), FLUSH_USERS):
                await self._keys.write(entries[at : at + FLUSH_USERS], None)
            n = self._n + 1  # a node that knows the number before reads the whole hash
            try:
                await self._keys.write((), n)
            finally:
                # Also after a failure: two listings must not share a number, or a failover from
                # the second to the first would not be seen
                self._n = n
            self._written = True
            self._listing += 1
        self._metrics.lease_rewrites += 1
        log.info("presence.written", users=len(entries))

    # ---- leases ----------------------------------------------------------------------------------

    async def run_beat(self) -> None:
        """Renew our lease and read all others'. Never returns."""
        while True:
            try:
                await self._beat_once()
                self._through = True
                self.reader.beaten()
            except (RedisUnavailable, TimeoutError) as e:
                if self._through:
                    log.warning("lease.late", reason=str(e) or "no answer")
                self._through = False
                self._metrics.lease_failures += 1
            self.tried.set()
            self.reader.let_go(self._now())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease_s / BEATS):
                    await self._soon.wait()
                await asyncio.sleep(SOON_S)  # bounds beats where forged batches ask for one each
            self._soon.clear()

    async def leave(self, grace_s: float) -> None:
        """Report that this node ends, and keep its lease for `grace_s`.

        Its users do not look offline for that time, in which they connect to other nodes. Call it
        last, when `run_beat` has ended. Never raises.
        """
        self._leaving, self._grace_ms = True, max(0, int(grace_s * 1000) - self._lease_ms)
        if self._written:
            with contextlib.suppress(RedisUnavailable, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._renew(renew=True)

    async def _beat_once(self) -> None:
        if self._now() - self._beaten_at > self._lease_s:
            self._written = False  # we were stopped or cut off: others may have declared us dead
            self._leases.all_stale()
        beat = await self._renew(renew=self._written)
        if beat.state == LAPSED:
            self._leases.doubt()
        if beat.state == LAPSED or not self._written:
            self._leases.all_stale()
        if beat.state != STANDS or not self._written:
            self._written = False
            await self._rewrite()
            beat = await self._renew(renew=True)
        now = self._beaten_at = self._now()
        self._judge(beat.leases, now)
        self._touch(now)
        await self._agree(now)

    async def _renew(self, *, renew: bool) -> Beat:
        about_us = {
            "name": self._name,
            "n": self._n,
            "listing": self._listing,
            "left": self._leaving,
            "grace_ms": self._grace_ms,
            "shards": self._redis_client.shards,
            "steady": [*self._steady.reading()],
        }
        return await self._keys.beat(
            orjson.dumps({**self._facts(), **about_us}), renew=renew, grace_ms=self._grace_ms, n=self._n
        )

    def _judge(self, leases: list[Lease], now: float) -> None:
        """Find new nodes, nodes whose hash must be read, and dead ones."""
        self._listed = frozenset(lease.incarnation for lease in leases)
        joined, namesakes, dead, steady = self._leases.judge(leases, now)
        if by_ms := self._steady.adjust(steady):
            log.info("clock.agreed", by_ms=by_ms)
            self._presence.shift(by_ms, self._now_ms())
        for incarnation, node in joined:
            log.info("node.joined", boot=incarnation, name=node.name)
        for incarnation in namesakes:
            log.warning(
                "node.same_name",
                name=self._name,
                boot=incarnation,
                remedy="give each its own --node-name; they work all the same",
            )
        for incarnation, node in dead:
            self._dead(incarnation, node, self._now_ms() - int((now - node.moved_at) * 1000))

    def _dead(self, incarnation: str, node: RemoteNode, seen_ms: int) -> None:
        changes = self._presence.forget_node(incarnation, self._now_ms(), seen_ms)
        if node.left:
            log.info("node.left", boot=incarnation, name=node.name, offline=len(changes))
        else:
            self._metrics.leases_lapsed += 1
            log.warning("node.dead", boot=incarnation, name=node.name, offline=len(changes))
        for change in changes:
            self.listener.announce(change)

    async def _agree(self, now: float) -> None:
        """Use sharded pub/sub once every node can.

        Nodes that decide differently do not receive each other's messages.
        """
        others = [node.shards for node in self._leases.nodes.values() if node.shards is not None]
        if self._redis_client.shards is False and any(others) and now - self._mode_asked_at > self._lease_s:
            self._mode_asked_at = now
            await self._redis_client.ask_shards()
        self._redis_client.agree(sharded=all(others))

    def _touch(self, now: float) -> None:
        if now - self._touched_at >= TOUCH_S:
            self._touched_at = now
            users = {user for node in self._leases.nodes for user in self._presence.users_of(node)}
            self.listener.touch(users, TOUCH_S)

    # ---- in: other nodes' users ------------------------------------------------------------------

    def heard(self, data: bytes) -> None:
        """A batch arrived on the channel of nodes of the release before."""
        batch = presence_codec.decode_batch(data)
        if batch is None:
            self._metrics.bus_garbage += 1
            return
        if batch.incarnation == self.incarnation:
            return
        known = batch.incarnation in self._leases.nodes
        in_order = self._leases.heard(batch.incarnation, batch.n, self._now())
        if in_order is False:
            return
        if in_order is None:
            self._metrics.presence_gaps += known
            self._soon.set()
        for user, entry in batch.users:
            self._apply(batch.incarnation, user, entry)

    def heard_status(self, user: UserId, data: bytes) -> None:
        """A batch arrived on the channel of a user's presence."""
        batch = presence_codec.decode_batch(data)
        if batch is None or [named for named, _ in batch.users] != [user]:
            self._metrics.bus_garbage += 1
            return
        if batch.incarnation == self.incarnation:
            return
        in_order = self._leases.heard_part(batch.incarnation, batch.n, self._now())
        if in_order is None:
            self._soon.set()
        if in_order is not False:
            self._apply(batch.incarnation, user, batch.users[0][1])

    def _apply(self, incarnation: str, user: UserId, entry: Remote) -> None:
        if self._presence.keeps(user):
            self.listener.announce(self._presence.remote(incarnation, user, entry, self._now_ms()))
            self.listener.devices_elsewhere(user)

    def back(self) -> None:
        """Pub/sub is connected again: any batch may have been missed."""
        self._leases.all_stale()
        self._soon.set()
