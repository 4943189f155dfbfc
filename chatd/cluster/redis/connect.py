"""redis-py's clients, one for each shape of URL, and what their failures mean.

The clients retry nothing: whoever asks decides what is worth repeating. They speak RESP2, which
Redis 6.2 to 8 speak alike, and in which what a subscription hears is a plain answer. redis-py
raises some twenty types from four branches, with texts that may hold whole commands: `reason` makes
one short line of them, and `remedy` knows which of them waiting will not mend.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

import structlog
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelManagedSSLConnection
from redis.backoff import NoBackoff

from chatd.cluster.redis.url import RedisUrl
from chatd.core.rate_limit import TokenBucket
from chatd.errors import SettingError

log = structlog.get_logger("redis")

CONNECTIONS_MAX: Final = 32  # to one server; a command past it fails at once
REASON_MAX: Final = 160
NODE_SHARE: Final = 4  # of several servers that may answer, each gets this part of the time

Client: TypeAlias = Redis | RedisCluster

# 6.2 puts it before what matters
_IN_SCRIPT: Final = re.compile(r"Error running script \(call to \w+\): (@\w+: ?\d+: )*-?")

# redis-py closes connections, also when another task is about to use them (8.1:
# `ClusterNode.disconnect_free_connections`); that one then sees this.
_RACE: Final = re.compile(r"'NoneType' object has no attribute|handler is closed|unable to perform operation on <")

_traces: Final = TokenBucket(0.1, 3)  # lines with a trace

_ROLE_ERRORS: Final = (exceptions.ReadOnlyError, exceptions.ClusterError, exceptions.AskError, exceptions.TryAgainError)
FAULTS: Final = (exceptions.RedisError, exceptions.RedisClusterException, OSError, EOFError)


class Away(Exception):
    """Redis did not do it, or did not say so: unreachable, silent, full, read-only, loading,
    without a master. `str()` says why, in short.
    """


def tls_context(url: RedisUrl) -> ssl.SSLContext | None:
    """One for all connections: each of redis-py's would make its own, which reads all certificates
    of the system and holds up the loop for 20 ms.

    Raises SettingError for files that cannot be read: made at the time of connecting, it would be
    taken for an outage.
    """
    if not url.tls:
        return None
    try:
        return SSLConnection(**{"ssl_check_hostname": True, **url.options}).ssl_context.get()
    except OSError as e:  # ssl's own errors are such
        wrong = f"names certificates or a key that cannot be read ({e.strerror or e})"
        raise SettingError(f"redis_url: {url.masked} {wrong}; mend its ssl_ options") from e


def _sharing(base: type[SSLConnection], context: ssl.SSLContext) -> type[SSLConnection]:
    class Sharing(base):  # type: ignore[valid-type, misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context.context = context

    return Sharing


def open_client(
    url: RedisUrl, connect_s: float, context: ssl.SSLContext | None, known: Iterable[tuple[str, int]] = ()
) -> Client:
    """Connects to nothing. `known`: more nodes of a Cluster, as some of the URL's may be gone.

    Where several servers may be asked in turn, one that hangs must leave time for the others.
    """
    tls: dict[str, Any] = {"ssl": True, **url.options} if context else {}
    base: dict[str, Any] = {"protocol": 2, "retry": Retry(NoBackoff(), 0), "socket_keepalive": True, **tls}
    each_s = connect_s / NODE_SHARE
    bounded: dict[str, Any] = {"socket_connect_timeout": each_s, "socket_timeout": each_s}
    # The caller's deadline is for all of it
    waiting: dict[str, Any] = {"socket_connect_timeout": connect_s, "socket_timeout": None}
    own: dict[str, Any] = {"username": url.username, "password": url.password, "max_connections": CONNECTIONS_MAX}
    client: Client
    match url.kind:
        case "cluster":
            nodes = [ClusterNode(host, port) for host, port in dict.fromkeys([*url.hosts, *known])]
            # Else it closes all after 5 redirects
            client = RedisCluster(startup_nodes=nodes, reinitialize_steps=0, **base, **own, **bounded)
            if context is not None:
                shared = _sharing(SSLConnection, context)
                client.connection_kwargs["connection_class"] = shared
                for node in client.startup_nodes:
                    node.connection_class = shared
        case "sentinel":
            sentinels = Sentinel(url.hosts, sentinel_kwargs={**base, **bounded, **url.sentinel})  # type: ignore[no-untyped-call]
            client = master = sentinels.master_for(url.service, db=url.db, **waiting, **base, **own)
            if context is not None:
                master.connection_pool.connection_class = _sharing(SentinelManagedSSLConnection, context)
                for sentinel in sentinels.sentinels:
                    sentinel.connection_pool.connection_class = _sharing(SSLConnection, context)
        case "server":
            where = {"unix_socket_path": url.path} if url.path else {"host": url.hosts[0][0], "port": url.hosts[0][1]}
            client = Redis(db=url.db, **where, **waiting, **base, **own)
            if context is not None:
                client.connection_pool.connection_class = _sharing(SSLConnection, context)
    return client


async def close_client(client: Client) -> None:
    with contextlib.suppress(*FAULTS):
        await client.aclose()
    if isinstance(client, RedisCluster):  # its `aclose` does nothing once a node has failed
        for nodes in ("nodes_cache", "startup_nodes"):
            with contextlib.suppress(*FAULTS):
                await client.nodes_manager.aclose(nodes)
    sentinels = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    for sentinel in sentinels.sentinels if sentinels is not None else ():
        with contextlib.suppress(*FAULTS):
            await sentinel.aclose()


# ---- what is wrong -------------------------------------------------------------------------------


@contextlib.contextmanager
def translated(url: RedisUrl, deadline_s: float) -> Iterator[None]:
    """All that redis-py raises becomes Away; but a cancellation of this task stays one.

    For the rest see `unreadable`.
    """
    try:
        yield
    except TimeoutError as e:  # before OSError, which it is one of
        raise Away(f"no answer within {deadline_s:g} s") from e
    except FAULTS as e:
        raise Away(reason(url, e)) from e
    except (AttributeError, RuntimeError) as e:
        if _RACE.search(str(e)) is None:
            raise
        raise Away("another call closed the connection") from e
    except asyncio.CancelledError as e:
        # All who wait for one connection to close await the same future: one who is cancelled
        # cancels it, and with it the others.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Away("another call was cancelled") from e


def unreadable(e: Exception) -> Away:
    """What else fails with a plain command or a subscription: redis-py could not read what is no
    answer of Redis. No answer ends a node.
    """
    if _traces.take(time.monotonic()):
        log.error("redis.unreadable", reason=type(e).__name__, exc_info=e)
    return Away(f"an answer that cannot be read ({type(e).__name__})")


def is_about_the_way(e: BaseException) -> bool:
    """Is it the connection or the server's role that failed, and not the command?"""
    if isinstance(e, exceptions.ResponseError):
        return isinstance(e, _ROLE_ERRORS) or "read only replica" in str(e)
    return not isinstance(e, exceptions.MaxConnectionsError)


def reason(url: RedisUrl, e: BaseException) -> str:
    """In short, and without secrets."""
    if isinstance(e, MasterNotFoundError):
        return f"no Sentinel that answers knows a master of {url.service}"
    # What stands before it is the command, with all that it says
    text = str(e).rpartition("of pipeline caused error: ")[2]
    text = _IN_SCRIPT.sub("", text)
    for secret in url.secrets:
        text = text.replace(secret, "***")
    return " ".join(f"{type(e).__name__}: {text}".split())[:REASON_MAX]


def remedy(url: RedisUrl, prefix: str, fault: BaseException | None) -> str | None:
    """What is wrong with the URL and what would mend it; None if it may come right by itself."""
    chain: list[BaseException] = []
    while fault is not None and fault not in chain:
        chain.append(fault)
        fault = fault.__cause__ or fault.__context__
    said = " ".join(map(str, chain))
    if any(isinstance(e, MasterNotFoundError) for e in chain) and (
        "AuthenticationError" in said or "NoPermissionError" in said
    ):
        return "names Sentinels that ask for a password; add ?sentinel_password=... (and sentinel_username=...)"
    if any(isinstance(e, exceptions.AuthenticationError) for e in chain):
        if url.password is None and url.username is None:
            return "has no password, and Redis asks for one; write redis://:password@host or redis://user:password@host"
        return "has a user or password that Redis does not take; mend it (a password alone stands as redis://:password@host)"
    if any(isinstance(e, exceptions.NoPermissionError) for e in chain) or "user executing the script can't" in said:
        return f"has a user who may not do what chatd does; `ACL SETUSER name ~{{{prefix}}}:* resetchannels &{prefix}:* +@all` in Redis lets it"
    if any(isinstance(e, ssl.SSLCertVerificationError) for e in chain):
        return "has a certificate that cannot be trusted; name its authority by ?ssl_ca_certs=file.pem, and the host as the certificate does"
    if "Cluster mode is not enabled" in said:
        return "is no Cluster; write redis://host"
    if "unknown command" in said.lower():
        return "is too old, or no Redis; chatd needs 6.2 or later"
    if "DB index is out of range" in said:
        return f"has no database {url.db}; end the URL with /0"
    return None
