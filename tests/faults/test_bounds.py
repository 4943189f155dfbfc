"""Clients that misbehave cost a bounded amount of what chatd has, end by their code, and disturb
nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import pytest
import pytest_asyncio

from chatd.wire import handshake
from tests.client import Peer, peer_at
from tests.faults.raw import Raw
from tests.faults.test_kills import FAST
from tests.fix_process import MakeProcess, Process

SILENT = 1_000
SWEEP_S = 1.0
CONSUMERS = 5
MESSAGES = 12_000  # enough to fill the kernel's buffers and the bound many times over
KERNEL_BYTES = 4 << 20  # what the kernel holds for a connection at most
MIB = 1 << 20
BODY = "x" * 2_000


Start: TypeAlias = Callable[..., Awaitable[Process]]


@pytest_asyncio.fixture
async def start(make_db: Callable[[], str], make_process: MakeProcess) -> AsyncIterator[Start]:
    """Starts a chatd with the settings of the test; closes the test's raw sockets at the end."""
    url = make_db()

    def starts(**settings: int) -> Awaitable[Process]:
        return make_process(database_url=url, **{**FAST, **settings})

    yield starts
    Raw.close_all()


async def test_a_thousand_connections_that_never_say_hello(start: Start) -> None:
    chatd = await start(hello_ms=3_000, unauthenticated_max=SILENT + 10, unauthenticated_per_address_max=SILENT + 10)
    async with peer_at(chatd, "alice") as alice, peer_at(chatd, "bob") as bob:
        before = chatd.rss_bytes()
        silent = [await Raw.open(chatd.port) for _ in range(SILENT)]
        rss = chatd.rss_bytes() - before
        began = time.monotonic()
        sent = await alice.say("bob", "still served")
        assert (await bob.push("entry"))["seq"] == sent["seq"] == 1
        served_ms = (time.monotonic() - began) * 1000
        codes = await asyncio.wait_for(asyncio.gather(*(raw.closed() for raw in silent)), 15)
        assert set(codes) == {4003}
        await alice.quiet()
        print(f"served in {served_ms:.1f} ms beside {SILENT} silent ones, {rss / SILENT / 1024:.1f} KiB each")


async def test_of_those_who_wait_for_hello_the_oldest_goes(start: Start) -> None:
    chatd = await start(unauthenticated_max=20)
    async with peer_at(chatd, "alice") as alice:
        silent = [await Raw.open(chatd.port) for _ in range(20)]
        extra = await Raw.open(chatd.port)
        assert await asyncio.wait_for(silent[0].closed(), 5) == 4009
        await extra.hello(chatd.token("bob"), "b")
        assert (await alice.say("bob"))["t"] == "ok"
        assert await asyncio.wait_for(extra.frame(), 5) is not None
        await silent[1].hello(chatd.token("carol"), "c")


async def test_a_consumer_that_never_reads(start: Start) -> None:
    """Bob's devices read nothing while alice writes megabytes: each is closed with 4006, and memory
    stays within what the bound allows.
    """
    bound = MIB
    chatd = await start(out_queue_bytes_max=bound, heartbeat_ms=60_000, rate_per_ms=10)
    async with peer_at(chatd, "alice") as alice, peer_at(chatd, "bob", "reader") as reader:
        deaf = [await Raw.open(chatd.port, receive_bytes=4_096) for _ in range(CONSUMERS)]
        for n, raw in enumerate(deaf):
            await raw.hello(chatd.token("bob"), f"deaf{n}")
        await alice.say("bob", BODY)
        before, peak, sent = chatd.rss_bytes(), 0, 1
        read, progress = [0], asyncio.Event()
        eager = asyncio.create_task(_read_all(reader, read, progress))
        while sent < MESSAGES:
            ids = [await alice.post("send", to="bob", cid=str(uuid.uuid4()), body=BODY) for _ in range(200)]
            replies = [await alice.reply(id) for id in ids]
            assert {r["t"] for r in replies} == {"ok"}, "the one who sends feels nothing of it"
            sent += len(ids)
            peak = max(peak, chatd.rss_bytes() - before)
        assert chatd.log_file.read_text().count('"code":4006') == CONSUMERS
        codes = await asyncio.wait_for(asyncio.gather(*(raw.closed() for raw in deaf)), 10)
        assert set(codes) <= {4006, 1006}, codes  # 1006: the three seconds for our side of the goodbye were over
        allowed = CONSUMERS * (bound + 65_536) + 6 * MIB
        print(
            f"{sent * 2 / 1024:.0f} MiB to each of {CONSUMERS}; memory rose by {peak / MIB:.1f} MiB of"
            f" {allowed / MIB:.0f} allowed"
        )
        assert peak < allowed
        assert (sent * len(BODY)) - KERNEL_BYTES > 1.5 * allowed, (
            "an unbounded queue would have shown, also one that shares its frames"
        )
        async with asyncio.timeout(10):
            while read[0] < sent:  # his device that reads has got all of it
                progress.clear()
                await progress.wait()
        eager.cancel()


async def _read_all(peer: Peer, read: list[int], progress: asyncio.Event) -> None:
    """Read whatever comes, and count the entries."""
    async for frame in peer.ws:
        read[0] += '"t":"entry"' in str(frame)
        progress.set()


PLAIN = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


async def response(raw: Raw, n: int = 1) -> bytes:
    """Read until so many responses to PLAIN are here, or the end."""
    data = b""
    while data.count(b"\r\n\r\nok\n") < n and (more := await asyncio.wait_for(raw.read(), 15)):
        data += more
    return data


async def test_plain_requests_of_a_connection_are_bounded(start: Start) -> None:
    """By number and by time between two; and they hold no place that a newer connection needs."""
    chatd = await start(unauthenticated_max=20)
    many = await Raw.dial(chatd.port)
    await many.write(PLAIN * (handshake.REQUESTS_MAX + 8))
    answered = await response(many, handshake.REQUESTS_MAX + 8)
    assert answered.count(b"HTTP/1.1 200 ") == handshake.REQUESTS_MAX
    assert answered.count(b"Connection: close") == 1

    async with peer_at(chatd, "alice") as alice:
        idle = [await Raw.dial(chatd.port) for _ in range(20)]
        for raw in idle:
            await raw.write(PLAIN)
            assert await response(raw)
        newer = await Raw.open(chatd.port)
        assert await asyncio.wait_for(idle[0].read(), 5) == b"", "the oldest gave its place"
        await newer.hello(chatd.token("bob"), "b")
        await idle[1].write(PLAIN[:20])  # a part of a head buys no time
        ended = asyncio.gather(*(raw.read() for raw in idle[1:]))
        assert await asyncio.wait_for(ended, 15) == [b""] * 19
        assert (await alice.say("bob"))["t"] == "ok"


async def test_a_slow_handshake(start: Start) -> None:
    """Slowloris: a byte now and then buys no more time."""
    chatd = await start(handshake_ms=1_000)
    slow = [await Raw.dial(chatd.port) for _ in range(50)]
    ended = asyncio.gather(*(raw.read() for raw in slow))

    async def drip() -> None:
        for n in range(100):
            for raw in slow:
                with contextlib.suppress(OSError):
                    await raw.write(b"GET /ws HTTP/1.1\r\nX: "[n : n + 1] or b"y")
            await asyncio.sleep(0.1)

    dripping = asyncio.create_task(drip())
    async with peer_at(chatd, "alice") as alice:
        assert (await alice.say("bob"))["t"] == "ok"
        assert await asyncio.wait_for(ended, 10) == [b""] * len(slow)
        assert not dripping.done(), "they end while more comes"
        assert (await alice.say("bob"))["t"] == "ok"
    dripping.cancel()


async def test_a_handshake_without_end(start: Start) -> None:
    chatd = await start()
    raw = await Raw.dial(chatd.port)
    with contextlib.suppress(OSError):
        await raw.write(b"GET /ws HTTP/1.1\r\n" + b"X-Long: " + b"y" * (2 * MIB))
    answer = await asyncio.wait_for(raw.read(), 5)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


async def test_a_peer_that_vanished_without_a_word_is_found_by_ping(start: Start) -> None:
    chatd = await start(heartbeat_ms=2_000)
    async with peer_at(chatd, "alice") as alice, peer_at(chatd, "bob") as bob:
        await alice.say("bob")
        await bob.say("alice")
        async with peer_at(chatd, "bob", "second"):
            pass
        gone = await Raw.open(chatd.port)
        await gone.hello(chatd.token("carol"), "c")
        frames = []
        while (frame := await asyncio.wait_for(gone.frame(), 10)) is not None:
            frames.append(frame)
            if frame[0] == 8:
                break
        assert [opcode for opcode, _ in frames] == [9, 8], "a ping, then the end"
        assert int.from_bytes(frames[-1][1][:2], "big") == 4007
        await alice.request("ping")  # who answers pings stays, however quiet


@pytest.mark.parametrize("how", ["fin", "reset", "half"])
async def test_half_open_and_broken_connections_are_let_go(start: Start, how: str) -> None:
    """The send that was on its way is in the log; the session is gone at once: alice sees bob go
    offline.
    """
    chatd = await start(presence_grace_ms=0)
    async with peer_at(chatd, "alice") as alice:
        raw = await Raw.open(chatd.port)
        await raw.hello(chatd.token("bob"), "b")
        await alice.say("bob")
        await raw.say("send", 2, to="alice", cid=str(uuid.uuid4()), body="mine")
        assert (await alice.push("entry"))["body"] == "mine"
        watched = await alice.request("watch", users=["bob"])
        assert watched["presence"][0]["state"] == "online"
        await raw.say("send", 3, to="alice", cid=str(uuid.uuid4()), body="last words")
        if how == "half":
            raw.sock.shutdown(socket.SHUT_WR)
        else:
            if how == "reset":
                raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            raw.sock.close()
        said = [await alice.push(), await alice.push()]
        kinds = {p["t"]: p for p in said}
        assert kinds["entry"]["body"] == "last words"
        assert (kinds["presence"]["user"], kinds["presence"]["state"]) == ("bob", "offline")
        if how == "half":
            assert await asyncio.wait_for(raw.closed(), 5) in (1000, 1006)
