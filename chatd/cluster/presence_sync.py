"""The presence map, mirrored in Redis: who is where, over all nodes.

    Presence (this node) ──take_dirty──► own hash `{p}:on:<boot>` + numbered batch on the presence channel ──► Presence.remote (other nodes)
    beat: own lease renewed, all leases read ──► a node died: forget it │ a batch was missed: read its hash again │ we had lapsed: write ours anew

Truth is each node's own map; Redis holds a copy that dies with its node: one hash a node, which
expires with the lease, so no user outlives a node and nobody scans. Others keep states only of
users they watch or hold. What keeps them right although pub/sub loses:

- batches of a boot are numbered; a hole, or a beat that says a higher number, has its hash read
  again for the users kept here;
- a hash holds the number of its last batch, and takes no batch where it lacks the one before. Its
  node's beat compares the number, and lists all users again where Redis has lost some; other nodes
  believe a hash only if it is whole and not behind what they have heard: a Redis that is empty or
  fell back says nothing, and the last state stands;
- a lease has lapsed if it did not move while Redis was reachable for a whole lease
  (cluster/leases.py): while Redis is away nobody is declared dead;
- a node that was held up itself (its lease had lapsed, or its own clock jumped) lists its users
  again with versions that rise, and reads all others again.

No answer of Redis ends a task here: each is checked (cluster/presence_keys.py), and what is no
answer is an outage.
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
from chatd.cluster.presence_keys import LAPSED, STANDS, Beat, Keys
from chatd.cluster.pubsub import Bus
from chatd.cluster.redis.client import Away, Engine
from chatd.core.steady_time import Steady
from chatd.core.user_status import Remote
from chatd.ids import UserId
from chatd.metrics import Metrics
from chatd.presence import Change, Presence
from chatd.wire import presence_codec

log = structlog.get_logger("mirror")

FLUSH_S: Final = 0.02  # changes gather for so long
FLUSH_USERS: Final = 500  # a batch
READ_USERS: Final = 1_000  # fields a HMGET: some 0.5 ms of Redis
SOON_S: Final = 0.02  # between two beats, whoever asks for one
LEAVE_S: Final = 0.25  # at the end: the node must end within its drain, wherever Redis is
LOOK_S: Final = 0.25  # how long a hello or watch waits for Redis; what arrives later is pushed
TOUCH_S: Final = 5.0  # activity of devices of users on several nodes is published this often


class Listener(Protocol):
    """Who hears of what changed on other nodes. None of these may raise or block."""

    def announce(self, change: Change | None) -> None: ...
    def devices_elsewhere(self, user: UserId) -> None:
        """Another node told of devices of a user who is kept here."""

    def touch(self, users: Iterable[UserId], seconds: float) -> None:
        """Say which devices of these users did something in the last `seconds`."""


class Mirror:
    """`run_beat`, `run_read` and `run_flush` are its tasks.

    `facts` gives what `chatd nodes` shows of this node.
    """

    def __init__(
        self,
        engine: Engine,
        bus: Bus,
        presence: Presence,
        metrics: Metrics,
        *,
        boot: str,
        prefix: str,
        lease_ms: int,
        name: str,
        now: Callable[[], float],
        now_ms: Callable[[], int],
        steady: Steady,
        facts: Callable[[], Mapping[str, object]],
    ) -> None:
        self._engine, self._bus, self._presence, self._metrics = engine, bus, presence, metrics
        self.boot, self._name, self._lease_s = boot, name, lease_ms / 1000
        self._now, self._now_ms, self._steady, self._facts = now, now_ms, steady, facts
        self.listener: Listener
        self._keys = Keys(engine, prefix, boot, lease_ms)
        self._leases = Leases(boot, name, self._lease_s)
        self._n = 0  # our last batch
        self._beaten_at = -math.inf
        self._through = False  # the last beat went through
        self._written = False  # our hash is whole
        self._dirty = asyncio.Event()  # something is to be published
        presence.on_dirty(self._dirty.set)
        self._writing = asyncio.Lock()  # of the hash: a batch and a new listing must not mix
        self._lease_ms, self._grace_ms = lease_ms, 0
        self.tried = asyncio.Event()  # to beat: we know who is where, or that Redis is away
        self._soon = asyncio.Event()  # beat now
        self._to_read = asyncio.Event()  # a remote node's hash
        self._asked: set[UserId] = set()
        self._looking: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[None] | None = None
        self._touched_at = 0.0
        self._mode_asked_at = -math.inf
        self._leaving = False
        self._listed: frozenset[str] = frozenset()

    @property
    def nodes(self) -> int:
        """How many other nodes live."""
        return len(self._leases.nodes)

    @property
    def listed(self) -> frozenset[str] | None:
        """The boots that Redis lists, also of leases that have lapsed; None: Redis is away."""
        return None if self.stale else self._listed

    @property
    def stale(self) -> bool:
        """Redis is away: what is known of other nodes' users may be old."""
        return self._now() - self._beaten_at > self._lease_s

    # ---- out: our own users ----------------------------------------------------------------------

    async def run_flush(self) -> None:
        """Publish what changed, a batch at a time, for ever."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(FLUSH_S)
            self._dirty.clear()
            async with self._writing:
                if not self._written:  # the beat lists all who are here then; who has left is not to be kept for ever
                    self._drop_dirty()
                    continue
                while batch := self._presence.take_dirty(FLUSH_USERS):
                    try:
                        await self._tell(batch)
                    except (Away, TimeoutError) as e:
                        self._written = False  # listed again, with this in it, when Redis is back
                        self._soon.set()
                        self._dirty.set()  # what was not taken is to be dropped
                        log.warning("presence.late", users=len(batch), reason=str(e) or "no answer")
                        break

    def _drop_dirty(self) -> None:
        while self._presence.take_dirty(FLUSH_USERS):
            pass

    async def _tell(self, batch: list[tuple[UserId, Remote]]) -> None:
        """The hash before the channel: a node that misses the batch and reads the hash finds it there.

        Its number stands in the hash with it.
        """
        n = self._n + 1
        try:
            await self._keys.write(batch, n)
        finally:
            # Not before, for a beat under way compares it with the hash; also if it failed, for it
            # may have been done
            self._n = n
        self._metrics.presence_batches += 1
        self._bus.publish_presence(presence_codec.encode_batch(self.boot, n, batch))

    async def _rewrite(self) -> None:
        """List our users in the hash again: Redis had lost it, or others may have declared us dead.

        Whatever changes from the listing on stays dirty and is written after it, removals too.
        """
        async with self._writing:
            self._presence.republish(self._now_ms())
            self._drop_dirty()  # all of it is listed below, and read by those who see the number
            entries = list(self._presence.local_entries())
            await self._keys.begin()
            for at in range(0, len(entries), FLUSH_USERS):
                await self._keys.write(entries[at : at + FLUSH_USERS], None)
            n = self._n + 1  # whoever knows the number before reads all of it
            try:
                await self._keys.write((), n)
            finally:
                # Also if it failed: no two listings have one number, or a failover from the second
                # to the first showed nothing
                self._n = n
            self._written = True
        self._metrics.lease_rewrites += 1
        log.info("presence.written", users=len(entries))

    # ---- leases ----------------------------------------------------------------------------------

    async def run_beat(self) -> None:
        """Renew the lease and look at all others', for ever."""
        while True:
            try:
                await self._beat_once()
                self._through = True
            except (Away, TimeoutError) as e:
                if self._through:
                    log.warning("lease.late", reason=str(e) or "no answer")
                self._through = False
                self._metrics.lease_failures += 1
            self.tried.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease_s / BEATS):
                    await self._soon.wait()
                await asyncio.sleep(SOON_S)  # made-up batches, each of which asks for a beat, get no more than so many
            self._soon.clear()

    async def leave(self, grace_s: float) -> None:
        """This node ends: for so long its users do not look offline, and come back elsewhere by
        then.

        Call it last, when `run_beat` has ended. Never raises.
        """
        self._leaving, self._grace_ms = True, max(0, int(grace_s * 1000) - self._lease_ms)
        if self._written:
            with contextlib.suppress(Away, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._renew(renew=True)

    async def _beat_once(self) -> None:
        if self._now() - self._beaten_at > self._lease_s:
            self._written = False  # we were away ourselves: others may have declared us dead
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
        if any(node.stale for node in self._leases.nodes.values()):
            self._to_read.set()
        await self._agree(now)

    async def _renew(self, *, renew: bool) -> Beat:
        said = {
            "name": self._name,
            "n": self._n,
            "left": self._leaving,
            "grace_ms": self._grace_ms,
            "shards": self._engine.shards,
            "steady": [*self._steady.reading()],
        }
        return await self._keys.beat(
            orjson.dumps({**self._facts(), **said}), renew=renew, grace_ms=self._grace_ms, n=self._n
        )

    def _judge(self, leases: list[Lease], now: float) -> None:
        """Who is there, who has news, who is dead."""
        self._listed = frozenset(lease.boot for lease in leases)
        joined, namesakes, dead, steady = self._leases.judge(leases, now)
        if by_ms := self._steady.adjust(steady):
            log.info("clock.agreed", by_ms=by_ms)
            self._presence.shift(by_ms, self._now_ms())
        for boot, node in joined:
            log.info("node.joined", boot=boot, name=node.name)
        for boot in namesakes:
            log.warning(
                "node.same_name",
                name=self._name,
                boot=boot,
                remedy="give each its own --node-name; they work all the same",
            )
        for boot, node in dead:
            self._dead(boot, node, self._now_ms() - int((now - node.moved_at) * 1000))

    def _dead(self, boot: str, node: RemoteNode, seen_ms: int) -> None:
        changes = self._presence.forget_node(boot, self._now_ms(), seen_ms)
        if node.left:
            log.info("node.left", boot=boot, name=node.name, offline=len(changes))
        else:
            self._metrics.leases_lapsed += 1
            log.warning("node.dead", boot=boot, name=node.name, offline=len(changes))
        for change in changes:
            self.listener.announce(change)

    async def _agree(self, now: float) -> None:
        """Sharded pub/sub is used once every node can: nodes that decided differently would not
        hear each other.
        """
        others = [node.shards for node in self._leases.nodes.values() if node.shards is not None]
        if self._engine.shards is False and any(others) and now - self._mode_asked_at > self._lease_s:
            self._mode_asked_at = now
            await self._engine.ask_shards()
        self._engine.agree(sharded=all(others))

    def _touch(self, now: float) -> None:
        if now - self._touched_at >= TOUCH_S:
            self._touched_at = now
            self.listener.touch({user for boot in self._leases.nodes for user in self._presence.users_of(boot)}, TOUCH_S)

    # ---- in: other nodes' users ------------------------------------------------------------------

    def heard(self, data: bytes) -> None:
        """A batch came on the presence channel."""
        batch = presence_codec.decode_batch(data)
        if batch is None:
            self._metrics.bus_garbage += 1
            return
        if batch.incarnation == self.boot:
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

    def _apply(self, boot: str, user: UserId, entry: Remote) -> None:
        if self._presence.keeps(user):
            self.listener.announce(self._presence.remote(boot, user, entry, self._now_ms()))
            self.listener.devices_elsewhere(user)

    def back(self) -> None:
        """The bus is connected again: any batch may have been missed."""
        self._leases.all_stale()
        self._soon.set()

    async def run_read(self) -> None:
        """Read the hashes of nodes whose batches were missed, for ever.

        Not as a part of the beat: it may take longer than a lease.
        """
        while True:
            await self._to_read.wait()
            self._to_read.clear()
            for boot, node in list(self._leases.nodes.items()):
                if node.stale:
                    with contextlib.suppress(Away, TimeoutError):  # it stays stale: the next beat asks again
                        await self._read_again(boot, node)

    async def _read_again(self, boot: str, node: RemoteNode) -> None:
        """Read a node's hash for all users that are kept here."""
        node.stale = False
        self._metrics.presence_reads += 1
        users = list(self._presence.kept_users())
        try:
            for at in range(0, len(users), READ_USERS):
                await self._read(boot, users[at : at + READ_USERS])
        except (Away, TimeoutError):
            node.stale = True
            raise

    async def _read(self, boot: str, users: list[UserId]) -> None:
        """Ask a node's hash about users. Raises Away."""
        asked = self._presence.begin_read(boot)
        said = await self._keys.read(boot, users)
        node = self._leases.nodes.get(boot)
        if said is None or node is None:
            return  # it has not been written yet, or Redis has lost it: it says nothing, and the last word stands
        if said.n is not None and said.n < node.n:
            # Redis fell back behind what the node has published: its owner will see that, and list
            # it again
            node.stale = True
            return
        for change in self._presence.resync(boot, said.answer, asked, self._now_ms()):
            self.listener.announce(change)
        for user in users:
            if self._presence.elsewhere(user):
                self.listener.devices_elsewhere(user)

    # ---- questions of hello and watch ------------------------------------------------------------

    async def look(self, users: Iterable[UserId]) -> None:
        """Have what other nodes say of users who are kept from now on; what takes longer than
        `LOOK_S` comes as a push.

        One question for all that ask at the same time.
        """
        if not self._leases.nodes or self.stale:
            return  # when Redis is back all are asked about
        self._asked.update(users)
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
        answer = self._answer
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        await asyncio.wait([answer], timeout=LOOK_S)

    async def _look(self) -> None:
        try:
            while self._answer is not None:
                users, self._asked = list(self._asked), set()
                answer, self._answer = self._answer, None
                try:
                    for boot in list(self._leases.nodes):
                        for at in range(0, len(users), READ_USERS):
                            await self._read(boot, users[at : at + READ_USERS])
                except (Away, TimeoutError):
                    self.back()
                finally:
                    if not answer.done():
                        answer.set_result(None)
        finally:
            self._looking = None
