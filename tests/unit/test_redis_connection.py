"""What Redis may answer, cut anywhere; what no Redis answers; and how much is handed on in a turn."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import exceptions

from chatd.cluster.redis import connection as module
from chatd.cluster.redis import url as redis_url
from chatd.cluster.redis.connect import RedisUnavailable
from chatd.cluster.redis.connection import REPLY_BYTES_MAX, TURN_MAX, Connection, pack

URL = redis_url.read("redis://:hidden@host")
REPLIES: st.SearchStrategy[Any] = st.recursive(
    st.binary(max_size=40) | st.integers(-(2**63), 2**63 - 1) | st.none(), lambda each: st.lists(each, max_size=4)
)


def encoded(reply: Any) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%s\r\n" % (len(reply), reply)
    return b"*%d\r\n%s" % (len(reply), b"".join(map(encoded, reply)))


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol = asyncio.Protocol()
        self.written = b""
        self.reads = True
        self.aborted = 0

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def write(self, data: Any) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted += 1


class RedisPy:
    """In the place of redis-py's connection, and of its pool."""

    connection_kwargs: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, at_eof: bool = False) -> None:
        self._reader, self._writer = asyncio.StreamReader(), self
        self.transport = Transport()
        self.closed = 0
        if at_eof:
            self._reader.feed_eof()

    def connection_class(self, **_: Any) -> RedisPy:
        return self

    async def connect(self) -> None:
        """At once."""

    def _close(self) -> None:
        self.closed += 1


class Owner:
    def __init__(self, made: RedisPy) -> None:
        self.made = made
        self.taken: list[Any] = []
        self.lost: list[Exception] = []
        self.fault: Exception | None = None
        self.connection: Connection

    def take(self, reply: Any) -> None:
        self.taken.append(reply)
        if self.fault is not None:
            raise self.fault

    async def opened(self) -> Owner:
        source: Any = self.made
        self.connection = await Connection.open(source, URL, self.take, self.lost.append)
        self.connection.start()
        return self

    async def gets(self, *parts: bytes) -> None:
        """Read as a transport does: only while it may."""
        for part in parts:
            while not self.made.transport.reads:
                await asyncio.sleep(0)
            self.connection.data_received(part)


async def opened() -> Owner:
    return await Owner(RedisPy()).opened()


def parts_of(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


# ---- what Redis answers --------------------------------------------------------------------------


@given(st.lists(REPLIES, max_size=8), st.lists(st.integers(0, 10_000), max_size=12))
def test_replies_cut_anywhere_are_the_same(replies: list[Any], cuts: list[int]) -> None:
    async def case() -> None:
        owner = await opened()
        await owner.gets(*parts_of(b"".join(map(encoded, replies)), cuts))
        assert owner.taken == replies
        assert owner.lost == []

    asyncio.run(case())


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"-READONLY You can't write against a read only replica.", exceptions.ReadOnlyError),
        (b"-NOSCRIPT No matching script. Please use EVAL.", exceptions.NoScriptError),
        (b"-LOADING Redis is loading the dataset in memory", exceptions.BusyLoadingError),
        (b"-NOAUTH Authentication required.", exceptions.AuthenticationError),
        (b"-WRONGPASS invalid username-password pair", exceptions.AuthenticationError),
        (b"-NOPERM this user has no permissions", exceptions.NoPermissionError),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", exceptions.OutOfMemoryError),
        (b"-MASTERDOWN Link with MASTER is down", exceptions.MasterDownError),
        (b"-MOVED 7000 127.0.0.1:1", exceptions.MovedError),
        (b"-MOVED", exceptions.ResponseError),
        (b"-ASK 1", exceptions.ResponseError),
        (b"-ERR unknown command", exceptions.ResponseError),
        (b"-\xff", exceptions.ResponseError),
        (b"-", exceptions.ResponseError),
    ],
)
async def test_an_error_is_an_exception_of_redis_py(line: bytes, kind: type[Exception]) -> None:
    owner = await opened()
    await owner.gets(line + b"\r\n:1\r\n")
    assert [type(owner.taken[0]), owner.taken[1]] == [kind, 1]
    assert owner.lost == []


async def test_one_turn_hands_on_so_many_and_reads_nothing_until_the_rest_is_handed_on() -> None:
    owner = await opened()
    owner.connection.data_received(b":7\r\n" * (TURN_MAX * 2 + 10))
    assert (len(owner.taken), owner.made.transport.reads) == (TURN_MAX, False)
    await asyncio.sleep(0)
    assert (len(owner.taken), owner.made.transport.reads) == (TURN_MAX * 2, False)
    await asyncio.sleep(0)
    assert (len(owner.taken), owner.made.transport.reads) == (TURN_MAX * 2 + 10, True)


LINES = [b"*3", b"$9", b"", b"*-7", b"$-9", b":x", b"%2", b">1", b"#f", b"+\xff", b"HTTP/1.1 400 Bad Request"]


# ---- what no Redis answers -----------------------------------------------------------------------


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([line + b"\r\n" for line in LINES]) | REPLIES.map(encoded),
        max_size=12,
    ),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_whatever_arrives_nothing_is_raised_and_the_end_is_told_once(pieces: list[bytes], cuts: list[int]) -> None:
    async def case() -> None:
        owner = await opened()
        for part in parts_of(b"".join(pieces), cuts):
            owner.connection.data_received(part)
            await asyncio.sleep(0)
        assert len(owner.lost) <= 1
        assert all(isinstance(fault, RedisUnavailable) for fault in owner.lost)
        assert (owner.made.transport.aborted, owner.made.closed) == (len(owner.lost),) * 2
        after = len(owner.taken)
        if owner.lost:
            owner.connection.data_received(b":1\r\n")
            owner.connection.connection_lost(None)
            assert (len(owner.taken), len(owner.lost)) == (after, 1), "nothing arrives after the end"

    asyncio.run(case())


@pytest.mark.parametrize("kind", [b"*", b"%", b"~", b">"])
@pytest.mark.parametrize("number", [b"1000000", b"2000000000", b"9999999999999999999"])
@given(cut=st.integers(0, 24))
@settings(max_examples=25)
def test_an_array_of_a_million_parts_is_not_made(kind: bytes, number: bytes, cut: int) -> None:
    async def case() -> None:
        owner = await opened()
        data = b":1\r\n*2\r\n" + kind + number + b"\r\n"
        await owner.gets(data[:cut], data[cut:])
        assert len(owner.lost) == 1

    asyncio.run(case())


@given(before=st.sampled_from([b":1\r\n", b""]), cuts=st.lists(st.integers(1, 12), max_size=13))
@settings(max_examples=25)
def test_nor_where_it_comes_in_small_pieces(before: bytes, cuts: list[int]) -> None:
    """Behind another reply, and as the first that ever comes."""

    async def case() -> None:
        owner = await opened()
        data = before + b"*2000000000\r\n"
        ends = [*itertools.accumulate(cuts), len(data)]
        await owner.gets(*(data[begin:end] for begin, end in itertools.pairwise([0, *ends])))
        assert len(owner.lost) == 1

    asyncio.run(case())


async def test_what_stands_within_a_line_is_no_header() -> None:
    owner = await opened()
    await owner.gets(encoded(b"2 *2000000000\r\n"), encoded(b"next"))
    assert (owner.taken, owner.lost) == ([b"2 *2000000000\r\n", b"next"], [])


async def test_an_announced_length_reserves_nothing_and_what_comes_is_bounded() -> None:
    owner = await opened()
    tracemalloc.start()
    try:
        await owner.gets(b"$536870912\r\n", b"*999999\r\n")
        assert tracemalloc.get_traced_memory()[0] < 10 << 20
    finally:
        tracemalloc.stop()
    piece = bytes(1 << 20)
    for _ in range(REPLY_BYTES_MAX // len(piece) - 1):
        owner.connection.data_received(piece)
    assert owner.lost == []
    owner.connection.data_received(piece)
    assert [str(fault) for fault in owner.lost] == ["an answer that is too long"]


async def test_many_short_replies_are_no_long_one() -> None:
    owner = await opened()
    reply = encoded(bytes(100_000))
    for _ in range(2 * REPLY_BYTES_MAX // len(reply)):
        await owner.gets(reply)
    assert owner.lost == []


# ---- the end -------------------------------------------------------------------------------------


async def test_a_connection_that_ended_before_it_was_taken_over_is_lost() -> None:
    made = RedisPy(at_eof=True)
    with pytest.raises(ConnectionResetError):
        await Owner(made).opened()
    assert made.closed == 1


async def test_what_the_owner_raises_ends_the_connection_and_is_given_back() -> None:
    owner = await opened()
    owner.fault = ZeroDivisionError("a bug of ours")
    await owner.gets(b":1\r\n:2\r\n")
    assert (owner.taken, owner.lost) == ([1], [owner.fault])


@pytest.mark.parametrize("exc", [None, ConnectionResetError("reset"), TimeoutError()])
async def test_the_end_of_the_transport_is_told_without_secrets(exc: Exception | None) -> None:
    owner = await opened()
    owner.connection.connection_lost(exc)
    assert [type(fault) for fault in owner.lost] == [RedisUnavailable]
    assert str(owner.lost[0])
    owner.connection.write(b"x")
    assert owner.made.transport.written == b"", "nothing is written after the end"


async def test_after_close_nothing_is_told() -> None:
    owner = await opened()
    owner.connection.close()
    owner.connection.data_received(b":1\r\n")
    owner.connection.connection_lost(None)
    assert (owner.taken, owner.lost, owner.made.transport.aborted) == ([], [], 1)


def test_words_are_packed_as_redis_reads_them() -> None:
    assert pack(("A", b"\xff\r\n", 7, "é")) == b"*4\r\n$1\r\nA\r\n$3\r\n\xff\r\n\r\n$1\r\n7\r\n$2\r\n\xc3\xa9\r\n"


def test_a_turn_is_shorter_than_a_reply_may_be() -> None:
    assert module.OUTPUT_BYTES_MAX >= 500 * 12_000, "one call of publishes, each of them escaped to the full"
