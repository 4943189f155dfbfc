"""One connection to Redis: redis-py makes it, and is not asked again until it ends.

    redis-py: name, TCP, TLS, AUTH, SELECT, who is the master ──► transport ──► Connection
    transport ──read──► hiredis.Reader ──► take(reply), in order
                └─ the end, no RESP, too much ──► lost(reason), once

So all of connecting stays the library's, for each shape of Redis, and what happens thousands of
times a second costs a call of `feed` and one of `gets`. A command through redis-py costs 120 us of
Python, and 14 us here; a received message 4.6 and 0.6 us (docs/decisions/0055).

Bounds. A reply of more than `REPLY_BYTES_MAX`, or an array of a million elements, ends the
connection. One loop turn hands on `TURN_MAX` replies: until the rest is handed on, nothing more is
read, and TCP holds Redis back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

import hiredis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import ConnectionPool

from chatd.cluster.redis.connect import RedisUnavailable, error_of, unavailable
from chatd.cluster.redis.url import RedisUrl

REPLY_BYTES_MAX: Final = 16 << 20  # the largest that chatd asks for is a tenth of a MiB
TURN_MAX: Final = 200  # replies handed on in one loop turn: some 3 ms of messages
OUTPUT_BYTES_MAX: Final = 16 << 20  # unsent; one call of publishes has 6 MiB at most

# hiredis makes a list of as many elements as an array announces. It is not touched until it is
# freed, which takes 4 s for 2,000,000,000. No text of a user holds a carriage return. The pattern
# begins with the end of the line before: a first byte that is always the same is found in 0.2 us a
# message, one of four bytes in 1.9 us.
_HUGE: Final = re.compile(rb"\n[*%~>][0-9]{7,}\r\n")
_HEADER_BYTES_MAX: Final = 25  # with the end of the line before
_MORE: Final = object()  # what hiredis answers while a reply is incomplete


Word: TypeAlias = str | bytes | int | float
pack: Final[Callable[[Sequence[Word]], bytes]] = cast(Any, hiredis.pack_command)


class RedisPyConnection(Protocol):
    """What is used of a connection of redis-py, most of it beyond its documentation."""

    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    async def connect(self) -> None: ...
    def _close(self) -> None: ...


class Connection(asyncio.Protocol):
    """`open` it, and call `start`. After `lost` was called, or `close`, nothing arrives.

    `take` gets each reply: bytes, int, None, a list of these, or an exception of redis-py for an
    error. What it raises ends the connection, and is given to `lost`.
    """

    def __init__(self, url: RedisUrl, take: Callable[[Any], None], lost: Callable[[Exception], None]) -> None:
        self._url, self._take, self._lost = url, take, lost
        self._parser = hiredis.Reader(replyError=error_of, notEnoughData=_MORE)
        self._unread = 0  # bytes since the last reply; those of one read may count twice
        self._tail = b"\n"  # of what was read, in which a header may have begun
        self._closed = False
        self._delivering = False  # replies of an earlier turn wait
        self._redis_py: RedisPyConnection  # its streams close the transport when they are freed
        self._streams: asyncio.BaseProtocol
        self._transport: asyncio.Transport
        self.is_full = False  # Redis does not read: `OUTPUT_BYTES_MAX` are unsent

    @classmethod
    async def open(
        cls,
        source: ConnectionPool | ClusterNode,
        url: RedisUrl,
        take: Callable[[Any], None],
        lost: Callable[[Exception], None],
    ) -> Connection:
        """Connect as redis-py does. Reads nothing until `start`. Raises what redis-py raises."""
        made = cast(RedisPyConnection, source.connection_class(**{**source.connection_kwargs, "socket_timeout": None}))
        try:
            await made.connect()
            connection = cls(url, take, lost)
            connection._take_over(made)
        except BaseException:
            made._close()
            raise
        return connection

    def _take_over(self, made: RedisPyConnection) -> None:
        if made._reader.at_eof():
            raise ConnectionResetError("Connection closed by server.")
        transport = cast(asyncio.Transport, made._writer.transport)
        self._redis_py, self._transport, self._streams = made, transport, transport.get_protocol()
        transport.set_protocol(self)
        transport.set_write_buffer_limits(high=OUTPUT_BYTES_MAX)
        transport.pause_reading()

    def start(self) -> None:
        """Read from now on."""
        if not self._closed:
            self._transport.resume_reading()

    # ---- out -------------------------------------------------------------------------------------

    def write(self, packed: bytes) -> None:
        """Send packed commands. uvloop writes all of a loop turn at its end, at once."""
        if not self._closed:
            self._transport.write(packed)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False

    # ---- in --------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        self._unread += len(data)
        if _HUGE.search(data) or _HUGE.search(self._tail + data[:_HEADER_BYTES_MAX]):
            self.fail(RedisUnavailable("an answer of more than a million parts"))
            return
        self._tail = (self._tail + data[-_HEADER_BYTES_MAX:])[-_HEADER_BYTES_MAX:]
        self._parser.feed(data)
        if not self._delivering:
            self._deliver()

    def _deliver(self) -> None:
        """Hand on what was read, `TURN_MAX` replies of it."""
        gets, take = self._parser.gets, self._take
        try:
            for _ in range(TURN_MAX):
                if self._closed:
                    return
                try:
                    reply = gets()
                except Exception as e:  # no RESP, or a RESP3 map whose key is a list
                    raise unavailable(self._url, e) from e
                if reply is _MORE:
                    self._all_delivered()
                    return
                self._unread = 0
                take(reply)
        except Exception as e:
            self.fail(e)
        else:
            if not self._closed:
                self._hold_back()

    def _hold_back(self) -> None:
        """Go on in the next loop turn, and read nothing more until then."""
        if not self._delivering:
            self._delivering = True
            self._transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._deliver)

    def _all_delivered(self) -> None:
        if self._unread > REPLY_BYTES_MAX:
            raise RedisUnavailable("an answer that is too long")
        if self._delivering:
            self._delivering = False
            self._transport.resume_reading()

    # ---- the end ---------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.connection_lost(exc)
        self.fail(exc or ConnectionResetError("Connection closed by server."))

    def fail(self, fault: Exception) -> None:
        """End the connection, and call `lost`. Idempotent."""
        if self._closed:
            return
        self._end()
        if isinstance(fault, OSError):
            fault = unavailable(self._url, fault)
        self._lost(fault)

    def close(self) -> None:
        """End the connection. `lost` is not called. Idempotent."""
        if not self._closed:
            self._end()

    def _end(self) -> None:
        self._closed = True
        self._transport.abort()
        self._redis_py._close()
