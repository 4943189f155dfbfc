"""The keys of presence in Redis: the scripts that read and write them, and checks of the answers.

    {p}:nodes       sorted set  incarnation -> when its lease was renewed, in ms by Redis's clock
    {p}:info        hash        incarnation -> JSON of what the node reports of itself
                                (presence_codec.Info and more)
    {p}:on:<inc.>   hash        user -> entry (wire/presence_codec.py)
                                "" -> number of the last batch in it
                                "\\1" -> number of its last write
    {p}:where       hash        user -> incarnations that have the user in their hash, one behind
                                        the other
                                "\\1" + incarnation -> there from the beginning of its listing on
    {channel}:p:{p}:<user>      channel of the user's presence: batches with this user alone

The scripts and `chatd nodes` call an incarnation (one life of a node) `boot`.

A hash is written as one listing of all users, and then batch by batch. Field "" exists once the
listing is complete. Its number shows a hash that lost its last batches in a failover. A missing ""
shows a hash that was evicted and began again with a single field.

"\\1" makes a chain of the writes: each write names the one before it, and is refused if that is not
the last one. So a hash that has a write has all earlier ones. Without the chain, the first batch
after a failover gave its number to a hash that lacked the batch before, and no node saw the loss. A
late write of an earlier listing, from a connection that was given up, is refused in the same way.

`where` is an index over all hashes, so that a read of some users costs by where they are and not by
the number of nodes. The script that writes a user's entry writes the index, too, and publishes the
entry on the user's channel: what is in a hash was published. An index that was evicted lacks the
marker of each incarnation; then the hash counts as lost, and all users are listed again. What dead
nodes leave in the index is swept: `sweep` takes out incarnations that have no hash.

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
from chatd.cluster.redis.connection import Word
from chatd.core.user_status import Remote
from chatd.ids import UserId
from chatd.wire import presence_codec

CALL_S: Final = 1.0  # the longest that a call may take
FORGET_LEASES: Final = 12  # after so many leases a dead node is removed from what `chatd nodes` lists
SWEEP_FIELDS: Final = 1_000  # of the index, in one sweep: some 0.5 ms of Redis
FUTURE_MS: Final = 60_000  # a lease this far ahead means that Redis's clock was set back

_OWN_TYPE: Final = """
local function own(key, kind)
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
    return found == kind
end
"""

_NODES: Final = """
local function others(nodes, boot)
    local found = {}
    for at = 1, #nodes, 16 do
        local one = string.sub(nodes, at, at + 15)
        if one ~= boot then found[#found + 1] = one end
    end
    return found
end
"""

# KEYS: nodes, info, own hash, index. ARGV: incarnation, info, lease in ms, whether to renew, leases
# until a dead node is forgotten, ms that the lease lasts beyond `lease ms`, number of our last
# batch, ms ahead of now that no lease can be.
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
elseif not own(KEYS[4], 'hash') or redis.call('HEXISTS', KEYS[4], '\\1' .. ARGV[1]) == 0 or
    not own(KEYS[3], 'hash') or (tonumber(redis.call('HGET', KEYS[3], '')) or -1) < tonumber(ARGV[7]) then
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

# KEYS: own hash, index. ARGV: number of this write, ms to live, incarnation. Begins a listing in an
# empty hash.
BEGIN: Final = (
    _OWN_TYPE
    + """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '\\1', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
own(KEYS[2], 'hash')
redis.call('HSET', KEYS[2], '\\1' .. ARGV[3], 1)
return 1
"""
)

# KEYS: own hash, index. ARGV: number of the write before, of this write, of the batch or '', ms to
# live, incarnation, what the names of hashes begin with, how to publish, count of users who are
# here, user and entry of each, count of users who are not here, each of these, channel and message
# of each that is published.
# Returns 1 if written; 0: the hash is gone, or the write before is not its last one.
#
# All is written before anything is published, so a failure in between shows as one.
WRITE: Final = (
    _NODES
    + """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' or redis.call('HGET', KEYS[1], '\\1') ~= ARGV[1] then return 0 end
local boot, here = ARGV[5], 8 + 2 * ARGV[8]
local gone = here + 1 + ARGV[here + 1]
redis.call('HSET', KEYS[1], '\\1', ARGV[2], unpack(ARGV, 9, here))
if gone > here + 1 then redis.call('HDEL', KEYS[1], unpack(ARGV, here + 2, gone)) end
for i = 9, here, 2 do
    local nodes = redis.call('HGET', KEYS[2], ARGV[i]) or ''
    if nodes ~= boot then
        local all = boot
        for _, one in ipairs(others(nodes, boot)) do
            if redis.call('EXISTS', ARGV[6] .. one) == 1 then all = all .. one end
        end
        redis.call('HSET', KEYS[2], ARGV[i], all)
    end
end
for i = here + 2, gone do
    local left = table.concat(others(redis.call('HGET', KEYS[2], ARGV[i]) or '', boot))
    if left == '' then redis.call('HDEL', KEYS[2], ARGV[i]) else redis.call('HSET', KEYS[2], ARGV[i], left) end
end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], '', ARGV[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
for i = gone + 1, #ARGV, 2 do redis.call(ARGV[7], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

# KEYS: index. ARGV: what the names of hashes begin with, count of incarnations, each of them,
# users.
# Returns the number of the last batch in each incarnation's hash (nil if it is not complete, or not
# in the index), and three values for each user and incarnation that has them: index of the user and
# of the incarnation in ARGV's lists from 0, entry.
LOOK: Final = """
local count = tonumber(ARGV[2])
local at, numbers, found = {}, {}, {}
local whole = redis.call('TYPE', KEYS[1]).ok == 'hash'
for i = 1, count do
    local boot = ARGV[2 + i]
    numbers[i] = whole and redis.call('HEXISTS', KEYS[1], '\\1' .. boot) == 1
        and redis.call('TYPE', ARGV[1] .. boot).ok == 'hash' and redis.call('HGET', ARGV[1] .. boot, '')
    if numbers[i] then at[boot] = i - 1 end
end
if not whole then return { numbers, found } end
for i, nodes in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV, 3 + count))) do
    for from = 1, nodes and #nodes or 0, 16 do
        local boot = string.sub(nodes, from, from + 15)
        local entry = at[boot] and redis.call('HGET', ARGV[1] .. boot, ARGV[2 + count + i])
        if entry then
            found[#found + 1] = i - 1
            found[#found + 1] = at[boot]
            found[#found + 1] = entry
        end
    end
end
return { numbers, found }
"""

# KEYS: index. ARGV: what the names of hashes begin with, cursor, about how many fields to look at.
# Takes incarnations without a hash out of the index; returns the next cursor.
SWEEP: Final = """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return '0' end
local answer = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local lives = {}
local function alive(boot)
    if lives[boot] == nil then lives[boot] = redis.call('EXISTS', ARGV[1] .. boot) == 1 end
    return lives[boot]
end
for i = 1, #answer[2], 2 do
    local user, nodes = answer[2][i], answer[2][i + 1]
    if string.byte(user) == 1 then
        if not alive(string.sub(user, 2)) then redis.call('HDEL', KEYS[1], user) end
    else
        local left = ''
        for at = 1, #nodes, 16 do
            local boot = string.sub(nodes, at, at + 15)
            if alive(boot) then left = left .. boot end
        end
        if left == '' then redis.call('HDEL', KEYS[1], user)
        elseif left ~= nodes then redis.call('HSET', KEYS[1], user, left) end
    end
end
return answer[1]
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


class Look(NamedTuple):
    """The answer of a read over several nodes.

    `numbers`: of the last batch in each node's hash, of the incarnations asked about, in order;
    None: it is not complete and must not be used. `found`: who is where; users who are nowhere and
    unreadable entries are left out.
    """

    numbers: list[int | None]
    found: dict[UserId, dict[str, Remote]]


class PresenceKeys:
    """The keys of one prefix, for one node.

    Every method raises RedisUnavailable, or TimeoutError after `CALL_S`.
    """

    def __init__(self, redis_client: RedisClient, prefix: str, incarnation: str, lease_ms: int) -> None:
        self._redis_client, self._incarnation, self._lease_ms = redis_client, incarnation, lease_ms
        self._p = f"{{{prefix}}}:"
        self._on, self._where = self._p + "on:", self._p + "where"
        self._own = self._on + incarnation
        self._beat, self._begin, self._write, self._look, self._sweep = (
            redis_client.script(text) for text in (BEAT, BEGIN, WRITE, LOOK, SWEEP)
        )
        self._writes = 0  # number of the last write that was begun; the next one names it
        self._swept = b"0"  # cursor of the next sweep

    async def beat(self, info: bytes, *, renew: bool, grace_ms: int, n: int) -> Beat:
        """Renew our lease if it is valid or `renew` is set; read all leases. `n`: last batch."""
        keys = [self._p + "nodes", self._p + "info", self._own, self._where]
        async with asyncio.timeout(CALL_S):
            answer = await self._beat(
                keys, [self._incarnation, info, self._lease_ms, int(renew), FORGET_LEASES, grace_ms, n, FUTURE_MS]
            )
        return read_beat(answer)

    async def begin(self) -> None:
        """Empty our hash for a listing of all users."""
        self._writes += 1
        async with asyncio.timeout(CALL_S):
            await self._begin([self._own, self._where], [self._writes, self._lease_ms * 2, self._incarnation])

    async def write(
        self, entries: Sequence[tuple[UserId, Remote]], n: int | None, messages: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Write users' entries, remove users who are offline, then publish (channel, message).

        `n`: with these entries the hash contains all batches up to this one; None: it is not
        complete yet. After a write that failed, later ones are refused until `begin`.
        """
        here = [part for user, entry in entries if entry.here for part in (user, presence_codec.encode_entry(entry))]
        gone = [user for user, entry in entries if not entry.here]
        before, self._writes = self._writes, self._writes + 1
        number, verb = "" if n is None else n, "SPUBLISH" if self._redis_client.sharded else "PUBLISH"
        args: list[Word] = [
            before, self._writes, number, self._lease_ms * 2, self._incarnation, self._on, verb,
            len(here) // 2, *here, len(gone), *gone, *(part for message in messages for part in message),
        ]  # fmt: skip
        async with asyncio.timeout(CALL_S):
            if await self._write([self._own, self._where], args) != 1:
                raise RedisUnavailable("our hash is gone, or lacks the last write")

    async def read(self, incarnation: str, users: Sequence[UserId]) -> Hash | None:
        """Entries of users in a node's hash; None: it is not complete, and must not be used."""
        async with asyncio.timeout(CALL_S):
            answer = await self._redis_client.command("HMGET", self._on + incarnation, "", *users)
        return read_hash(answer, users)

    async def look(self, incarnations: Sequence[str], users: Sequence[UserId]) -> Look:
        """Who of the users is where, over these nodes: one read, by the index."""
        args: list[Word] = [self._on, len(incarnations), *incarnations, *users]
        async with asyncio.timeout(CALL_S):
            answer = await self._look([self._where], args)
        return read_look(answer, incarnations, users)

    async def sweep(self) -> None:
        """Look at some `SWEEP_FIELDS` of the index, and take out what dead nodes have left."""
        async with asyncio.timeout(CALL_S):
            cursor = await self._sweep([self._where], [self._on, self._swept, SWEEP_FIELDS])
        self._swept = cursor if isinstance(cursor, bytes) and cursor.isdigit() else b"0"


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


def read_look(reply: Any, incarnations: Sequence[str], users: Sequence[UserId]) -> Look:
    """Parse the answer of LOOK. Raises RedisUnavailable if it is no such answer."""
    match reply:
        case [[*numbers], [*found]] if len(numbers) == len(incarnations) and len(found) % 3 == 0:
            pass
        case _:
            raise RedisUnavailable("no answer of the script that reads presence")
    look = Look([presence_codec.read_number(n) if isinstance(n, bytes) else None for n in numbers], {})
    for at, node, value in zip(found[::3], found[1::3], found[2::3], strict=True):
        if not (
            type(at) is type(node) is int and 0 <= at < len(users) and 0 <= node < len(incarnations)
            and isinstance(value, bytes)
        ):  # fmt: skip
            raise RedisUnavailable("no answer of the script that reads presence")
        entry = presence_codec.decode_entry(value)
        if entry is not None:
            look.found.setdefault(users[at], {})[incarnations[node]] = entry
    return look
