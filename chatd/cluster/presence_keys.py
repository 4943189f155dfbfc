"""The keys of presence in Redis: the scripts that read and write them, and checks of the answers.

    {p}:nodes       sorted set  incarnation -> when its lease was renewed, in ms by Redis's clock
    {p}:info        hash        incarnation -> JSON of what the node reports of itself
                                (presence_codec.Info and more)
    {p}:on:<inc.>   hash        user -> entry (wire/presence_codec.py)
                                "" -> number of the last batch in it
                                "\\1" -> number of its last write

The scripts and `chatd nodes` call an incarnation (one life of a node) `boot`.

A hash is written as one listing of all users, and then batch by batch. Field "" exists once the
listing is complete. Its number shows a hash that lost its last batches in a failover. A missing ""
shows a hash that was evicted and began again with a single field.

"\\1" makes a chain of the writes: each write names the one before it, and is refused if that is not
the last one. So a hash that has a write has all earlier ones. Without the chain, the first batch
after a failover gave its number to a hash that lacked the batch before, and no node saw the loss. A
late write of an earlier listing, from a connection that was given up, is refused in the same way.

All keys with these names belong to chatd: a script deletes a key of another type. Every answer is
checked before it is used. An answer that the script cannot give counts as an outage
(RedisUnavailable).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from chatd.cluster.leases import Lease
from chatd.cluster.redis.client import RedisClient, RedisUnavailable
from chatd.core.user_status import Remote
from chatd.ids import UserId
from chatd.wire import presence_codec

CALL_S: Final = 1.0  # the longest that a call may take
FORGET_LEASES: Final = 12  # after so many leases a dead node is removed from what `chatd nodes` lists
FUTURE_MS: Final = 60_000  # a lease this far ahead means that Redis's clock was set back

_OWN_TYPE: Final = """
local function own(key, kind)
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
    return found == kind
end
"""

# KEYS: nodes, info, own hash. ARGV: incarnation, info, lease in ms, whether to renew, leases until
# a dead node is forgotten, ms that the lease lasts beyond `lease ms`, number of our last batch, ms
# ahead of now that no lease can be.
#
# Returns Redis's time, the state of our lease (0: valid; 1: our hash has lost something; 2: our
# lease had lapsed), and for each node: incarnation, age of its lease in ms, info.
#
# One script, so that one clock judges all leases. ZADD is before any other write, because a full
# Redis refuses only the first write of a script: it must refuse the beats of all nodes, or the
# nodes whose beats succeed would declare the others dead. Scores in the future are written back as
# now: otherwise a node that died before Redis's clock was set back would stay listed for that long.
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

# KEYS: own hash. ARGV: number of this write, ms to live. Begins a listing in an empty hash.
BEGIN: Final = """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '\\1', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

# KEYS: own hash. ARGV: number of the write before, of this write, of the batch or '', ms to live,
# count of users who are here, user and entry of each, users who are not here.
# Returns 1 if written; 0: the hash is gone, or the write before is not its last one.
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
    """The answer of a beat. `state` of our own lease: STANDS, HASH_LOST or LAPSED."""

    state: int
    leases: list[Lease]


class Hash(NamedTuple):
    """Entries of some users in a node's hash; None for a user who is not in it.

    Unreadable entries are left out. `n`: number of the last batch in it; None: unreadable.
    """

    n: int | None
    answer: dict[UserId, Remote | None]


class PresenceKeys:
    """The keys of one prefix, for one node.

    Every method raises RedisUnavailable, or TimeoutError after `CALL_S`.
    """

    def __init__(self, redis_client: RedisClient, prefix: str, incarnation: str, lease_ms: int) -> None:
        self._redis_client, self._incarnation, self._lease_ms = redis_client, incarnation, lease_ms
        self._p = f"{{{prefix}}}:"
        self._own = self._p + "on:" + incarnation
        self._beat, self._begin, self._write = (redis_client.script(text) for text in (BEAT, BEGIN, WRITE))
        self._writes = 0  # number of the last write that was begun; the next one names it

    async def beat(self, info: bytes, *, renew: bool, grace_ms: int, n: int) -> Beat:
        """Renew our lease if it is valid or `renew` is set; read all leases. `n`: last batch."""
        keys = [self._p + "nodes", self._p + "info", self._own]
        async with asyncio.timeout(CALL_S):
            answer = await self._beat(
                keys, [self._incarnation, info, self._lease_ms, int(renew), FORGET_LEASES, grace_ms, n, FUTURE_MS]
            )
        return read_beat(answer)

    async def begin(self) -> None:
        """Empty our hash for a listing of all users."""
        self._writes += 1
        async with asyncio.timeout(CALL_S):
            await self._begin([self._own], [self._writes, self._lease_ms * 2])

    async def write(self, entries: Sequence[tuple[UserId, Remote]], n: int | None) -> None:
        """Write users' entries, and remove users who are offline.

        `n`: with these entries the hash contains all batches up to this one; None: it is not
        complete yet. After a write that failed, later ones are refused until `begin`.
        """
        here = [part for user, entry in entries if entry.here for part in (user, presence_codec.encode_entry(entry))]
        gone = [user for user, entry in entries if not entry.here]
        before, self._writes = self._writes, self._writes + 1
        args = [before, self._writes, "" if n is None else n, self._lease_ms * 2, len(here) // 2, *here, *gone]
        async with asyncio.timeout(CALL_S):
            if await self._write([self._own], args) != 1:
                raise RedisUnavailable("our hash is gone, or lacks the last write")

    async def read(self, incarnation: str, users: Sequence[UserId]) -> Hash | None:
        """Entries of users in a node's hash; None: it is not complete, and must not be used."""
        async with asyncio.timeout(CALL_S):
            answer = await self._redis_client.command("HMGET", self._p + "on:" + incarnation, "", *users)
        return read_hash(answer, users)


def read_beat(answer: Any) -> Beat:
    """Parse the answer of BEAT.

    Skips rows that no node of chatd has written. Raises RedisUnavailable if it is no such answer.
    """
    match answer:
        case [int(now_ms), (0 | 1 | 2) as state, [*rows]]:
            return Beat(state, [lease for row in rows if (lease := _lease(now_ms, row)) is not None])
    raise RedisUnavailable("no answer of the script that renews leases")


def _lease(now_ms: int, row: Any) -> Lease | None:
    match row:
        case [bytes(incarnation), int(age_ms), bytes(info)] if presence_codec.is_incarnation(incarnation):
            return Lease(incarnation.decode("ascii"), age_ms, now_ms - age_ms, presence_codec.read_info(info))
    return None


def read_hash(reply: Any, users: Sequence[UserId]) -> Hash | None:
    """Parse the answer of HMGET. Raises RedisUnavailable if it is no such answer."""
    if (
        not isinstance(reply, list)
        or len(reply) != len(users) + 1
        or any(not isinstance(value, bytes | None) for value in reply)
    ):
        raise RedisUnavailable("no answer of HMGET")
    mark, *values = reply
    if mark is None:
        return None
    answer: dict[UserId, Remote | None] = {}
    for user, value in zip(users, values, strict=True):
        entry = None if value is None else presence_codec.decode_entry(value)
        if value is None or entry is not None:
            answer[user] = entry
    return Hash(presence_codec.read_number(mark), answer)
