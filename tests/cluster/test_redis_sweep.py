"""Every call to Redis fails with every kind of error: the node lives, and is right after it.

Keys of wrong types: test_presence_sync.py.

A whole node in this process, with a neighbour that is left alone. Errors are injected in the place
of what Redis has answered.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio
from redis import exceptions

from chatd.cluster.redis import client as client_module
from chatd.cluster.redis.connect import RedisUnavailable
from chatd.cluster.redis.pipeline import Pipeline
from tests.client import Peer
from tests.fix_redis import OwnRedis
from tests.fix_server import MakeServer, Server
from tests.until import until

pytestmark = pytest.mark.cluster

ERRORS: dict[str, BaseException] = {
    "NOPERM": exceptions.NoPermissionError("this user has no permissions to run the 'evalsha' command"),
    "NOAUTH": exceptions.AuthenticationError("Authentication required."),
    "OOM": exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    "READONLY": exceptions.ReadOnlyError("You can't write against a read only replica."),
    "LOADING": exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
    "CLUSTERDOWN": exceptions.ClusterDownError("CLUSTERDOWN The cluster is down"),
    "MOVED": exceptions.MovedError("7000 127.0.0.1:1"),
    "TRYAGAIN": exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
    "MISCONF": exceptions.ResponseError(
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk."
    ),
    "WRONGTYPE": exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    "BUSY": exceptions.ResponseError("BUSY Redis is busy running a script."),
    "NOSCRIPT": exceptions.NoScriptError("No matching script."),
    "script": exceptions.ResponseError(
        "Error running script (call to f_0): @user_script:1: attempt to compare nil with number"
    ),
    "MASTERDOWN": exceptions.MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    "NOREPLICAS": exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
    "too many": exceptions.MaxConnectionsError("Too many connections"),
    "protocol": exceptions.InvalidResponse("Protocol Error: b'x'"),
    "gone": exceptions.ConnectionError("Connection closed by server."),
    "reset": ConnectionResetError("reset"),
    "timeout": exceptions.TimeoutError("Timeout reading from socket"),
    "unreadable": ValueError("invalid literal for int() with base 10: b'x'"),
    "not text": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "a bug of redis-py": AttributeError("'int' object has no attribute 'decode'"),
}
ANSWERS: dict[str, object] = {
    "None": None, "a number": 7, "bytes": b"x", "nothing": [], "a list": [b"a", [1, [None]], -1], "an error":
    exceptions.ResponseError("x"), "a map": {b"a": 1},
}  # fmt: skip

CALLS = 2  # of each kind


@pytest_asyncio.fixture
async def pair(
    make_server: MakeServer, fresh_db: str, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> tuple[Server, Server]:
    monkeypatch.setattr("chatd.cluster.shared_limits.PROBE_S", 0.05)
    monkeypatch.setattr("chatd.cluster.shared_limits.PROBE_MAX_S", 0.05)
    monkeypatch.setattr(client_module, "RENEW_S", 0.05)
    a, b = [await make_server(database_url=fresh_db, redis_url=own_redis.url, lease_ms=1_000) for _ in range(2)]
    await well(a, b)
    return a, b


async def well(*servers: Server) -> None:
    clusters = [server.node.cluster for server in servers if server.node.cluster is not None]
    await until(
        lambda: all(
            one.pubsub.up
            and not one.presence_sync.stale
            and not one.shared_limits.open
            and one.presence_sync.nodes == 1
            for one in clusters
        ),
        "all is well",
    )


async def talks(alice: Peer, bob: Peer, n: int) -> None:
    ok = await alice.say("bob", f"{n}")
    assert ok["t"] == "ok", ok
    assert (await bob.push("entry"))["body"] == f"{n}"


async def endures(a: Server, b: Server, begin: Any, end: Any, failing: int) -> None:
    alice, bob = await a.connect("alice"), await b.connect("bob")
    await talks(alice, bob, 1)
    calls = begin()
    await until(lambda: calls() >= failing, "some calls have failed")
    await talks(alice, bob, 2)
    late = await a.connect("carol")
    end()
    await well(a, b)
    assert not a.node.tasks.failed.done(), "the node lives"
    await late.say("bob", "hello")
    await bob.push("entry")
    await bob.say("carol", "hello")
    assert (await bob.request("watch", users=["carol"]))["t"] == "ok"

    async def is_online() -> bool:
        return bool((await bob.request("watch", users=["carol"]))["presence"][0]["state"] == "online")

    await until(is_online, pause_s=0.02)
    assert not any(task.done() for task in a.node.tasks.watched.values())


async def test_whatever_redis_says_to_any_command_the_node_lives_and_is_right_after_it(
    pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind after the other, each for several calls of whichever parts make them."""
    a, b = pair
    assert a.node.cluster is not None
    kinds = [kind for _ in range(CALLS) for kind in (*ERRORS, *ANSWERS)]
    n = 0
    pipeline = a.node.cluster.redis_client.pipeline
    real: Any = Pipeline._take

    def answer(self: Pipeline, reply: object) -> None:
        nonlocal n
        if self is not pipeline:
            real(self, reply)
            return
        n += 1
        kind = kinds[n % len(kinds)]
        real(self, ERRORS[kind] if kind in ERRORS else ANSWERS[kind])

    def begin() -> Any:
        assert pipeline is not None
        assert pipeline._connection is not None
        monkeypatch.setattr(Pipeline, "_take", answer)
        pipeline._connection.fail(RedisUnavailable("its end"))  # the next one answers so
        return lambda: n

    def end() -> None:
        assert pipeline is not None
        monkeypatch.setattr(Pipeline, "_take", real)
        if pipeline._connection is not None:
            pipeline._connection.fail(RedisUnavailable("its end"))

    await endures(a, b, begin, end, len(kinds))
