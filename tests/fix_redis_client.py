"""Engines of the test's own, and what a subscription of theirs hears.

    make_engine     `make_engine(url, connect_s=0.2)`: an `Engine`, closed at the end
    engine          one of `own_redis`
    shape           the URL of a running Redis, of each shape in turn
    Listening       `async with Listening(engine) as heard`: a connected subscription; what it heard is in `heard.ear`

A test that is for some shapes says which: `@pytest.mark.parametrize("shape", ["tls", "cluster"],
indirect=True)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import pytest
import pytest_asyncio
from redis import exceptions

from chatd.cluster.redis.client import RedisClient, RedisPyClient, RedisUnavailable, Subscription
from chatd.errors import SettingError
from tests.fix_redis import NoTls, OwnCluster, OwnRedis, OwnSentinel, binary, sharded_binary
from tests.until import until

SOON_S: Final = 15.0  # far beyond what it takes
SHAPES: Final = [
    "plain",
    "valkey",
    "password",
    "user",
    "database",
    "unix",
    "tls",
    "sentinel",
    "cluster",
    "sharded cluster",
    "tls sentinel",
    "tls cluster",
]


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, redis_folder: Path) -> Iterator[str]:
    """The URL of a running Redis of each shape."""
    shapes: dict[str, Callable[..., OwnSentinel | OwnCluster]] = {
        "sentinel": OwnSentinel,
        "cluster": OwnCluster,
        "sharded cluster": partial(OwnCluster, program=sharded_binary()),
    }
    if (many := shapes.get(request.param.removeprefix("tls "))) is None:
        yield one_server(request)
        return
    servers = many(redis_folder / "many", tls=request.param.startswith("tls"), password="p/w")
    try:
        servers.start()
        yield servers.url
    except NoTls:
        pytest.skip(f"{binary()} was built without TLS")
    finally:
        servers.kill()


def one_server(request: pytest.FixtureRequest) -> str:
    server: OwnRedis = request.getfixturevalue("make_redis")(
        password=None if request.param in ("plain", "valkey") else "p/w",
        tls=request.param == "tls",
        program=sharded_binary() if request.param == "valkey" else "",
    )
    if request.param == "user":
        server.command(
            "ACL",
            "SETUSER",
            "app",
            "on",
            ">s:3",
            "~{chatd}:*",
            "resetchannels",
            "&chatd:*",
            "+@all",
            "-@admin",
            "-@dangerous",
        )
    return {
        "plain": server.url,
        "valkey": server.url,
        "password": server.url,
        "user": f"redis://app:s%3A3@127.0.0.1:{server.port}",
        "database": f"{server.url}/3",
        "unix": server.unix_url,
        "tls": server.tls_url,
    }[request.param]


class Message(NamedTuple):
    channel: str
    data: bytes


class Ear:
    """A `SubscriptionListener` that keeps what came."""

    def __init__(self, subscription: Subscription) -> None:
        self.messages: list[Message] = []
        self.subscribed: set[str] = set()
        self.pongs = 0
        self.away: RedisUnavailable | None = None
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._listen(subscription))

    async def _listen(self, subscription: Subscription) -> None:
        try:
            await subscription.listen(self)
        except RedisUnavailable as e:
            self.away = e
            self._news.set()

    def heard(self, channel: str, data: bytes) -> None:
        self.messages.append(Message(channel, data))
        self._news.set()

    def confirmed(self, channel: str) -> None:
        self.subscribed.add(channel)
        self._news.set()

    def ponged(self) -> None:
        self.pongs += 1
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        await until(holds, changed=self._news)

    async def until_away(self) -> RedisUnavailable:
        await self.until(lambda: self.away is not None)
        assert self.away is not None
        return self.away

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Listening:
    """A connected subscription and its ear."""

    def __init__(self, redis_client: RedisClient) -> None:
        self.subscription = redis_client.subscription()
        self.ear: Ear

    async def __aenter__(self) -> Listening:
        await self.subscription.connect()
        self.ear = Ear(self.subscription)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.subscription.close()
        await self.ear.stop()

    async def to(self, *names: str) -> None:
        await self.subscription.subscribe(names)
        await self.ear.until(lambda: self.ear.subscribed >= set(names))

    async def pong(self) -> None:
        """All that was said before it has been heard."""
        pongs = self.ear.pongs
        await self.subscription.ping()
        await self.ear.until(lambda: self.ear.pongs > pongs)


@pytest_asyncio.fixture
async def make_redis_client() -> AsyncIterator[Callable[..., RedisClient]]:
    made: list[RedisClient] = []

    def make(url: str, **options: Any) -> RedisClient:
        made.append(RedisClient(url, **options))
        return made[-1]

    yield make
    for redis_client in made:
        await redis_client.close()


MakeRedisClient: TypeAlias = Callable[..., RedisClient]


@pytest.fixture
def redis_client(own_redis: OwnRedis, make_redis_client: MakeRedisClient) -> RedisClient:
    return make_redis_client(own_redis.url)


async def until_back(redis_client: RedisClient) -> None:
    """Ask until it answers: as pub/sub does."""

    async def answers() -> bool:
        try:
            await redis_client.check()
        except RedisUnavailable:
            return False
        return True

    await until(answers, pause_s=0.02)


async def refused(redis_client: RedisClient) -> str:
    with pytest.raises(SettingError) as e:
        await redis_client.check()
    text = str(e.value)
    assert text.startswith("redis_url: ")
    assert "hidden" not in text
    return text


async def fail(_: RedisPyClient) -> None:
    raise exceptions.ConnectionError("the server went away")
