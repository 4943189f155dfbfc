"""Calls on one connection: each gets its own answer, whoever gives up, and none waits for ever."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions

from chatd.cluster.redis import pipeline as module
from chatd.cluster.redis import url as redis_url
from chatd.cluster.redis.client import RedisClient
from chatd.cluster.redis.connect import RedisPyClient, RedisUnavailable, error_of
from chatd.cluster.redis.connection import Connection
from chatd.cluster.redis.pipeline import Pipeline

LONG_S = 30.0


class Line:
    """In the place of a connection: what was written, and answers when the test says so."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.written: list[bytes] = []
        self.is_full = False
        self.fault: Exception | None = None

    def start(self) -> None:
        """At once."""

    def write(self, packed: bytes) -> None:
        self.written.append(packed)

    def answers(self, *replies: Any) -> None:
        for reply in replies:
            try:
                self._pipeline._take(reply)
            except Exception as e:  # as Connection does
                self.fail(e)
                return

    def fail(self, fault: Exception) -> None:
        self.fault = fault
        self._pipeline._lost(fault)


class Source:
    """In the place of RedisClient. `faults`: of the next attempts; None: it connects."""

    def __init__(self, deadline_s: float = LONG_S) -> None:
        self.url, self.deadline_s = redis_url.read("redis://host"), deadline_s
        self.pipeline = Pipeline(self)
        self.lines: list[Line] = []
        self.faults: list[Exception | None] = []
        self.may_connect = asyncio.Event()
        self.may_connect.set()

    async def run(self, _: Callable[[RedisPyClient], Awaitable[Connection]]) -> Connection:
        await self.may_connect.wait()
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        self.lines.append(Line(self.pipeline))
        return cast(Connection, self.lines[-1])

    async def sources(self, client: RedisPyClient) -> Any:
        raise AssertionError("the step of connecting is not run here")

    def call(self, word: bytes, within_s: float = LONG_S, replies: int = 1) -> asyncio.Task[Any]:
        return asyncio.create_task(self.pipeline.call(word, within_s, replies))

    async def up(self) -> Line:
        """A line that has answered once: a new one, as the last one has ended."""
        known = len(self.lines)
        first = self.call(b"first")
        while len(self.lines) == known or not self.lines[-1].written:
            await asyncio.sleep(0)
        self.lines[-1].answers(b"ok")
        await first
        return self.lines[-1]


async def turns(n: int = 3) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


# ---- each its own answer -------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["call", "two", "answer", "give up", "error"]), max_size=40), st.randoms())
def test_each_call_gets_its_own_answer_whoever_gives_up(steps: list[str], rng: Any) -> None:
    async def case() -> None:
        source = Source()
        line = await source.up()
        waiting: list[tuple[int, asyncio.Task[Any]]] = []  # missing replies of each, in order
        n, given_up = 0, set()
        answered: dict[int, Any] = {}
        tasks: list[asyncio.Task[Any]] = []
        for step in steps:
            if step in ("call", "two"):
                tasks.append(source.call(b"%d" % n, LONG_S, 1 + (step == "two")))
                waiting.append((1 + (step == "two"), tasks[-1]))
                n += 1
                await turns()
            elif step == "give up" and tasks:
                task = rng.choice(tasks)
                if task.cancel():
                    given_up.add(tasks.index(task))
                await turns()
            elif waiting:
                missing, task = waiting.pop(0)
                at = tasks.index(task)
                last = [error_of(f"ERR {at}")] if step == "error" else [b"%d" % at]
                line.answers(*[b"other"] * (missing - 1), *last)
                answered[at] = step
                await turns()
        assert line.written == [b"first"] + [b"%d" % k for k in range(n)]
        for at, task in enumerate(tasks):
            if at in given_up:
                assert task.cancelled()
            elif at not in answered:
                assert not task.done()
                task.cancel()
            elif answered[at] == "error":
                assert str(at) in str(task.exception())
            else:
                assert task.result() == b"%d" % at
        assert line.fault is None
        await turns()

    asyncio.run(case())


async def test_of_several_errors_in_one_call_the_first_is_told() -> None:
    source = Source()
    line = await source.up()
    call = source.call(b"x", replies=3)
    await turns()
    line.answers(b"ok", error_of("NOSCRIPT one"), error_of("ERR two"))
    with pytest.raises(RedisUnavailable, match="one") as e:
        await call
    assert isinstance(e.value.__cause__, exceptions.NoScriptError)


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        ("READONLY You can't write against a read only replica.", True),
        ("ERR Error running script (call to f_0): -READONLY You can't write against a read only replica", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("MASTERDOWN Link with MASTER is down", True),
        ("NOAUTH Authentication required.", True),
        ("NOSCRIPT No matching script.", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("NOPERM this user has no permissions", False),
        ("WRONGTYPE Operation against a key", False),
        ("BUSY Redis is busy running a script.", False),
    ],
)
async def test_an_error_about_the_server_ends_the_connection_and_one_about_the_command_does_not(
    error: str, ends: bool
) -> None:
    source = Source()
    line = await source.up()
    first, second = source.call(b"1"), source.call(b"2")
    await turns()
    line.answers(error_of(error), b"two")
    with pytest.raises(RedisUnavailable):
        await first
    if ends:
        with pytest.raises(RedisUnavailable):
            await second
        await source.up()
        assert len(source.lines) == 2, "asked anew where the master is"
    else:
        assert await second == b"two"
        assert line.fault is None


async def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    source = Source()
    line = await source.up()
    line.answers(b"surprise")
    assert isinstance(line.fault, RedisUnavailable)


async def test_an_answer_that_was_lost_ends_the_connection() -> None:
    """By a proxy: each later call would get the answer of the next one."""
    source = Source()
    line = await source.up()
    calls = [source.call(b"lost")]
    await turns()
    for n in range(5):
        calls.append(source.call(b"%d" % n))
        await turns()
        if n == 3:
            source.pipeline._check_at = 0.0  # a second has passed
        number = re.search(rb"chatd:\d+", line.written[-1])
        line.answers(*([number[0]] if number else []), b"%d" % n)
        if line.fault is not None:
            break
    assert "another call" in str(line.fault)
    await asyncio.gather(*calls, return_exceptions=True)
    assert (await source.up()) is not line


async def test_answers_that_fit_their_calls_do_not() -> None:
    source = Source()
    line = await source.up()
    for n in range(3):
        source.pipeline._check_at = 0.0
        call = source.call(b"%d" % n)
        await turns()
        number = re.search(rb"chatd:\d+", line.written[-1])
        assert number is not None
        line.answers(number[0], b"%d" % n)
        assert await call == b"%d" % n
    assert line.fault is None


async def test_at_the_end_of_the_connection_all_that_wait_are_told() -> None:
    source = Source()
    line = await source.up()
    calls = [source.call(b"%d" % n) for n in range(3)]
    await turns()
    calls[1].cancel()
    line.fail(RedisUnavailable("the end"))
    for said in await asyncio.gather(calls[0], calls[2], return_exceptions=True):
        assert isinstance(said, RedisUnavailable)
        assert str(said) == "the end"
    assert calls[1].cancelled()
    await source.up()


# ---- deadlines -----------------------------------------------------------------------------------


async def test_a_call_ends_at_its_deadline_and_the_connection_serves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Source()
    line = await source.up()
    patient, hasty = source.call(b"1"), source.call(b"2", 0.01)
    with pytest.raises(RedisUnavailable, match=r"no answer within 0\.01 s"):
        await hasty
    last = source.call(b"3")
    await turns()
    line.answers(b"one", b"two", b"three")
    assert [await patient, await last] == [b"one", b"three"]
    assert line.fault is None


async def test_a_silent_connection_ends_although_every_caller_gave_up_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    source = Source()
    line = await source.up()
    ended = asyncio.Event()
    real = line.fail

    def fail(fault: Exception) -> None:
        real(fault)
        ended.set()

    monkeypatch.setattr(line, "fail", fail)
    hasty = source.call(b"1", 0.01)
    with pytest.raises(RedisUnavailable):
        await hasty
    assert line.fault is None
    patient = source.call(b"2")
    async with asyncio.timeout(LONG_S):
        await ended.wait()
    with pytest.raises(RedisUnavailable, match="no answer within"):
        await patient


async def test_an_answer_that_arrived_while_the_loop_was_busy_is_in_time() -> None:
    source = Source()
    line = await source.up()
    call = source.call(b"1", 0.005)
    await turns()
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.02
    while loop.time() < until:  # nothing is read meanwhile
        pass
    loop.call_soon(loop.call_soon, line.answers, b"one")
    assert await call == b"one"


async def test_connecting_is_within_the_deadline_of_each_call() -> None:
    source = Source()
    source.may_connect.clear()
    calls = [source.call(b"x", within_s) for within_s in (0.01, LONG_S)]
    with pytest.raises(RedisUnavailable, match=r"0\.01 s"):
        await calls[0]
    source.may_connect.set()
    while not source.lines or not source.lines[0].written:
        await asyncio.sleep(0)
    source.lines[0].answers(b"ok")
    assert await calls[1] == b"ok"
    assert len(source.lines) == 1, "one connection for all"


async def test_a_failure_of_an_attempt_that_began_earlier_is_not_that_of_a_later_call() -> None:
    source = Source()
    source.may_connect.clear()
    source.faults = [RedisUnavailable("not up yet"), None]
    early = source.call(b"early")
    await turns()
    late = source.call(b"late")
    await turns()
    source.may_connect.set()
    with pytest.raises(RedisUnavailable, match="not up yet"):
        await early
    while not source.lines:
        await asyncio.sleep(0)
    await turns()
    source.lines[0].answers(b"ok")
    assert await late == b"ok"


async def test_no_attempt_is_made_for_nobody() -> None:
    source = Source()
    source.faults = [RedisUnavailable("away")] * 3
    for _ in range(3):
        with pytest.raises(RedisUnavailable, match="away"):
            await source.call(b"x")
    assert source.faults == []


# ---- bounds --------------------------------------------------------------------------------------


async def test_calls_past_the_bound_and_to_a_redis_that_does_not_read_fail_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CALLS_MAX", 2)
    source = Source()
    line = await source.up()
    calls = [source.call(b"x") for _ in range(2)]
    await turns()
    with pytest.raises(RedisUnavailable, match="2 calls wait"):
        await source.call(b"x")
    line.answers(b"1", b"2")
    await asyncio.gather(*calls)
    line.is_full = True
    with pytest.raises(RedisUnavailable, match="does not read"):
        await source.call(b"x")
    assert line.written == [b"first", b"x", b"x"]


async def test_after_close_nothing_is_called() -> None:
    source = Source()
    source.may_connect.clear()
    call = source.call(b"x")
    await turns()
    await source.pipeline.close()
    await asyncio.gather(call, return_exceptions=True)
    with pytest.raises(RedisUnavailable, match="closed"):
        await source.call(b"x")


# ---- one write, one read -------------------------------------------------------------------------


class Counting(asyncio.Protocol):
    """A server that answers each command by its number, and keeps how many each read had."""

    reads: list[int]
    transport: asyncio.Transport

    def __init__(self, reads: list[int]) -> None:
        self.reads = reads

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        n = data.count(b"*")
        self.reads.append(n)
        self.transport.write(b"+OK\r\n" * n)


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one


def test_the_calls_of_one_loop_turn_leave_in_one_write(port: socket.socket) -> None:
    """On uvloop, whose transports write at the end of a turn."""

    async def main() -> None:
        reads: list[int] = []
        server = await asyncio.get_running_loop().create_server(lambda: Counting(reads), sock=port)
        async with server:
            redis_client = RedisClient(f"redis://127.0.0.1:{port.getsockname()[1]}")
            await redis_client.command("PING")
            reads.clear()
            await asyncio.gather(
                redis_client.publish([(f"chatd:u:{n}", b"x") for n in range(50)]),
                redis_client.script("return 1")(["{chatd}:rate:alice"], [1]),
                redis_client.command("HMGET", "{chatd}:on", ""),
            )
            assert reads == [52]
            await redis_client.close()

    uvloop.run(main())
