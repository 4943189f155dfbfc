"""What chatd uses of redis-py that redis-py documents nowhere and may change in any release: hence
the cap in setup.cfg.

A release that fails here is not taken by moving the cap: the module named has to be changed first,
then `make test` with tests/cluster.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import hiredis
import pytest
import redis
from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.asyncio.connection import AbstractConnection, SSLConnection

from chatd.cluster.redis import url as redis_url
from chatd.cluster.redis.connect import open_client, tls_context

NONE = inspect.Parameter.empty
# Owner, method, parameters that are given by name or place, who calls it
METHODS: list[tuple[Any, str, tuple[str, ...], str]] = [
    (AbstractConnection, "connect", (), "cluster/redis/connection"),
    (AbstractConnection, "_close", (), "cluster/redis/connection"),
    (RedisCluster, "get_node_from_key", ("key",), "cluster/redis/subscription"),
    (RedisCluster, "keyslot", ("key",), "cluster/redis/subscription"),
    (RedisCluster, "initialize", (), "cluster/redis/client"),
    (ClusterNode, "execute_pipeline", ("commands",), "cluster/redis/client"),
    (ClusterNode, "disconnect_free_connections", (), "cluster/redis/connect"),  # whose race `_RACE` knows by its texts
]
ATTRIBUTES = [  # kind of URL, path from the client, who uses it
    ("redis://host", "connection_pool.connection_class", "cluster/redis/connect"),
    ("redis://host", "connection_pool.connection_kwargs", "cluster/redis/connection"),
    ("redis+sentinel://host/main", "connection_pool.connection_class", "cluster/redis/connect"),
    ("redis+sentinel://host/main", "connection_pool.sentinel_manager.sentinels", "cluster/redis/connect"),
    ("redis+cluster://host", "connection_kwargs", "cluster/redis/connect"),
    ("redis+cluster://host", "startup_nodes", "cluster/redis/connect"),
    ("redis+cluster://host", "nodes_manager.initialize", "cluster/redis/client"),
    ("redis+cluster://host", "nodes_manager.aclose", "cluster/redis/connect"),
    ("redis+cluster://host", "nodes_manager.nodes_cache", "cluster/redis/connect"),
    ("redis+cluster://host", "nodes_manager.startup_nodes", "cluster/redis/connect"),
]


def gone(what: str, module: str) -> str:
    return (
        f"redis-py {redis.__version__} has no {what}, which {module}.py uses: keep the cap in setup.cfg below it, or"
        f" change {module} first"
    )


@pytest.mark.parametrize(
    ("owner", "name", "parameters", "module"), METHODS, ids=lambda each: each if isinstance(each, str) else ""
)
def test_a_method_is_there_with_its_parameters(owner: Any, name: str, parameters: tuple[str, ...], module: str) -> None:
    method = getattr(owner, name, None)
    assert method is not None, gone(f"{owner.__name__}.{name}", module)
    taken = inspect.signature(method).parameters
    for parameter in parameters:
        assert parameter in taken, gone(f"parameter {parameter} of {owner.__name__}.{name}", module)
    needed = [
        one.name
        for one in taken.values()
        if one.default is NONE and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    assert {*needed} <= {"self", *parameters}, (
        f"{owner.__name__}.{name} wants more in redis-py {redis.__version__}: change {module}"
    )


@pytest.mark.parametrize(("url", "path", "module"), ATTRIBUTES)
async def test_an_attribute_is_there(url: str, path: str, module: str) -> None:
    """Async: a client of a Cluster may want a loop. Nothing connects."""
    found: Any = open_client(redis_url.read(url), 1.0, None)
    for name in path.split("."):
        assert hasattr(found, name), gone(f"{type(found).__name__}.{name}", module)
        found = getattr(found, name)


@pytest.mark.parametrize("name", ["connection_class", "connection_kwargs", "name", "host", "port"])
def test_a_node_of_a_cluster_says_how_to_connect_to_it(name: str) -> None:
    assert hasattr(ClusterNode("host", 6379), name), gone(f"ClusterNode.{name}", "cluster/redis/connection")


def test_a_command_of_a_pipeline_keeps_its_words_and_its_result() -> None:
    command = PipelineCommand(0, "SPUBLISH", "channel", b"data")
    assert command.args == ("SPUBLISH", "channel", b"data"), gone("PipelineCommand.args", "cluster/redis/client")
    assert hasattr(command, "result"), gone("PipelineCommand.result", "cluster/redis/client")


@pytest.mark.parametrize("url", ["rediss://host", "rediss+sentinel://host/main", "rediss+cluster://host"])
async def test_connections_share_one_tls_context(url: str) -> None:
    """`ssl_context.context` is what a connection would make for itself; ours is there already."""
    read = redis_url.read(url)
    context = tls_context(read)
    client: Any = open_client(read, 1.0, context)
    source = client.startup_nodes[0] if read.kind == "cluster" else client.connection_pool
    connection = source.connection_class(
        **{name: value for name, value in source.connection_kwargs.items() if name != "connection_pool"},
        **({"connection_pool": client.connection_pool} if read.kind == "sentinel" else {}),
    )
    assert isinstance(connection, SSLConnection)
    assert connection.ssl_context.context is context, gone("SSLConnection.ssl_context.context", "cluster/redis/connect")


async def test_the_streams_of_a_connection_are_found_and_closed_without_waiting() -> None:
    """They are taken over (cluster/redis/connection.py), and closed where nothing can be awaited."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.startswith((b"CLIENT", b"client")):
                writer.write(b"+OK\r\n")
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        client: Any = open_client(redis_url.read(f"redis://{host}:{port}"), 5.0, None)
        pool = client.connection_pool
        made: Any = pool.connection_class(**pool.connection_kwargs)
        await made.connect()
        for name, kind in (("_reader", asyncio.StreamReader), ("_writer", asyncio.StreamWriter)):
            assert isinstance(getattr(made, name, None), kind), gone(f"Connection.{name}", "cluster/redis/connection")
        transport = made._writer.transport
        assert made._close() is None, gone("a Connection._close that is no coroutine", "cluster/redis/connection")
        assert transport.is_closing()
        assert not made.is_connected
        await ended.wait()


def test_hiredis_says_what_is_incomplete_and_makes_errors_by_a_callable() -> None:
    more = object()
    reader = hiredis.Reader(replyError=lambda text: ValueError(text), notEnoughData=more)
    reader.feed(b"*2\r\n$1\r\n")
    assert reader.gets() is more
    reader.feed(b"a\r\n-ERR x\r\n-ERR y\r\n")
    (first, second), third = reader.gets(), reader.gets()
    assert first == b"a"
    assert [type(second), str(third)] == [ValueError, "ERR y"]
    assert reader.gets() is more
