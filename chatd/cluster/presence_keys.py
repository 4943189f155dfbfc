"""Presence's keys in Redis: the scripts that read and write them, and their answers, checked.

    {p}:nodes       sorted set  boot -> when its lease was renewed, in ms by Redis's clock
    {p}:info        hash        boot -> JSON of what the node says of itself (gossip.Info and more)
    {p}:on:<boot>   hash        user -> entry (wire/presence_codec.py); "" -> number of the last batch in it;
                                "\\1" -> the last write in it

A hash is written as one listing of all users and then batch by batch. Field "" stands once it is
whole. Its number shows a hash that lost its last batches by a failover, and its absence one that
was evicted and began again with a single field. "\\1" makes a chain of the writes: each names the
one that it follows, and is refused where that is not the last one. So a hash that has a write has
all before it. Without the chain the first batch after a failover gave its number to a hash that
lacked the batch before: nobody saw the loss, and it stayed. A write of an earlier listing that
arrives late, from a connection that was given up, is refused likewise.

Whatever stands under these names is ours. A key of another type is taken out by whichever script
meets it. Every answer is checked before it is used: what is no answer of the script is an outage
(Away), as if there had been none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from chatd.cluster.leases import Lease
from chatd.cluster.redis.client import Away, Engine
from chatd.core.user_status import Remote
from chatd.ids import UserId
from chatd.wire import presence_codec

CALL_S: Final = 1.0
FORGET_LEASES: Final = 12  # leases after which a dead node leaves the list that `chatd nodes` shows
FUTURE_MS: Final = 60_000  # no lease ends so far ahead: Redis's clock was set back

_OWN_TYPE: Final = """
local function own(key, kind)
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
    return found == kind
end
"""

# KEYS: nodes, info, own hash; ARGV: boot, info, lease ms, whether to renew, leases until a dead
# node is forgotten, ms that the lease lasts beyond itself, number of our last batch, ms ahead of
# now that no lease can be. Gives Redis's time, what became of ours (0: it stands; 1: our hash has
# lost something; 2: our lease had lapsed), and all nodes: boot, age of its lease in ms, info. One
# script, so that one clock judges all. ZADD before any other write, because a full Redis refuses
# only the first one of a script: it must refuse the beats of all, or those that go through would
# declare the others dead. Scores of the future are written back as now: else a node that died
# before Redis's clock was set back would stand for as long.
BEAT: Final = (
    _OWN_TYPE
    + """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
own(KEYS[1], 'zset')
own(KEYS[2], 'hash')
local last = redis.call('ZSCORE', KEYS[1], ARGV[1])
local state = 0
if not last or now - last > tonumber(ARGV[3]) then
    state = 2
elseif not own(KEYS[3], 'hash') or (tonumber(redis.call('HGET', KEYS[3], '')) or -1) < tonumber(ARGV[7]) then
    state = 1
end
if state == 0 or ARGV[4] == '1' then
    redis.call('ZADD', KEYS[1], now + ARGV[6], ARGV[1])
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
    redis.call('PEXPIRE', KEYS[3], ARGV[3] * 2 + ARGV[6])
end
for _, boot in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3] * ARGV[5])) do
    redis.call('ZREM', KEYS[1], boot)
    redis.call('HDEL', KEYS[2], boot)
end
for _, boot in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now + math.max(ARGV[3] * ARGV[5], ARGV[8]), '+inf')) do
    redis.call('ZADD', KEYS[1], now, boot)
end
local nodes = {}
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
    nodes[#nodes + 1] = { all[i], now - all[i + 1], redis.call('HGET', KEYS[2], all[i]) or '' }
end
return { now, state, nodes }
"""
)

# KEYS: own hash; ARGV: this write, ms to live. Begins a listing: nothing else is in it.
BEGIN: Final = """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '\\1', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

# KEYS: own hash; ARGV: the write before, this write, number of the batch or '', ms to live, count
# of users who are here, user and entry of each, users who are not. 0: the hash is gone, or the
# write before is not its last one.
WRITE: Final = """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' or redis.call('HGET', KEYS[1], '\\1') ~= ARGV[1] then return 0 end
local last = 5 + 2 * ARGV[5]
redis.call('HSET', KEYS[1], '\\1', ARGV[2], unpack(ARGV, 6, last))
if #ARGV > last then redis.call('HDEL', KEYS[1], unpack(ARGV, last + 1)) end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], '', ARGV[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""

STANDS, HASH_LOST, LAPSED = 0, 1, 2


class Beat(NamedTuple):
    """What a beat found. `state` of our own lease: STANDS, HASH_LOST, LAPSED."""

    state: int
    leases: list[Lease]


class Hash(NamedTuple):
    """What a node's hash has of some users, None for who is not in it; entries that could not be
    read are left out. `n`: its last batch, if it says.
    """

    n: int | None
    answer: dict[UserId, Remote | None]


class Keys:
    """The keys of one prefix, for one node. Every method raises Away, or TimeoutError after CALL_S."""

    def __init__(self, engine: Engine, prefix: str, boot: str, lease_ms: int) -> None:
        self._engine, self._boot, self._lease_ms = engine, boot, lease_ms
        self._p = f"{{{prefix}}}:"
        self._own = self._p + "on:" + boot
        self._beat, self._begin, self._write = engine.script(BEAT), engine.script(BEGIN), engine.script(WRITE)
        self._writes = 0  # begun so far; the last one is what the next must follow

    async def beat(self, info: bytes, *, renew: bool, grace_ms: int, n: int) -> Beat:
        keys = [self._p + "nodes", self._p + "info", self._own]
        async with asyncio.timeout(CALL_S):
            said = await self._beat(
                keys, [self._boot, info, self._lease_ms, int(renew), FORGET_LEASES, grace_ms, n, FUTURE_MS]
            )
        return read_beat(said)

    async def begin(self) -> None:
        """Empty our hash, for a listing of all users."""
        self._writes += 1
        async with asyncio.timeout(CALL_S):
            await self._begin([self._own], [self._writes, self._lease_ms * 2])

    async def write(self, entries: Sequence[tuple[UserId, Remote]], n: int | None) -> None:
        """Write users' entries, or take out those who are offline; `n`: with them the hash has all
        up to this batch.

        After one that was not done the next is refused, until `begin`.
        """
        here = [part for user, entry in entries if entry.here for part in (user, presence_codec.encode_entry(entry))]
        gone = [user for user, entry in entries if not entry.here]
        before, self._writes = self._writes, self._writes + 1
        args = [before, self._writes, "" if n is None else n, self._lease_ms * 2, len(here) // 2, *here, *gone]
        async with asyncio.timeout(CALL_S):
            if await self._write([self._own], args) != 1:
                raise Away("our hash is gone, or lacks what was written last")

    async def read(self, boot: str, users: Sequence[UserId]) -> Hash | None:
        """What a node's hash has of users; None: it is not whole, and says nothing."""
        async with asyncio.timeout(CALL_S):
            said = await self._engine.command("HMGET", self._p + "on:" + boot, "", *users)
        return read_hash(said, users)


def read_beat(said: Any) -> Beat:
    """BEAT's answer. Rows that no node of ours has written are passed over. Raises Away."""
    match said:
        case [int(now_ms), (0 | 1 | 2) as state, [*rows]]:
            return Beat(state, [lease for row in rows if (lease := _lease(now_ms, row)) is not None])
    raise Away("no answer of the script that renews leases")


def _lease(now_ms: int, row: Any) -> Lease | None:
    match row:
        case [bytes(boot), int(age_ms), bytes(info)] if presence_codec.is_incarnation(boot):
            return Lease(boot.decode("ascii"), age_ms, now_ms - age_ms, presence_codec.read_info(info))
    return None


def read_hash(said: Any, users: Sequence[UserId]) -> Hash | None:
    """HMGET's answer. Raises Away."""
    if (
        not isinstance(said, list)
        or len(said) != len(users) + 1
        or any(not isinstance(value, bytes | None) for value in said)
    ):
        raise Away("no answer of HMGET")
    mark, *values = said
    if mark is None:
        return None
    answer: dict[UserId, Remote | None] = {}
    for user, value in zip(users, values, strict=True):
        entry = None if value is None else presence_codec.decode_entry(value)
        if value is None or entry is not None:
            answer[user] = entry
    return Hash(presence_codec.read_number(mark), answer)
