"""One subscription to Redis's channels: a connection, or in a Cluster with sharded pub/sub one to
each master.

    subscribe, unsubscribe, ping ──► legs ──► events(): Message | Subscribed | Ponged, until Away

It never reconnects: what was published meanwhile is lost, so its owner must know. That is why it
uses redis-py's connections and not its PubSub: that one reconnects and resubscribes on any error
before it raises, also with no retries (8.1: `PubSub._reconnect`); its variant for a Cluster polls
the masters in turn; and a message costs it 3.8 us, against 1.2 us.

One leg is read where its events are wanted. Several are read by a task each into one bounded queue:
once it is full they stop reading, and Redis, whose buffer for a slow reader is bounded too, cuts
them off. Slots that move end the subscription: it was made for the Cluster as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool

from chatd.cluster.redis.connect import FAULTS, Away, Client, translated, unreadable
from chatd.cluster.redis.url import RedisUrl

COMMAND_MAX: Final = 1_000  # channels in one command: 1 ms in which Redis serves nobody else
EVENTS_MAX: Final = 1_000  # of several legs, that nobody has read
ECHOES_TRIED: Final = 2_000  # names, to find one in a slot of each master

Command: TypeAlias = tuple[str, ...]


class Message(NamedTuple):
    channel: str
    data: bytes


class Subscribed(NamedTuple):
    """From here on the messages of this channel come."""

    channel: str


class Ponged(NamedTuple):
    """Every connection of the subscription has answered the last ping."""


Event: TypeAlias = Message | Subscribed | Ponged


class Source(Protocol):
    """What a subscription needs of the engine."""

    url: RedisUrl
    deadline_s: float

    @property
    def sharded(self) -> bool | None:
        """Whether channels are sharded, as all nodes have agreed; None where that is no question."""

    async def run(self, command: Callable[[Client], Awaitable[None]]) -> None:
        """A step of connecting, with its deadline. Raises Away."""

    async def sources(self, client: Client) -> tuple[Mapping[str, ConnectionPool | ClusterNode], bool]:
        """Where to connect to, by name, and whether the channels are sharded over these."""


class Subscription:
    """Pub/sub on one connection, or on one to each master of a Cluster.

    Every method raises Away; after the first, only `close` is of use.
    """

    def __init__(self, engine: Source) -> None:
        self._engine = engine
        self._legs: dict[str, AbstractConnection] = {}
        self._client: Client | None = None  # whose slots the legs were made for
        self._sharded = False
        self._open = False
        self._unanswered: set[str] = set()  # legs that owe a pong
        self._leaving: Counter[str] = Counter()  # channels whose SUNSUBSCRIBE is not confirmed
        self._events: asyncio.Queue[Event | Away] = asyncio.Queue(EVENTS_MAX)
        self._pumps: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        """Connect every leg; where one fails, none stays open."""
        try:
            await self._engine.run(self._connect)
        except BaseException as e:
            await self.close()
            if isinstance(e, Exception) and not isinstance(e, Away | TimeoutError):
                raise unreadable(e) from e
            raise
        self._open = True
        if self._sharded:
            self._pumps = [asyncio.create_task(self._pump(name), name=f"redis {name}") for name in self._legs]

    async def _connect(self, client: Client) -> None:
        self._client = client
        sources, self._sharded = await self._engine.sources(client)
        for name, source in sources.items():
            self._legs[name] = leg = source.connection_class(**{**source.connection_kwargs, "socket_timeout": None})
            await leg.connect()  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Idempotent. Whoever waits for an event gets Away."""
        self._open = False
        pumps, self._pumps = self._pumps, []
        for pump in pumps:
            pump.cancel()
        legs, self._legs = self._legs, {}
        for leg in legs.values():
            with contextlib.suppress(*FAULTS):
                await leg.disconnect(nowait=True)
        await asyncio.gather(*pumps, return_exceptions=True)
        if pumps:
            if self._events.full():
                self._events.get_nowait()
            self._events.put_nowait(Away("closed"))
        await asyncio.sleep(0)  # the transports close in the loop's next turn

    @property
    def outdated(self) -> bool:
        """The nodes have agreed on another kind of channels since it was made."""
        return self._engine.sharded is not None and self._engine.sharded != self._sharded

    def echoes(self, name: str) -> list[str]:
        """Channels of this name, one for each connection: what is published there comes on all of them.

        Raises Away.
        """
        if not self._sharded:
            return [name]
        client = self._client
        assert isinstance(client, RedisCluster)
        found: dict[str, str] = {}
        for n in range(ECHOES_TRIED):
            if len(found) == len(self._legs):
                break
            channel = f"{name}:{n}"
            if (node := client.get_node_from_key(channel)) is not None and node.name in self._legs:
                found.setdefault(node.name, channel)
        return list(found.values())

    # ---- out -------------------------------------------------------------------------------------

    async def subscribe(self, names: Iterable[str]) -> None:
        """Ask for channels; `Subscribed` tells of each.

        `events` must be read meanwhile if there are many.
        """
        await self._send("SUBSCRIBE", names)

    async def unsubscribe(self, names: Iterable[str]) -> None:
        await self._send("UNSUBSCRIBE", names)

    async def ping(self) -> None:
        """`Ponged` tells that every leg has answered."""
        self._unanswered = set(self._legs)
        for leg in list(self._legs.values()):
            await self._write(leg, [("PING",)])

    async def _send(self, verb: str, names: Iterable[str]) -> None:
        with self._translated():
            batches = self._batches(verb, list(names))
        for leg, commands in batches:
            await self._write(leg, commands)

    def _batches(self, verb: str, names: list[str]) -> list[tuple[AbstractConnection, list[Command]]]:
        """What goes out in one write, of COMMAND_MAX channels at most: one command, or for a
        sharded subscription one for each slot.
        """
        if not self._open:
            raise Away("not connected")
        if not self._sharded:
            (leg,) = self._legs.values()
            return [(leg, [(verb, *names[i : i + COMMAND_MAX])]) for i in range(0, len(names), COMMAND_MAX)]
        client = self._client
        assert isinstance(client, RedisCluster)
        by_leg: dict[str, dict[int, list[str]]] = {}
        for name in names:
            node = client.get_node_from_key(name)
            if node is None or node.name not in self._legs:
                raise Away("the Cluster's slots have moved")
            by_leg.setdefault(node.name, {}).setdefault(client.keyslot(name), []).append(name)
        if verb == "UNSUBSCRIBE":
            self._leaving.update(names)
        batches: list[tuple[AbstractConnection, list[Command]]] = []
        for leg_name, slots in by_leg.items():
            commands: list[Command] = [(f"S{verb}", *some) for some in slots.values()]
            batches += [
                (self._legs[leg_name], commands[i : i + COMMAND_MAX]) for i in range(0, len(commands), COMMAND_MAX)
            ]
        return batches

    async def _write(self, leg: AbstractConnection, commands: Sequence[Command]) -> None:
        if not self._open or not leg.is_connected:  # redis-py would connect it again
            raise Away("not connected")
        with self._translated():
            async with asyncio.timeout(self._engine.deadline_s):
                await leg.send_packed_command(leg.pack_commands(commands), check_health=False)

    # ---- in --------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[Event]:
        """Whatever comes, until Away. To be read by one task."""
        if not self._open:
            raise Away("not connected")
        if self._sharded:
            while True:
                event = await self._events.get()
                if isinstance(event, Away):
                    raise event
                yield event
        ((name, leg),) = self._legs.items()
        with self._translated():
            while True:
                heard = self._heard(name, await leg.read_response())
                if heard is not None:
                    yield heard

    async def _pump(self, name: str) -> None:
        leg = self._legs[name]
        try:
            with self._translated():
                while True:
                    event = self._heard(name, await leg.read_response())
                    if event is not None:
                        await self._events.put(event)
        except Away as e:
            await self._events.put(e)

    def _heard(self, name: str, reply: Any) -> Event | None:
        kind = reply[0] if isinstance(reply, list) else b"pong"  # before the first subscription a pong is no list
        if kind in (b"message", b"smessage"):
            return Message(reply[1].decode(), reply[2])
        if kind in (b"subscribe", b"ssubscribe"):
            return Subscribed(reply[1].decode())
        if kind == b"pong":
            if name in self._unanswered:
                self._unanswered.discard(name)
                return None if self._unanswered else Ponged()
        elif kind == b"sunsubscribe":  # also said unasked: the channel's slot has a new master
            channel = reply[1].decode()
            if not self._leaving[channel]:
                raise Away("the Cluster's slots have moved")
            self._leaving[channel] -= 1
            self._leaving += Counter()  # drops the zeros
        return None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Whatever fails ends the subscription."""
        try:
            with translated(self._engine.url, self._engine.deadline_s):
                yield
        except Away:
            self._open = False
            raise
        except Exception as e:
            self._open = False
            raise unreadable(e) from e
