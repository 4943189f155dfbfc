"""The presence map, mirrored in Redis: who is where, over all nodes.

    Presence (this node) ──take_dirty──► own hash `{p}:on:<boot>` + numbered batch on the presence channel ──► Presence.remote (other nodes)
    beat: own lease renewed, all leases read ──► a node died: forget it │ a batch was missed: read its hash again │ we had lapsed: write ours anew

Truth is each node's own map; Redis holds a copy that dies with its node: one hash a node, which expires with the lease, so no user outlives a node
and nobody scans. Others keep states only of users they watch or hold. What keeps them right although pub/sub loses:

- batches of a boot are numbered; a hole, or a beat that tells a higher number, has its hash read again for the users kept here;
- a hash is believed only while its field "" is there: a Redis that came back empty says nothing, and the last state stands;
- a lease has lapsed only if it is older than `lease_ms` by Redis's clock *and* our own beats went through for a whole lease: while Redis is away, and
  just after, nobody is declared dead;
- whoever was held up itself (its lease had lapsed, or its own clock jumped) writes its hash anew with versions that rise, and reads all others again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson
import structlog

from chatd import gossip
from chatd.bus import Bus
from chatd.engine import Away, Engine
from chatd.ids import UserId
from chatd.metrics import Metrics
from chatd.presence import Change, Presence
from chatd.roster import Remote

log = structlog.get_logger("mirror")

BEATS: Final = 10  # a lease
FLUSH_S: Final = 0.02  # changes gather for so long
FLUSH_USERS: Final = 500  # a batch
READ_USERS: Final = 1_000  # fields a HMGET: some 0.5 ms of Redis
CALL_S: Final = 1.0
LEAVE_S: Final = 0.25  # at the end: the node must end within its drain, wherever Redis is
LOOK_S: Final = 0.25  # how long a hello or watch waits for Redis; what comes later is pushed
FORGET_LEASES: Final = 12  # leases after which a dead node leaves the list that `chatd nodes` shows
TOUCH_S: Final = 5.0  # activity of devices of users on several nodes is told this often

# KEYS: nodes, info, own hash; ARGV: boot, info, lease ms, whether to renew, leases until a dead node is forgotten, ms that the lease lasts beyond
# itself. Gives Redis's time, whether our lease had lapsed or our hash is gone, and all nodes: boot, age of its lease in ms, info. One script, so that
# one clock judges all. ZADD before any other write, because a full Redis refuses only the first one of a script: it must refuse the beats of all, or
# those that go through would declare the others dead.
BEAT: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local last = redis.call('ZSCORE', KEYS[1], ARGV[1])
local lapsed = 0
if not last or now - last > tonumber(ARGV[3]) or redis.call('EXISTS', KEYS[3]) == 0 then lapsed = 1 end
if lapsed == 0 or ARGV[4] == '1' then
    redis.call('ZADD', KEYS[1], now + ARGV[6], ARGV[1])
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
    redis.call('PEXPIRE', KEYS[3], ARGV[3] * 2 + ARGV[6])
end
for _, boot in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3] * ARGV[5])) do
    redis.call('ZREM', KEYS[1], boot)
    redis.call('HDEL', KEYS[2], boot)
end
local nodes = {}
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
    nodes[#nodes + 1] = { all[i], now - all[i + 1], redis.call('HGET', KEYS[2], all[i]) or '' }
end
return { now, lapsed, nodes }
"""


class Listener(Protocol):
    """Who hears of what changed on other nodes. None of these may raise or block."""

    def announce(self, change: Change | None) -> None: ...
    def devices_elsewhere(self, user: UserId) -> None:
        """Another node told of devices of a user who is kept here."""

    def touch(self, users: Iterable[UserId], seconds: float) -> None:
        """Say which devices of these users did something in the last `seconds`."""


@dataclass(slots=True)
class Peer:
    """Another node, as this one knows it."""

    n: int  # the last batch that was applied
    heard_at: float  # when its lease was last seen standing, or a batch came
    stale: bool = True  # its hash is to be read
    name: str = ""
    grace_ms: int = 0  # it has left, and its lease stands for so much longer
    renewed_ms: int = 0  # when its lease had last been renewed as we first saw it, by Redis's clock
    left: bool = False  # it has drained, and its lease is to lapse
    namesake: bool = False  # it has our own name, and that was told


class Mirror:
    """`run_beat`, `run_read` and `run_flush` are its tasks. `facts` gives what `chatd nodes` shows of this node."""

    def __init__(
        self, engine: Engine, bus: Bus, presence: Presence, metrics: Metrics, *, boot: str, prefix: str, lease_ms: int, name: str,
        now: Callable[[], float], now_ms: Callable[[], int], facts: Callable[[], Mapping[str, object]],
    ) -> None:  # fmt: skip
        self._engine, self._bus, self._presence, self._metrics = engine, bus, presence, metrics
        self.boot, self._name, self._lease_ms, self._lease_s = boot, name, lease_ms, lease_ms / 1000
        self._now, self._now_ms, self._facts = now, now_ms, facts
        self.listener: Listener
        self._p = f"{{{prefix}}}:"
        self._beat = engine.script(BEAT)
        self.peers: dict[str, Peer] = {}
        self._n = 0  # our last batch
        self._through_since = math.inf  # since when our beats have gone through
        self._beaten_at = -math.inf
        self._written = False  # our hash is whole
        self._grace_ms = 0
        self.tried = asyncio.Event()  # to beat: we know who is where, or that Redis is away
        self._soon = asyncio.Event()  # beat now
        self._to_read = asyncio.Event()  # a peer's hash
        self._asked: set[UserId] = set()
        self._looking: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[None] | None = None
        self._touched_at = 0.0
        self._leaving = False
        self._listed: frozenset[str] = frozenset()

    @property
    def listed(self) -> frozenset[str] | None:
        """The boots that Redis lists, also of leases that have lapsed; None: Redis is away."""
        return None if self.stale else self._listed

    @property
    def stale(self) -> bool:
        """Redis is away: what is known of other nodes' users may be old."""
        return self._now() - self._beaten_at > self._lease_s

    # ---- out: our own users -------------------------------------------------------------------------------------------------------

    async def run_flush(self) -> None:
        """Tell what changed, a batch at a time, for ever."""
        while True:
            await asyncio.sleep(FLUSH_S)
            if not self._written:  # the beat writes all who are here then; who has left is not to be kept for ever
                self._drop_dirty()
                continue
            while batch := self._presence.take_dirty(FLUSH_USERS):
                try:
                    await self._tell(batch)
                except (Away, TimeoutError) as e:
                    self._written = False  # written anew, with this in it, when Redis is back
                    self._soon.set()
                    log.warning("presence.late", users=len(batch), reason=str(e) or "no answer")
                    break

    def _drop_dirty(self) -> None:
        while self._presence.take_dirty(FLUSH_USERS):
            pass

    async def _tell(self, batch: list[tuple[UserId, Remote]]) -> None:
        """The hash before the channel: whoever misses the batch and reads the hash finds it there."""
        await self._write(batch)
        self._n += 1
        self._metrics.presence_batches += 1
        self._bus.publish_presence(gossip.encode_batch(self.boot, self._n, batch))

    async def _write(self, entries: list[tuple[UserId, Remote]]) -> None:
        key = self._p + "on:" + self.boot
        sets = {user: gossip.encode_entry(entry) for user, entry in entries if entry.here}
        gone = [user for user, entry in entries if not entry.here]
        if sets:
            await self._do("HSET", key, *(part for pair in sets.items() for part in pair))
        if gone:
            await self._do("HDEL", key, *gone)

    async def _do(self, *command: str | bytes | int) -> Any:
        async with asyncio.timeout(CALL_S):
            return await self._engine.command(*command)

    async def _rewrite(self) -> None:
        """Write our hash anew: Redis had lost it, or others may have declared us dead."""
        self._presence.bump(self._now_ms())
        self._drop_dirty()  # all of it is written below, and read by those whom the number tells
        key = self._p + "on:" + self.boot
        await self._do("UNLINK", key)
        entries = list(self._presence.local_entries())
        for at in range(0, len(entries), FLUSH_USERS):
            await self._write(entries[at : at + FLUSH_USERS])
        await self._do("HSET", key, "", self.boot)
        await self._do("PEXPIRE", key, self._lease_ms * 2)
        self._n += 1  # whoever knows the number before reads all of it
        self._written = True
        self._metrics.lease_rewrites += 1
        log.info("presence.written", users=len(entries))

    # ---- leases -------------------------------------------------------------------------------------------------------------------

    async def run_beat(self) -> None:
        """Renew the lease and look at all others', for ever."""
        while True:
            try:
                await self._beat_once()
            except (Away, TimeoutError) as e:
                if self._through_since != math.inf:
                    log.warning("lease.late", reason=str(e) or "no answer")
                self._through_since = math.inf
                self._metrics.lease_failures += 1
            self.tried.set()
            self._soon.clear()
            try:
                async with asyncio.timeout(self._lease_s / BEATS):
                    await self._soon.wait()
            except TimeoutError:
                pass

    async def leave(self, grace_s: float) -> None:
        """This node ends: for so long its users do not look offline, and come back elsewhere meanwhile.

        Call it last, when `run_beat` has ended. Never raises.
        """
        self._leaving, self._grace_ms = True, max(0, int(grace_s * 1000) - self._lease_ms)
        if self._written:
            with contextlib.suppress(Away, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._renew(renew=True)

    async def _beat_once(self) -> None:
        began = self._now()
        if began - self._beaten_at > self._lease_s:
            self._through_since = math.inf  # we were away ourselves: what we know of the others is as old
            self._written = False
        now_ms, lapsed, nodes = await self._renew(renew=self._written)
        if lapsed or not self._written:
            self._through_since = math.inf  # Redis may have lost everybody's: give them the time of a lease, too
            await self._rewrite()
            now_ms, _, nodes = await self._renew(renew=True)
        now = self._beaten_at = self._now()
        if self._through_since == math.inf:
            self._through_since = began
            for peer in self.peers.values():
                peer.stale = True
        self._judge(nodes, now, now_ms)
        self._touch(now)
        if any(peer.stale for peer in self.peers.values()):
            self._to_read.set()

    async def _renew(self, *, renew: bool) -> tuple[int, bool, list[tuple[str, int, dict[str, Any]]]]:
        info = orjson.dumps({"name": self._name, "n": self._n, "left": self._leaving, "grace_ms": self._grace_ms, **self._facts()})
        keys = [self._p + "nodes", self._p + "info", self._p + "on:" + self.boot]
        async with asyncio.timeout(CALL_S):
            now_ms, lapsed, nodes = await self._beat(keys, [self.boot, info, self._lease_ms, int(renew), FORGET_LEASES, self._grace_ms])
        return int(now_ms), bool(lapsed), [(boot.decode(), int(age), gossip.decode_info(info)) for boot, age, info in nodes]

    def _judge(self, nodes: list[tuple[str, int, dict[str, Any]]], now: float, now_ms: int) -> None:
        """Who is there, who has news, who is dead."""
        ages = {boot: age for boot, age, _ in nodes}
        self._listed = frozenset(ages)
        standing = {boot: info for boot, age, info in nodes if boot != self.boot and age <= self._lease_ms}
        for boot, info in standing.items():
            peer = self.peers.get(boot)
            n = info.get("n", 0)
            if peer is None:
                peer = self.peers[boot] = Peer(n, now, name=str(info.get("name", "")))
                log.info("node.joined", boot=boot, name=peer.name)
            elif n > peer.n:
                peer.n, peer.stale = n, True
            renewed_ms = now_ms - ages[boot]
            peer.renewed_ms = peer.renewed_ms or renewed_ms
            # One that renews its lease while we are here; our own last life does not.
            if info.get("name") == self._name and renewed_ms > peer.renewed_ms and not peer.namesake:
                peer.namesake = True
                log.warning("node.same_name", name=self._name, boot=boot, remedy="give each its own --node-name; they work all the same")
            peer.left = info.get("left") is True
            peer.heard_at, peer.name, peer.grace_ms = now, str(info.get("name", "")), info.get("grace_ms", 0)
        if now - self._through_since < self._lease_s:
            return
        for boot, peer in list(self.peers.items()):
            if boot not in standing and now - peer.heard_at > (0 if boot in ages else self._lease_s):
                self._dead(boot, peer, self._now_ms() - ages.get(boot, self._lease_ms) - peer.grace_ms)

    def _dead(self, boot: str, peer: Peer, seen_ms: int) -> None:
        del self.peers[boot]
        changes = self._presence.forget_boot(boot, self._now_ms(), seen_ms)
        if peer.left:
            log.info("node.left", boot=boot, name=peer.name, offline=len(changes))
        else:
            self._metrics.leases_lapsed += 1
            log.warning("node.dead", boot=boot, name=peer.name, offline=len(changes))
        for change in changes:
            self.listener.announce(change)

    def _touch(self, now: float) -> None:
        if now - self._touched_at >= TOUCH_S:
            self._touched_at = now
            self.listener.touch({user for boot in self.peers for user in self._presence.known(boot)}, TOUCH_S)

    # ---- in: other nodes' users ----------------------------------------------------------------------------------------------------

    def heard(self, data: bytes) -> None:
        """A batch came on the presence channel."""
        batch = gossip.decode_batch(data)
        if batch is None:
            self._metrics.bus_garbage += 1
            return
        if batch.boot == self.boot:
            return
        peer = self.peers.get(batch.boot)
        if peer is None:
            peer = self.peers[batch.boot] = Peer(batch.n, self._now())
            self._soon.set()
        elif batch.n <= peer.n:
            return  # late: what it told has been read from the hash, or is being
        elif batch.n > peer.n + 1:
            peer.stale = True
            self._metrics.presence_gaps += 1
            self._soon.set()
        peer.n = batch.n
        for user, entry in batch.users:
            self._apply(batch.boot, user, entry)

    def _apply(self, boot: str, user: UserId, entry: Remote) -> None:
        if self._presence.keeps(user):
            self.listener.announce(self._presence.remote(boot, user, entry, self._now_ms()))
            self.listener.devices_elsewhere(user)

    def back(self) -> None:
        """The bus is connected anew: any batch may have been missed."""
        for peer in self.peers.values():
            peer.stale = True
        self._soon.set()

    async def run_read(self) -> None:
        """Read the hashes of peers whose news were missed, for ever. Not as a part of the beat: it may take longer than a lease."""
        while True:
            await self._to_read.wait()
            self._to_read.clear()
            for boot, peer in list(self.peers.items()):
                if peer.stale:
                    with contextlib.suppress(Away, TimeoutError):  # it stays stale: the next beat asks again
                        await self._read_again(boot, peer)

    async def _read_again(self, boot: str, peer: Peer) -> None:
        """Read a node's hash for all users that are kept here."""
        peer.stale = False
        self._metrics.presence_reads += 1
        users = list(self._presence.wanted())
        try:
            for at in range(0, len(users), READ_USERS):
                await self._read(boot, users[at : at + READ_USERS])
        except (Away, TimeoutError):
            peer.stale = True
            raise

    async def _read(self, boot: str, users: list[UserId]) -> None:
        """Ask a node's hash about users. Raises Away."""
        asked = self._presence.asked(boot)
        values = await self._do("HMGET", self._p + "on:" + boot, "", *users)
        if values[0] is None or boot not in self.peers:
            return  # it has not been written yet, or Redis has lost it: it says nothing, and the last word stands
        answer: dict[UserId, Remote | None] = {}
        for user, value in zip(users, values[1:], strict=True):
            entry = None if value is None else gossip.decode_entry(value)
            if value is None or entry is not None:
                answer[user] = entry
        for change in self._presence.resync(boot, answer, asked, self._now_ms()):
            self.listener.announce(change)
        for user in users:
            if self._presence.elsewhere(user):
                self.listener.devices_elsewhere(user)

    # ---- questions of hello and watch ----------------------------------------------------------------------------------------------

    async def look(self, users: Iterable[UserId]) -> None:
        """Have what other nodes say of users who are kept from now on; what takes longer than `LOOK_S` comes as a push.

        One question for all that ask at the same time.
        """
        if not self.peers or self.stale:
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
                    for boot in list(self.peers):
                        for at in range(0, len(users), READ_USERS):
                            await self._read(boot, users[at : at + READ_USERS])
                except (Away, TimeoutError):
                    self.back()
                finally:
                    if not answer.done():
                        answer.set_result(None)
        finally:
            self._looking = None
