"""Redis by its URL, whichever shape it has (cluster/redis/url.py).

Every failure of it leaves here as `Away`.

    command, run, script, publish              one answer, or `Away` within `connect_s`, connecting included; nothing is repeated
    subscription()                             a new one of cluster/redis/subscription.py

One server; the master that the Sentinels name, asked for again whenever a connection is made; or a
Cluster, with sharded pub/sub if all of its masters are of version 7 or later and all nodes of chatd
say so (`shards`, `agree`): two that decide differently would not hear each other. After any failure
there is a new client, which begins from what is true then: who is master, who has which slots,
where a name leads. The old one is closed once nobody uses it, for redis-py closes connections also
under those who use them.

A command given up, by its deadline or its caller's, closes its connection: so no later command gets
its answer. Commands under way at the same time use several connections, and Redis may do them in
any order: who needs one, awaits the first before the second.

Publishing is one script call for many messages (2.7 us each; 9 us in a pipeline). In a Cluster the
channels' slots lie on several masters: there it is a pipeline of SPUBLISH to each. NOSCRIPT, which
a restarted Redis says, is answered with the script's text.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from redis import exceptions
from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.asyncio.connection import ConnectionPool

from chatd.cluster.redis import url as redis_url
from chatd.cluster.redis.connect import (
    Away,
    Client,
    close_client,
    is_about_the_way,
    open_client,
    remedy,
    tls_context,
    translated,
    unreadable,
)
from chatd.cluster.redis.subscription import Event, Message, Ponged, Subscribed, Subscription
from chatd.cluster.redis.url import RedisUrl
from chatd.errors import SettingError

__all__ = ["Away", "Client", "Engine", "Event", "Message", "Ponged", "Script", "Subscribed", "Subscription"]

VERSION_MIN: Final = (6, 2)
SHARDED_MIN: Final = (7, 0)
CALL_MAX: Final = 1_000  # messages in one script call: 3 ms in which Redis serves nobody else
RENEW_S: Final = 0.5  # a new client not more often than this: in a Cluster it costs some 5 ms
GIVEN_UP_MAX: Final = 3  # then a new client: callers with shorter deadlines than ours would never see one of ours pass

Word: TypeAlias = str | bytes | int | float
T = TypeVar("T")

_REDIRECTS: Final = (exceptions.AskError, exceptions.TryAgainError)  # MovedError is an AskError
_PUBLISH: Final = "for i = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end"
_TOUCH: Final = "return redis.call('DEL', KEYS[1])"  # a write that writes nothing


class _Held:
    """A client, and how many calls are using it."""

    __slots__ = ("client", "failed", "given_up", "opened_at", "users")

    def __init__(self, client: Client, now: float) -> None:
        self.client = client
        self.opened_at = now
        self.users = 0
        self.failed = False  # connections may lead nowhere, slots may have moved
        self.given_up = 0  # calls that their callers cancelled, one after the other and with no answer between them


class Engine:
    """Redis.

    `connect_s` is the longest that a call may take, connecting included. The last call is `close`.
    """

    def __init__(self, url: str, *, connect_s: float = 2.0) -> None:
        """Reads the URL, and connects to nothing. Raises SettingError."""
        self.url: RedisUrl = redis_url.read(url)
        self.deadline_s = connect_s
        self._context = tls_context(self.url)
        self._held = _Held(open_client(self.url, connect_s, self._context), -math.inf)
        self._known: list[tuple[str, int]] = []  # nodes of a Cluster, when we last knew any
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._sharded: bool | None = None  # whether all masters are new enough; None: not asked yet, or no Cluster
        self._agreed = True
        self._publish = Script(self, _PUBLISH)

    @property
    def client(self) -> Client:
        """redis-py's, as `run` gives it. Not to be kept: after a failure there is a new one."""
        return self._held.client

    async def close(self) -> None:
        """Idempotent. No call may be under way."""
        self._closed = True
        await close_client(self._held.client)
        await asyncio.gather(*self._closing)

    # ---- commands --------------------------------------------------------------------------------

    async def run(self, command: Callable[[Client], Awaitable[T]]) -> T:
        """What a command answers:

        `await engine.run(lambda redis: redis.hgetall(key))`. Raises Away.
        """
        held, task = self._hold(), asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        held.users += 1
        try:
            with translated(self.url, self.deadline_s):
                async with asyncio.timeout(self.deadline_s):
                    if isinstance(held.client, RedisCluster):
                        # Itself it does so after it has chosen the node: by chance, then
                        await held.client.initialize()
                    answer = await command(held.client)
            # To a node of a Cluster redis-py writes under `asyncio.wait_for`, which before Python 3.12
            # keeps a cancellation to itself if the write ends in the same turn of the loop.
            if task is not None and task.cancelling() > cancelling:
                raise asyncio.CancelledError
            held.given_up = 0
            return answer
        except Away as e:
            held.failed = held.failed or e.__cause__ is None or is_about_the_way(e.__cause__)
            raise
        except asyncio.CancelledError:
            held.given_up += 1
            raise
        finally:
            held.users -= 1
            if not held.users and held is not self._held:
                self._retire(held)

    def _hold(self) -> _Held:
        """The client to use: a new one after a failure."""
        if self._closed:
            raise Away("closed")
        held = self._held
        now = asyncio.get_running_loop().time()
        if (held.failed or held.given_up >= GIVEN_UP_MAX) and now - held.opened_at > RENEW_S:
            if isinstance(held.client, RedisCluster):
                self._known = [(node.host, int(node.port)) for node in held.client.get_nodes()] or self._known
            self._held = _Held(open_client(self.url, self.deadline_s, self._context, self._known), now)
            if not held.users:
                self._retire(held)
        return self._held

    def _retire(self, held: _Held) -> None:
        """Close it in a task of its own: to close may take a while, and must not be cancelled with
        the call that found it broken.
        """
        task = asyncio.create_task(close_client(held.client), name="redis close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def command(self, *words: Word) -> Any:
        """What Redis answers to one command. Raises Away."""
        try:
            return await self.run(lambda client: client.execute_command(*words))
        except Away:
            raise
        except Exception as e:
            raise unreadable(e) from e

    def script(self, text: str) -> Script:
        """A Lua script, to be called with keys and arguments."""
        return Script(self, text)

    async def publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish (channel, data) in this order, in one round trip for CALL_MAX of them.

        Raises Away; then some may have been published.
        """
        for start in range(0, len(messages), CALL_MAX):
            try:
                await self.run(partial(self._publish_part, messages[start : start + CALL_MAX]))
            except Away:
                raise
            except Exception as e:
                raise unreadable(e) from e

    async def _publish_part(self, messages: Sequence[tuple[str, bytes]], client: Client) -> None:
        where: dict[str, Any] = {}
        if isinstance(client, RedisCluster):
            if await self._is_sharded(client):
                await _publish_sharded(client, messages)
                return
            where["target_nodes"] = _speaker(client)
        await self._publish.call(client, (), [word for message in messages for word in message], **where)

    def subscription(self) -> Subscription:
        """A new one, not yet connected."""
        return Subscription(self)

    # ---- at the start ----------------------------------------------------------------------------

    async def check(self, prefix: str = "chatd") -> None:
        """Is this a Redis for chatd, and may we do what chatd does?

        Raises SettingError for what waiting cannot mend, else Away.
        """
        try:
            for hello in await self._hellos():
                self.judge(hello)
            await self.script(_TOUCH)([f"{{{prefix}}}:check"], [])
            await self.publish([(f"{prefix}:check", b"")])
        except Away as e:
            if (mend := remedy(self.url, prefix, e.__cause__)) is not None:
                raise SettingError(f"redis_url: {self.url.masked} {mend}") from e
            raise

    async def _hellos(self) -> list[dict[str, str]]:
        try:
            return await self.run(self.hello)
        except Away:
            raise
        except Exception as e:
            raise unreadable(e) from e

    async def hello(self, client: Client) -> list[dict[str, str]]:
        """What the server, or every master of a Cluster, says of itself:

        `version`, `mode`, `role`. No permission is needed for it.
        """
        if isinstance(client, RedisCluster):
            answers = [await client.execute_command("HELLO", target_nodes=node) for node in client.get_primaries()]
        else:
            answers = [await client.execute_command("HELLO")]  # type: ignore[no-untyped-call]
        return [
            {_text(name): _text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)} for flat in answers
        ]

    def judge(self, hello: dict[str, str]) -> None:
        """Raises SettingError, or Away if it is no answer of Redis."""
        if not {"version", "mode"} <= hello.keys():
            raise Away("no answer of HELLO")
        if _version(hello) < VERSION_MIN:
            raise SettingError(
                f"redis_url: {self.url.masked} is Redis {hello['version']}; chatd needs {'.'.join(map(str, VERSION_MIN))} or later"
            )
        if self.url.kind == "server" and hello["mode"] != "standalone":
            shape = "redis+cluster://host,host" if hello["mode"] == "cluster" else "redis+sentinel://host,host/service"
            raise SettingError(f"redis_url: {self.url.masked} is a {hello['mode']}; write it as {shape}")

    # ---- sharded pub/sub -------------------------------------------------------------------------

    @property
    def shards(self) -> bool | None:
        """Whether this node could use sharded pub/sub; None: it does not know, or is not at a
        Cluster.
        """
        return self._sharded

    @property
    def sharded(self) -> bool | None:
        """Whether it uses it."""
        return self._sharded and self._agreed

    def agree(self, *, sharded: bool) -> None:
        """Whether all other nodes could."""
        self._agreed = sharded

    async def ask_shards(self) -> None:
        """Look again. Raises Away."""
        try:
            await self.run(self._ask_shards)
        except Away:
            raise
        except Exception as e:
            raise unreadable(e) from e

    async def _ask_shards(self, client: Client) -> None:
        if isinstance(client, RedisCluster):
            self._sharded = min(map(_version, await self.hello(client))) >= SHARDED_MIN

    async def _is_sharded(self, client: RedisCluster) -> bool:
        if self._sharded is None:
            await self._ask_shards(client)
        return bool(self.sharded)

    # ---- for subscriptions -----------------------------------------------------------------------

    async def sources(self, client: Client) -> tuple[dict[str, ConnectionPool | ClusterNode], bool]:
        """Where a subscription is to connect to, by name, and whether its channels are sharded over
        these.
        """
        if not isinstance(client, RedisCluster):
            return {"": client.connection_pool}, False
        await client.nodes_manager.initialize()  # slots may have moved since, and no command told us
        await self._ask_shards(client)
        if self.sharded:
            return {node.name: node for node in client.get_primaries()}, True
        node = _speaker(client)
        return {node.name: node}, False


class Script:
    """A Lua script, called by its hash, or by its text where Redis does not know it.

    In a Cluster its keys share one hash tag.
    """

    def __init__(self, engine: Engine, text: str) -> None:
        self._engine, self._text = engine, text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, keys: Sequence[str | bytes], args: Sequence[Word]) -> Any:
        """Raises Away."""
        try:
            return await self._engine.run(lambda client: self.call(client, keys, args))
        except Away:
            raise
        except Exception as e:
            raise unreadable(e) from e

    async def call(self, client: Client, keys: Sequence[str | bytes], args: Sequence[Word], **where: Any) -> Any:
        """For use inside `Engine.run`."""
        try:
            return await client.execute_command("EVALSHA", self._sha, len(keys), *keys, *args, **where)
        except exceptions.NoScriptError:
            return await client.execute_command("EVAL", self._text, len(keys), *keys, *args, **where)


def _speaker(cluster: RedisCluster) -> ClusterNode:
    """The master for what any may do: the same one each time, so that order is kept."""
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
    """Raises Away if it does not say."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", hello.get("version", ""))
    if found is None:
        raise Away("Redis does not say which version it is")
    return int(found[1]), int(found[2])
