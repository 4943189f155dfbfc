"""One subscription to channels of Redis.

    subscribe, unsubscribe, ping ──► connections ──► listen(listener): heard, confirmed, ponged

It has one connection, or one to each master of a Cluster with sharded pub/sub. What arrives is
handed on as it is read, without a task (cluster/redis/connection.py). Where the listener is slower
than Redis, less is read, and Redis, whose buffer for a slow reader is bounded, closes the
connection. `listen` ends with RedisUnavailable.

A subscription never reconnects, because what is published during the gap is lost and its owner
must know that. So it does not use redis-py's PubSub, which reconnects and resubscribes on any error
before it raises, even with no retries (8.1: `PubSub._reconnect`), and whose variant for a Cluster
polls the masters in turn. If slots move, the subscription ends: it was made for the old slots.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeAlias

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import ConnectionPool

from chatd.cluster.redis.connect import RedisPyClient, RedisUnavailable, unavailable, unreadable
from chatd.cluster.redis.connection import Connection, pack
from chatd.cluster.redis.url import RedisUrl

COMMAND_MAX: Final = 1_000  # channels in one command: 1 ms in which Redis serves nothing else
ECHOES_TRIED: Final = 2_000  # names tried to find one in a slot of each master

Command: TypeAlias = tuple[str, ...]


class SubscriptionListener(Protocol):
    """Gets what arrives, in order of arrival. None of these methods may block.

    What one raises ends the subscription, and `listen` raises it.
    """

    def heard(self, channel: str, data: bytes) -> None:
        """A message was published."""

    def confirmed(self, channel: str) -> None:
        """From now on the messages of this channel arrive."""

    def ponged(self) -> None:
        """Every connection of the subscription has answered the last ping."""


class RedisSource(Protocol):
    """What a subscription needs of RedisClient."""

    url: RedisUrl
    deadline_s: float

    @property
    def sharded(self) -> bool | None:
        """Whether all nodes have agreed on sharded channels; None: not known, or no Cluster."""

    async def run(self, command: Callable[[RedisPyClient], Awaitable[None]]) -> None:
        """Run a step of connecting within its deadline. Raises RedisUnavailable."""

    async def sources(self, client: RedisPyClient) -> tuple[Mapping[str, ConnectionPool | ClusterNode], bool]:
        """(places to connect to, by name; whether the channels are sharded over them)."""


class Subscription:
    """Pub/sub on one connection, or on one to each master of a Cluster.

    Every method raises RedisUnavailable. After the first one, only `close` may be called.
    """

    def __init__(self, redis_client: RedisSource) -> None:
        self._redis_client = redis_client
        self._connections: dict[str, Connection] = {}
        self._client: RedisPyClient | None = None  # for whose slots the connections were made
        self._sharded = False
        self._open = False
        self._unanswered: set[str] = set()  # connections that have not answered the last ping
        self._leaving: Counter[str] = Counter()  # channels whose SUNSUBSCRIBE is not confirmed
        self._listener: SubscriptionListener
        self._ended: asyncio.Future[NoReturn] | None = None  # while it listens
        self._fault: Exception | None = None  # why it has ended

    async def connect(self) -> None:
        """Open every connection; if one fails, none stays open. Nothing is read yet."""
        try:
            await self._redis_client.run(self._connect)
            if self._fault is not None:
                raise self._fault
        except BaseException as e:
            await self.close()
            if isinstance(e, Exception) and not isinstance(e, RedisUnavailable | TimeoutError):
                raise unreadable(e) from e
            raise
        self._open = True

    async def _connect(self, client: RedisPyClient) -> None:
        self._client = client
        sources, self._sharded = await self._redis_client.sources(client)
        for name, source in sources.items():
            self._connections[name] = await Connection.open(
                source, self._redis_client.url, partial(self._take, name), self._lost
            )

    async def close(self) -> None:
        """Close the connections. A pending `listen` raises RedisUnavailable. Idempotent."""
        self._end(RedisUnavailable("closed"))
        await asyncio.sleep(0)  # the transports close in the loop's next turn

    def _lost(self, fault: Exception) -> None:
        """A connection has ended, and with it all."""
        self._end(fault)

    def _end(self, fault: Exception) -> None:
        self._open = False
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            connection.close()
        if self._fault is None:
            self._fault = fault
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(self._fault)

    @property
    def connections(self) -> int:
        """How many connections it has."""
        return len(self._connections)

    @property
    def outdated(self) -> bool:
        """Whether the nodes have agreed on another kind of channels since it was made."""
        return self._redis_client.sharded is not None and self._redis_client.sharded != self._sharded

    def echoes(self, name: str) -> list[str]:
        """Channel names that begin with `name`, one for each connection.

        So a message to each of them arrives on every connection. Raises RedisUnavailable.
        """
        if not self._sharded:
            return [name]
        client = self._client
        assert isinstance(client, RedisCluster)
        found: dict[str, str] = {}
        for n in range(ECHOES_TRIED):
            if len(found) == len(self._connections):
                break
            channel = f"{name}:{n}"
            if (node := client.get_node_from_key(channel)) is not None and node.name in self._connections:
                found.setdefault(node.name, channel)
        return list(found.values())

    # ---- out -------------------------------------------------------------------------------------

    async def subscribe(self, names: Iterable[str]) -> None:
        """Subscribe to channels; a `Subscribed` event confirms each.

        If there are many, `events` must be read at the same time.
        """
        self._send("SUBSCRIBE", names)

    async def unsubscribe(self, names: Iterable[str]) -> None:
        """Unsubscribe from channels. Nothing confirms it."""
        self._send("UNSUBSCRIBE", names)

    async def ping(self) -> None:
        """Send a ping; a `Ponged` event says that every connection has answered it."""
        self._need_open()
        self._unanswered = set(self._connections)
        for connection in self._connections.values():
            self._write(connection, [("PING",)])

    def _send(self, verb: str, names: Iterable[str]) -> None:
        self._need_open()
        try:
            batches = self._batches(verb, list(names))
        except RedisUnavailable as e:
            self._end(e)
            raise
        except Exception as e:
            self._end(away := unreadable(e))
            raise away from e
        for connection, commands in batches:
            self._write(connection, commands)

    def _need_open(self) -> None:
        if not self._open:
            raise RedisUnavailable("not connected")

    def _batches(self, verb: str, names: list[str]) -> list[tuple[Connection, list[Command]]]:
        """(connection, commands) of each write, with `COMMAND_MAX` channels or commands at most.

        One command per write, or for a sharded subscription one per slot.
        """
        if not self._sharded:
            (connection,) = self._connections.values()
            return [(connection, [(verb, *names[i : i + COMMAND_MAX])]) for i in range(0, len(names), COMMAND_MAX)]
        client = self._client
        assert isinstance(client, RedisCluster)
        by_master: dict[str, dict[int, list[str]]] = {}
        for name in names:
            node = client.get_node_from_key(name)
            if node is None or node.name not in self._connections:
                raise RedisUnavailable("the Cluster's slots have moved")
            by_master.setdefault(node.name, {}).setdefault(client.keyslot(name), []).append(name)
        if verb == "UNSUBSCRIBE":
            self._leaving.update(names)
        batches: list[tuple[Connection, list[Command]]] = []
        for master, slots in by_master.items():
            connection = self._connections[master]
            # Presence of all users is in one slot
            commands: list[Command] = [
                (f"S{verb}", *some[i : i + COMMAND_MAX])
                for some in slots.values()
                for i in range(0, len(some), COMMAND_MAX)
            ]
            batches += [(connection, commands[i : i + COMMAND_MAX]) for i in range(0, len(commands), COMMAND_MAX)]
        return batches

    def _write(self, connection: Connection, commands: Iterable[Command]) -> None:
        if connection.is_full:
            away = RedisUnavailable("Redis does not read what it is sent")
            self._end(away)
            raise away
        connection.write(b"".join([pack(command) for command in commands]))

    # ---- in --------------------------------------------------------------------------------------

    async def listen(self, listener: SubscriptionListener) -> NoReturn:
        """Hand on what arrives, until the subscription ends. Raises RedisUnavailable then."""
        self._need_open()
        self._listener = listener
        self._ended = asyncio.get_running_loop().create_future()
        for connection in list(self._connections.values()):
            connection.start()
        await self._ended
        raise AssertionError("a subscription ends by an exception")

    def _take(self, name: str, reply: Any) -> None:
        try:
            kind = reply[0] if type(reply) is list else b"pong"  # a pong without any subscription is no list
            if kind == b"message" or kind == b"smessage":
                channel, data = reply[1].decode(), reply[2]
                if type(data) is not bytes:
                    raise TypeError("a message that is no bytes")
            else:
                self._control(name, kind, reply)
                return
        except RedisUnavailable:
            raise
        except Exception as e:
            raise unreadable(e) from e
        self._listener.heard(channel, data)

    def _control(self, name: str, kind: Any, reply: Any) -> None:
        """Anything but a message."""
        if isinstance(reply, Exception):
            raise unavailable(self._redis_client.url, reply)
        if kind in (b"subscribe", b"ssubscribe"):
            self._listener.confirmed(reply[1].decode())
        elif kind == b"pong":
            if name in self._unanswered:
                self._unanswered.discard(name)
                if not self._unanswered:
                    self._listener.ponged()
        elif kind == b"sunsubscribe":  # also sent unasked, when the channel's slot has a new master
            channel = reply[1].decode()
            if not self._leaving[channel]:
                raise RedisUnavailable("the Cluster's slots have moved")
            self._leaving[channel] -= 1
            self._leaving += Counter()  # drops the zeros
