"""Redis by its URL: one server, Sentinels or a Cluster (cluster/redis/url.py).

    command, script, publish   one answer, or RedisUnavailable within `connect_s`, which includes
                               connecting; nothing is retried
    run                        the same for what only redis-py's own client can do
    subscription()             a new Subscription (cluster/redis/subscription.py)

Commands, scripts and publishes of a server, or of the master that Sentinels name, are calls on one
connection (cluster/redis/pipeline.py). Those of a Cluster go through redis-py, which knows which
master has which slot, and cost ten times as much. A Cluster uses sharded pub/sub if all of its
masters are of version 7 or later and all nodes of chatd report that they can (`shards`, `agree`).
Two nodes that decide differently would not receive each other's messages.

After any failure of `run` there is a new redis-py client, which starts from what is true then:
which server is master, which has which slots, what a host name resolves to. The old client is
closed once no call uses it, because redis-py closes connections even while calls use them.

A command of `run` that is given up, by its deadline or its caller's, closes its connection, so that
no later command gets its answer. Commands under way at the same time use several connections there,
and Redis may run them in any order. A caller that needs an order awaits the first before it sends
the second.

Publishing is as many PUBLISH commands in one write: 2.4 us each in calls of 200, and 1.7 of Redis;
in one script call 2.1 and 2.5, and a single message costs Redis half as much again. In a Cluster
the channels' slots are on several masters, so it is a pipeline of SPUBLISH to each. A Redis that
was restarted answers NOSCRIPT; the call is then repeated with the script's text.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakSet

from redis import exceptions
from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.asyncio.connection import ConnectionPool

from chatd.cluster.redis import url as redis_url
from chatd.cluster.redis.connect import (
    RedisPyClient,
    RedisUnavailable,
    close_client,
    is_about_the_way,
    open_client,
    remedy,
    tls_context,
    translated,
    unreadable,
)
from chatd.cluster.redis.connection import Word, pack
from chatd.cluster.redis.pipeline import Pipeline
from chatd.cluster.redis.subscription import Subscription, SubscriptionListener
from chatd.cluster.redis.url import RedisUrl
from chatd.errors import SettingError
from chatd.loop.deadline import within

__all__ = ["RedisClient", "RedisPyClient", "RedisUnavailable", "Script", "Subscription", "SubscriptionListener"]

VERSION_MIN: Final = (6, 2)
SHARDED_MIN: Final = (7, 0)
CALL_MAX: Final = 1_000  # messages in one script call: 3 ms in which Redis serves nothing else
RENEW_S: Final = 0.5  # least time between two new clients; in a Cluster one costs some 5 ms
# After so many calls in a row that their callers cancelled, there is a new client. If every
# caller's deadline is shorter than ours, ours never passes, and no failure would be seen.
GIVEN_UP_MAX: Final = 3

T = TypeVar("T")

_REDIRECTS: Final = (exceptions.AskError, exceptions.TryAgainError)  # MovedError is an AskError
_PUBLISH: Final = "for i = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end"
_TOUCH: Final = "return redis.call('DEL', KEYS[1])"  # a write command that changes nothing


class _ClientInUse:
    """A redis-py client, and how many calls are using it."""

    __slots__ = ("client", "failed", "given_up", "opened_at", "users")

    def __init__(self, client: RedisPyClient, now: float) -> None:
        self.client = client
        self.opened_at = now
        self.users = 0
        self.failed = False  # its connections may be dead, slots may have moved
        self.given_up = 0  # calls cancelled by their callers since the last answer


class RedisClient:
    """Commands, scripts and pub/sub of one Redis.

    `connect_s` is the longest that a call may take, connecting included. Call `close` last. Every
    failure of Redis is raised as RedisUnavailable.
    """

    def __init__(self, url: str, *, connect_s: float = 2.0) -> None:
        """Reads the URL without connecting. Raises SettingError."""
        self.url: RedisUrl = redis_url.read(url)
        self.deadline_s = connect_s
        self._context = tls_context(self.url)
        self._held = _ClientInUse(open_client(self.url, connect_s, self._context), -math.inf)
        self._known: list[tuple[str, int]] = []  # last known nodes of a Cluster
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._sharded: bool | None = None  # all masters are new enough; None: not asked, or no Cluster
        self._agreed = True
        self._publish = Script(self, _PUBLISH)
        # For commands, scripts and publishing, except in a Cluster
        self.pipeline = None if self.url.kind == "cluster" else Pipeline(self)
        self._subscriptions: WeakSet[Subscription] = WeakSet()

    @property
    def connections(self) -> int:
        """How many connections are open, those of subscriptions included."""
        client = self._held.client
        if isinstance(client, RedisCluster):
            commands = sum(len(node._connections) for node in client.get_nodes())
        else:
            commands = sum(n for n, _ in client.connection_pool.get_connection_count())
            commands += self.pipeline is not None and self.pipeline.is_connected
        return commands + sum(subscription.connections for subscription in self._subscriptions)

    @property
    def client(self) -> RedisPyClient:
        """The redis-py client that `run` passes on. Do not keep it: a failure replaces it."""
        return self._held.client

    async def close(self) -> None:
        """Idempotent. No call may be under way."""
        self._closed = True
        if self.pipeline is not None:
            await self.pipeline.close()
        await close_client(self._held.client)
        await asyncio.gather(*self._closing)

    # ---- commands --------------------------------------------------------------------------------

    async def run(self, command: Callable[[RedisPyClient], Awaitable[T]]) -> T:
        """The answer of a command of redis-py. Raises RedisUnavailable.

        Example: `await redis_client.run(lambda redis: redis.hgetall(key))`.
        """
        held, task = self._hold(), asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        held.users += 1
        try:
            with translated(self.url, self.deadline_s):
                async with asyncio.timeout(self.deadline_s):
                    if isinstance(held.client, RedisCluster):
                        # redis-py does this itself, but only after choosing a node, then at random
                        await held.client.initialize()
                    answer = await command(held.client)
            # To a node of a Cluster redis-py writes under `asyncio.wait_for`, which before Python
            # 3.12 keeps a cancellation to itself if the write ends in the same turn of the loop.
            if task is not None and task.cancelling() > cancelling:
                raise asyncio.CancelledError
            held.given_up = 0
            return answer
        except RedisUnavailable as e:
            held.failed = held.failed or e.__cause__ is None or is_about_the_way(e.__cause__)
            raise
        except asyncio.CancelledError:
            held.given_up += 1
            raise
        finally:
            held.users -= 1
            if not held.users and held is not self._held:
                self._retire(held)

    def _hold(self) -> _ClientInUse:
        """The client to use; a new one after a failure."""
        if self._closed:
            raise RedisUnavailable("closed")
        held = self._held
        now = asyncio.get_running_loop().time()
        if (held.failed or held.given_up >= GIVEN_UP_MAX) and now - held.opened_at > RENEW_S:
            if isinstance(held.client, RedisCluster):
                self._known = [(node.host, int(node.port)) for node in held.client.get_nodes()] or self._known
            self._held = _ClientInUse(open_client(self.url, self.deadline_s, self._context, self._known), now)
            if not held.users:
                self._retire(held)
        return self._held

    def _retire(self, held: _ClientInUse) -> None:
        """Close a client in a task of its own.

        Closing may take a while, and must not be cancelled with the call that found it broken.
        """
        task = asyncio.create_task(close_client(held.client), name="redis close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def command(self, *words: Word) -> Any:
        """The answer of Redis to one command that does not block. Raises RedisUnavailable."""
        if self.pipeline is not None:
            return await self.pipeline.call(pack(words), self.deadline_s)
        return await self.readable(lambda client: client.execute_command(*words))

    def script(self, text: str) -> Script:
        """A Lua script, which is called with keys and arguments."""
        return Script(self, text)

    async def publish(self, messages: Sequence[tuple[str, bytes]], within_s: float | None = None) -> None:
        """Publish (channel, data) in this order, `CALL_MAX` of them per round trip.

        Each round trip may take `within_s`, or `deadline_s`. Raises RedisUnavailable; some messages
        may have been published then, the earlier ones first.
        """
        within_s = self.deadline_s if within_s is None else within_s
        for start in range(0, len(messages), CALL_MAX):
            part = messages[start : start + CALL_MAX]
            if self.pipeline is not None:
                packed = b"".join([pack(("PUBLISH", *message)) for message in part])
                await self.pipeline.call(packed, within_s, len(part))
                continue
            await self.readable(partial(self._publish_part, part), within_s)

    async def readable(self, command: Callable[[RedisPyClient], Awaitable[T]], within_s: float | None = None) -> T:
        """`run`, where each error that redis-py does not mean to raise is RedisUnavailable, too."""
        try:
            if within_s is None or within_s >= self.deadline_s:
                return await self.run(command)
            return await within(within_s, self.run(command))
        except RedisUnavailable:
            raise
        except TimeoutError as e:
            raise RedisUnavailable(f"no answer within {within_s:g} s") from e
        except Exception as e:
            raise unreadable(e) from e

    async def _publish_part(self, messages: Sequence[tuple[str, bytes]], client: RedisPyClient) -> None:
        assert isinstance(client, RedisCluster)
        if await self._is_sharded(client):
            await _publish_sharded(client, messages)
            return
        words = [word for message in messages for word in message]
        await self._publish.call(client, (), words, target_nodes=_speaker(client))

    def subscription(self) -> Subscription:
        """A new subscription, not yet connected."""
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    # ---- at the start ----------------------------------------------------------------------------

    async def check(self, prefix: str = "chatd") -> None:
        """Check that Redis is new enough, and lets us do what chatd does.

        Raises SettingError for what does not pass by itself, else RedisUnavailable.
        """
        try:
            for hello in await self.readable(self.hello):
                self.judge(hello)
            await self.script(_TOUCH)([f"{{{prefix}}}:check"], [])
            await self.publish([(f"{prefix}:check", b"")])
        except RedisUnavailable as e:
            if (wrong := remedy(self.url, prefix, e.__cause__)) is not None:
                raise SettingError(f"redis_url: {self.url.masked} {wrong}") from e
            raise

    async def hello(self, client: RedisPyClient) -> list[dict[str, str]]:
        """The answer to HELLO of the server, or of each master of a Cluster.

        It has `version`, `mode` and `role`, and needs no permission.
        """
        if isinstance(client, RedisCluster):
            answers = [await client.execute_command("HELLO", target_nodes=node) for node in client.get_primaries()]
        else:  # not on a connection of redis-py's pool, which would stay open for nothing
            answers = [await self.command("HELLO")]
        return [
            {_text(name): _text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)} for flat in answers
        ]

    def judge(self, hello: dict[str, str]) -> None:
        """Check one answer to HELLO. Raises SettingError; RedisUnavailable for a wrong answer."""
        if not {"version", "mode"} <= hello.keys():
            raise RedisUnavailable("no answer of HELLO")
        if _version(hello) < VERSION_MIN:
            least = ".".join(map(str, VERSION_MIN))
            found = f"{self.url.masked} is Redis {hello['version']}"
            raise SettingError(f"redis_url: {found}; chatd needs {least} or later")
        if self.url.kind == "server" and hello["mode"] != "standalone":
            shape = "redis+cluster://host,host" if hello["mode"] == "cluster" else "redis+sentinel://host,host/service"
            raise SettingError(f"redis_url: {self.url.masked} is a {hello['mode']}; write it as {shape}")

    # ---- sharded pub/sub -------------------------------------------------------------------------

    @property
    def shards(self) -> bool | None:
        """Whether this node can use sharded pub/sub; None: not known yet, or no Cluster."""
        return self._sharded

    @property
    def sharded(self) -> bool | None:
        """Whether this node uses sharded pub/sub."""
        return self._sharded and self._agreed

    def agree(self, *, sharded: bool) -> None:
        """Set whether all other nodes can use sharded pub/sub."""
        self._agreed = sharded

    async def ask_shards(self) -> None:
        """Ask the masters again whether they can shard. Raises RedisUnavailable."""
        await self.readable(self._ask_shards)

    async def _ask_shards(self, client: RedisPyClient) -> None:
        if isinstance(client, RedisCluster):
            self._sharded = min(map(_version, await self.hello(client))) >= SHARDED_MIN

    async def _is_sharded(self, client: RedisCluster) -> bool:
        if self._sharded is None:
            await self._ask_shards(client)
        return bool(self.sharded)

    # ---- for subscriptions -----------------------------------------------------------------------

    async def sources(self, client: RedisPyClient) -> tuple[dict[str, ConnectionPool | ClusterNode], bool]:
        """(places to connect to, by name; whether channels are sharded over them)."""
        if not isinstance(client, RedisCluster):
            return {"": client.connection_pool}, False
        await client.nodes_manager.initialize()  # slots may have moved since the last command
        await self._ask_shards(client)
        if self.sharded:
            return {node.name: node for node in client.get_primaries()}, True
        node = _speaker(client)
        return {node.name: node}, False


class Script:
    """A Lua script, called by its hash, or by its text if Redis does not know the hash.

    In a Cluster all keys of a call must share one hash tag.
    """

    def __init__(self, redis_client: RedisClient, text: str) -> None:
        self._redis_client, self._text = redis_client, text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, keys: Sequence[str | bytes], args: Sequence[Word], within_s: float | None = None) -> Any:
        """The script's answer, within `within_s` or `deadline_s`. Raises RedisUnavailable."""
        redis_client = self._redis_client
        if (pipeline := redis_client.pipeline) is None:
            return await redis_client.readable(lambda client: self.call(client, keys, args), within_s)
        within_s = redis_client.deadline_s if within_s is None else within_s
        try:
            return await pipeline.call(pack(("EVALSHA", self._sha, len(keys), *keys, *args)), within_s)
        except RedisUnavailable as e:
            if not isinstance(e.__cause__, exceptions.NoScriptError):
                raise
        return await pipeline.call(pack(("EVAL", self._text, len(keys), *keys, *args)), within_s)

    async def call(self, client: RedisPyClient, keys: Sequence[str | bytes], args: Sequence[Word], **where: Any) -> Any:
        """For use inside `RedisClient.run`."""
        try:
            return await client.execute_command("EVALSHA", self._sha, len(keys), *keys, *args, **where)
        except exceptions.NoScriptError:
            return await client.execute_command("EVAL", self._text, len(keys), *keys, *args, **where)


def _speaker(cluster: RedisCluster) -> ClusterNode:
    """The master for commands that any master can run: always the same, to keep the order."""
    masters = sorted(cluster.get_primaries(), key=lambda node: node.name)
    if not masters:
        raise exceptions.SlotNotCoveredError("no master is known")
    return masters[0]


async def _publish_sharded(cluster: RedisCluster, messages: Sequence[tuple[str, bytes]]) -> None:
    by_node: dict[str, tuple[ClusterNode, list[PipelineCommand]]] = {}
    for n, (channel, data) in enumerate(messages):
        node = cluster.get_node_from_key(channel)
        if node is None:
            raise exceptions.SlotNotCoveredError("a slot has no master")
        by_node.setdefault(node.name, (node, []))[1].append(PipelineCommand(n, "SPUBLISH", channel, data))
    failed = await asyncio.gather(
        *(node.execute_pipeline(commands) for node, commands in by_node.values()), return_exceptions=True
    )
    for fault in failed:
        if isinstance(fault, BaseException):
            raise fault
    if not any(failed):
        return
    for _, commands in by_node.values():
        for command in commands:
            if isinstance(command.result, _REDIRECTS):
                await cluster.execute_command(*command.args)
            elif isinstance(command.result, Exception):
                raise command.result


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _version(hello: dict[str, str]) -> tuple[int, int]:
    """(major, minor) of an answer to HELLO. Raises RedisUnavailable if it has none."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", hello.get("version", ""))
    if found is None:
        raise RedisUnavailable("Redis does not say which version it is")
    return int(found[1]), int(found[2])
