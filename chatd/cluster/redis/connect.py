"""Makes and closes redis-py's clients, one kind for each shape of URL, and translates their errors.

The clients retry nothing: the caller decides what to repeat. They speak RESP2, which is the same in
Redis 6.2 to 8, and in which a message of a subscription is a plain answer. redis-py raises some
twenty types from four branches, with texts that may hold whole commands. `reason` makes one short
line of them. `remedy` knows which of them do not pass by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
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

CONNECTIONS_MAX: Final = 32  # to one server; a command that would need one more fails at once
REASON_MAX: Final = 160  # characters
NODE_SHARE: Final = 4  # where several servers may answer, each gets a quarter of the time

RedisPyClient: TypeAlias = Redis | RedisCluster

# Redis 6.2 puts this before the error itself
_IN_SCRIPT: Final = re.compile(r"Error running script \(call to \w+\): (@\w+: ?\d+: )*-?")

# redis-py closes connections even if another task is about to use them (8.1:
# `ClusterNode.disconnect_free_connections`). That task then sees one of these errors.
_RACE: Final = re.compile(r"'NoneType' object has no attribute|handler is closed|unable to perform operation on <")

_traces: Final = TokenBucket(0.1, 3)  # log lines with a traceback

_ROLE_ERRORS: Final = (exceptions.ReadOnlyError, exceptions.ClusterError, exceptions.AskError, exceptions.TryAgainError)
FAULTS: Final = (exceptions.RedisError, exceptions.RedisClusterException, OSError, EOFError)


class RedisUnavailable(Exception):
    """Redis did not run a command, or did not confirm it.

    It is unreachable, silent, full, read-only, loading or without a master. `str()` says why.
    """


def tls_context(url: RedisUrl) -> ssl.SSLContext | None:
    """One TLS context for all connections; None without TLS.

    Otherwise each of redis-py's connections would make its own, which reads all certificates of the
    system and blocks the loop for 20 ms. Raises SettingError for files that cannot be read: at
    connect time that would look like an outage.
    """
    if not url.tls:
        return None
    try:
        return SSLConnection(**{"ssl_check_hostname": True, **url.options}).ssl_context.get()
    except OSError as e:  # ssl.SSLError is one
        wrong = f"names certificates or a key that cannot be read ({e.strerror or e})"
        raise SettingError(f"redis_url: {url.masked} {wrong}; correct its ssl_ options") from e


def _sharing(base: type[SSLConnection], context: ssl.SSLContext) -> type[SSLConnection]:
    class Sharing(base):  # type: ignore[valid-type, misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context.context = context

    return Sharing


def open_client(
    url: RedisUrl, connect_s: float, context: ssl.SSLContext | None, known: Iterable[tuple[str, int]] = ()
) -> RedisPyClient:
    """Make a client without connecting.

    `known`: more nodes of a Cluster, as some of the URL's may be gone. `connect_s`: the longest
    that connecting may take. With several servers, one that hangs leaves time for the others.
    """
    tls: dict[str, Any] = {"ssl": True, **url.options} if context else {}
    base: dict[str, Any] = {"protocol": 2, "retry": Retry(NoBackoff(), 0), "socket_keepalive": True, **tls}
    each_s = connect_s / NODE_SHARE
    bounded: dict[str, Any] = {"socket_connect_timeout": each_s, "socket_timeout": each_s}
    # No timeout per answer: the caller's deadline covers the whole call
    waiting: dict[str, Any] = {"socket_connect_timeout": connect_s, "socket_timeout": None}
    own: dict[str, Any] = {"username": url.username, "password": url.password, "max_connections": CONNECTIONS_MAX}
    client: RedisPyClient
    match url.kind:
        case "cluster":
            nodes = [ClusterNode(host, port) for host, port in dict.fromkeys([*url.hosts, *known])]
            # reinitialize_steps=0, or redis-py closes all connections after 5 redirects
            client = RedisCluster(startup_nodes=nodes, reinitialize_steps=0, **base, **own, **bounded)
            if context is not None:
                shared = _sharing(SSLConnection, context)
                client.connection_kwargs["connection_class"] = shared
                for node in client.startup_nodes:
                    node.connection_class = shared
        case "sentinel":
            own_of_sentinels = {**base, **bounded, **url.sentinel}
            sentinels = Sentinel(url.hosts, sentinel_kwargs=own_of_sentinels)  # type: ignore[no-untyped-call]
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


async def close_client(client: RedisPyClient) -> None:
    """Close all connections of a client. Errors are ignored."""
    with contextlib.suppress(*FAULTS):
        await client.aclose()
    if isinstance(client, RedisCluster):  # its own `aclose` does nothing once a node has failed
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
    """Raise RedisUnavailable for errors of redis-py. A cancellation of this task stays one.

    Errors that redis-py does not mean to raise pass through; see `unreadable`.
    """
    try:
        yield
    except TimeoutError as e:  # before OSError, of which it is a subclass
        raise RedisUnavailable(f"no answer within {deadline_s:g} s") from e
    except FAULTS as e:
        raise RedisUnavailable(reason(url, e)) from e
    except (AttributeError, RuntimeError) as e:
        if _RACE.search(str(e)) is None:
            raise
        raise RedisUnavailable("another call closed the connection") from e
    except asyncio.CancelledError as e:
        # All tasks that wait for one connection to close await the same future. If one of them is
        # cancelled, the future is, and so are the others.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RedisUnavailable("another call was cancelled") from e


def unreadable(e: Exception) -> RedisUnavailable:
    """RedisUnavailable for an error of redis-py on an answer that Redis cannot give.

    So no answer, however wrong, ends a node. Logs the traceback of the first such errors.
    """
    if _traces.take(time.monotonic()):
        log.error("redis.unreadable", reason=type(e).__name__, exc_info=e)
    return RedisUnavailable(f"an answer that cannot be read ({type(e).__name__})")


# Errors by their first word, as redis-py has them
_ERRORS: Final[Mapping[str, type[exceptions.RedisError]]] = {
    "ASK": exceptions.AskError,
    "CLUSTERDOWN": exceptions.ClusterDownError,
    "CROSSSLOT": exceptions.ClusterCrossSlotError,
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "MOVED": exceptions.MovedError,
    "NOAUTH": exceptions.AuthenticationError,
    "NOPERM": exceptions.NoPermissionError,
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "TRYAGAIN": exceptions.TryAgainError,
    "WRONGPASS": exceptions.AuthenticationError,
}


def error_of(text: str) -> exceptions.RedisError:
    """The exception of redis-py for the text of an error, such as "READONLY You can't ..."."""
    code, _, said = text.partition(" ")
    kind = _ERRORS.get(code)
    try:
        return exceptions.ResponseError(text) if kind is None else kind(said)
    except (ValueError, IndexError):  # "MOVED" without a slot and an address
        return exceptions.ResponseError(text)


def is_about_the_way(e: BaseException) -> bool:
    """Whether the connection or the server's role failed, and not the command."""
    if isinstance(e, exceptions.ResponseError):
        return isinstance(e, _ROLE_ERRORS) or "read only replica" in str(e)
    return not isinstance(e, exceptions.MaxConnectionsError)


def unavailable(url: RedisUrl, fault: BaseException) -> RedisUnavailable:
    """RedisUnavailable with the reason of a failure, which is its cause."""
    told = RedisUnavailable(reason(url, fault))
    told.__cause__ = fault
    return told


def reason(url: RedisUrl, e: BaseException) -> str:
    """One short line about an error, without secrets."""
    if isinstance(e, MasterNotFoundError):
        return f"no Sentinel that answers knows a master of {url.service}"
    # The text before it is the whole command, with its arguments
    text = str(e).rpartition("of pipeline caused error: ")[2]
    text = _IN_SCRIPT.sub("", text)
    for secret in url.secrets:
        text = text.replace(secret, "***")
    return " ".join(f"{type(e).__name__}: {text}".split())[:REASON_MAX]


def remedy(url: RedisUrl, prefix: str, fault: BaseException | None) -> str | None:
    """What is wrong with the URL, and what to do; None if it may pass by itself."""
    chain: list[BaseException] = []
    while fault is not None and fault not in chain:
        chain.append(fault)
        fault = fault.__cause__ or fault.__context__
    texts = " ".join(map(str, chain))
    if any(isinstance(e, MasterNotFoundError) for e in chain) and (
        "AuthenticationError" in texts or "NoPermissionError" in texts
    ):
        return "names Sentinels that ask for a password; add ?sentinel_password=... (and sentinel_username=...)"
    if any(isinstance(e, exceptions.AuthenticationError) for e in chain):
        if url.password is None and url.username is None:
            return "has no password, and Redis asks for one; write redis://:password@host or redis://user:password@host"
        return (
            "has a user or password that Redis does not take; correct it "
            "(write a password alone as redis://:password@host)"
        )
    if any(isinstance(e, exceptions.NoPermissionError) for e in chain) or "user executing the script can't" in texts:
        acl = f"ACL SETUSER name ~{{{prefix}}}:* resetchannels &{prefix}:* +@all"
        return f"has a user who may not do what chatd does; run `{acl}` in Redis"
    if any(isinstance(e, ssl.SSLCertVerificationError) for e in chain):
        return (
            "has a certificate that is not trusted; name its authority by ?ssl_ca_certs=file.pem, "
            "and the host as the certificate does"
        )
    if "Cluster mode is not enabled" in texts:
        return "is no Cluster; write redis://host"
    if "unknown command" in texts.lower():
        return "is too old or not Redis; chatd needs Redis 6.2 or later"
    if "DB index is out of range" in texts:
        return f"has no database {url.db}; end the URL with /0"
    return None
