"""One subscription to channels of Redis.

    subscribe, unsubscribe, ping ──► connections ──► events(): Message | Subscribed | Ponged

It has one connection, or one to each master of a Cluster with sharded pub/sub. `events` ends with
RedisUnavailable.

A subscription never reconnects, because what is published during the gap is lost and its owner
must know that. So it uses redis-py's connections and not its PubSub, which reconnects and
resubscribes on any error before it raises, even with no retries (8.1: `PubSub._reconnect`).
PubSub's variant for a Cluster polls the masters in turn, and a message costs 3.8 us, against 1.2 us
here.

A single connection is read by `events` itself. Several connections are read by a task each into one
bounded queue. When the queue is full they stop reading, and Redis, whose buffer for a slow reader
is bounded, too, closes them. If slots move, the subscription ends: it was made for the old slots.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool

from chatd.cluster.redis.connect import FAULTS, RedisPyClient, RedisUnavailable, translated, unreadable
from chatd.cluster.redis.url import RedisUrl

COMMAND_MAX: Final = 1_000  # channels in one command: 1 ms in which Redis serves nothing else
EVENTS_MAX: Final = 1_000  # unread events of several connections
ECHOES_TRIED: Final = 2_000  # names tried to find one in a slot of each master

Command: TypeAlias = tuple[str, ...]


class Message(NamedTuple):
    """A message was published."""

    channel: str
    data: bytes


class Subscribed(NamedTuple):
    """From now on the messages of this channel arrive."""

    channel: str


class Ponged(NamedTuple):
    """Every connection of the subscription has answered the last ping."""


Event: TypeAlias = Message | Subscribed | Ponged


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
        self._connections: dict[str, AbstractConnection] = {}
        self._client: RedisPyClient | None = None  # for whose slots the connections were made
        self._sharded = False
        self._open = False
        self._unanswered: set[str] = set()  # connections that have not answered the last ping
        self._leaving: Counter[str] = Counter()  # channels whose SUNSUBSCRIBE is not confirmed
        self._events: asyncio.Queue[Event | RedisUnavailable] = asyncio.Queue(EVENTS_MAX)
        self._pumps: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        """Open every connection; if one fails, none stays open."""
        try:
            await self._redis_client.run(self._connect)
        except BaseException as e:
            await self.close()
            if isinstance(e, Exception) and not isinstance(e, RedisUnavailable | TimeoutError):
                raise unreadable(e) from e
            raise
        self._open = True
        if self._sharded:
            self._pumps = [asyncio.create_task(self._pump(name), name=f"redis {name}") for name in self._connections]

    async def _connect(self, client: RedisPyClient) -> None:
        self._client = client
        sources, self._sharded = await self._redis_client.sources(client)
        for name, source in sources.items():
            connection = source.connection_class(**{**source.connection_kwargs, "socket_timeout": None})
            self._connections[name] = connection
            await connection.connect()  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Close the connections. A pending `events` raises RedisUnavailable. Idempotent."""
        self._open = False
        pumps, self._pumps = self._pumps, []
        for pump in pumps:
            pump.cancel()
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            with contextlib.suppress(*FAULTS):
                await connection.disconnect(nowait=True)
        await asyncio.gather(*pumps, return_exceptions=True)
        if pumps:
            if self._events.full():
                self._events.get_nowait()
            self._events.put_nowait(RedisUnavailable("closed"))
        await asyncio.sleep(0)  # the transports close in the loop's next turn

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
        await self._send("SUBSCRIBE", names)

    async def unsubscribe(self, names: Iterable[str]) -> None:
        """Unsubscribe from channels. Nothing confirms it."""
        await self._send("UNSUBSCRIBE", names)

    async def ping(self) -> None:
        """Send a ping; a `Ponged` event says that every connection has answered it."""
        self._unanswered = set(self._connections)
        for connection in list(self._connections.values()):
            await self._write(connection, [("PING",)])

    async def _send(self, verb: str, names: Iterable[str]) -> None:
        with self._translated():
            batches = self._batches(verb, list(names))
        for connection, commands in batches:
            await self._write(connection, commands)

    def _batches(self, verb: str, names: list[str]) -> list[tuple[AbstractConnection, list[Command]]]:
        """(connection, commands) of each write, with `COMMAND_MAX` channels or commands at most.

        One command per write, or for a sharded subscription one per slot.
        """
        if not self._open:
            raise RedisUnavailable("not connected")
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
        batches: list[tuple[AbstractConnection, list[Command]]] = []
        for master, slots in by_master.items():
            connection = self._connections[master]
            commands: list[Command] = [(f"S{verb}", *some) for some in slots.values()]
            batches += [(connection, commands[i : i + COMMAND_MAX]) for i in range(0, len(commands), COMMAND_MAX)]
        return batches

    async def _write(self, connection: AbstractConnection, commands: Sequence[Command]) -> None:
        if not self._open or not connection.is_connected:  # otherwise redis-py would reconnect it
            raise RedisUnavailable("not connected")
        with self._translated():
            async with asyncio.timeout(self._redis_client.deadline_s):
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    # ---- in --------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[Event]:
        """Events in the order of arrival, for one reader. Ends by raising RedisUnavailable."""
        if not self._open:
            raise RedisUnavailable("not connected")
        if self._sharded:
            while True:
                event = await self._events.get()
                if isinstance(event, RedisUnavailable):
                    raise event
                yield event
        ((name, connection),) = self._connections.items()
        with self._translated():
            while True:
                heard = self._heard(name, await connection.read_response())
                if heard is not None:
                    yield heard

    async def _pump(self, name: str) -> None:
        connection = self._connections[name]
        try:
            with self._translated():
                while True:
                    event = self._heard(name, await connection.read_response())
                    if event is not None:
                        await self._events.put(event)
        except RedisUnavailable as e:
            await self._events.put(e)

    def _heard(self, name: str, reply: Any) -> Event | None:
        kind = reply[0] if isinstance(reply, list) else b"pong"  # a pong before the first subscription is no list
        if kind in (b"message", b"smessage"):
            return Message(reply[1].decode(), reply[2])
        if kind in (b"subscribe", b"ssubscribe"):
            return Subscribed(reply[1].decode())
        if kind == b"pong":
            if name in self._unanswered:
                self._unanswered.discard(name)
                return None if self._unanswered else Ponged()
        elif kind == b"sunsubscribe":  # also sent unasked, when the channel's slot has a new master
            channel = reply[1].decode()
            if not self._leaving[channel]:
                raise RedisUnavailable("the Cluster's slots have moved")
            self._leaving[channel] -= 1
            self._leaving += Counter()  # drops the zeros
        return None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Any failure ends the subscription, as RedisUnavailable."""
        try:
            with translated(self._redis_client.url, self._redis_client.deadline_s):
                yield
        except RedisUnavailable:
            self._open = False
            raise
        except Exception as e:
            self._open = False
            raise unreadable(e) from e
