"""One connection at full speed: what it sends is counted and bounded, it ends by its code, and
whoever is honest is answered meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import pytest_asyncio

from chatd import log as logs
from chatd import log_writer
from chatd.core.frame_rate import THROTTLED_MAX
from chatd.core.read_pacing import HANDSHAKE_COST, SLICE_BYTES, UNAUTHENTICATED_BUDGET
from chatd.net import connection
from chatd.net.flow_control import CLOSING_FRAMES_MAX
from chatd.wire.frames import Event
from chatd.wire.framing import FEED_FRAMES_MAX, FrameReader
from tests.faults.raw import HANDSHAKE, Raw
from tests.fix_log import log_restored
from tests.fix_server import MakeServer, Server
from tests.rfc6455 import CONT, PING, PONG, TEXT, frame

BURST = 20
FAST = {"frames_per_s": 1_000_000, "frames_burst": 1_000_000}
FLOOD_BYTES = 60_000  # less than the node's kernel holds: it is readable at once

FLOODS = {
    "ping": frame(PING) * (BURST + THROTTLED_MAX + 200),
    "pong": frame(PONG) * (BURST + THROTTLED_MAX + 200),
    "fragments": frame(TEXT, b"x", fin=False) + frame(CONT, b"x", fin=False) * 2_000,
    "text": b"".join(frame(TEXT, b'{"t":"ping","id":%d}' % id) for id in range(2, BURST + THROTTLED_MAX + 200)),
}


@pytest_asyncio.fixture(autouse=True)
async def close_all() -> AsyncIterator[None]:
    yield
    Raw.close_all()


def at_once(raw: Raw, data: bytes) -> None:
    """All of it is on its way when this returns."""
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    raw.sock.sendall(data)


async def drive(server: Server, raw: Raw, state: str) -> None:
    """Bring a connection to a state; `opening` is there as long as its hello waits for the
    database.
    """
    if state == "live":
        await raw.hello(server.token("mallory"), "m")
    elif state == "opening":
        await raw.say("hello", 1, v=1, token=server.token("mallory"), device="m")


@pytest.mark.parametrize("state", ["before hello", "opening", "live"])
@pytest.mark.parametrize("kind", FLOODS)
async def test_frames_of_each_kind_count_in_each_state(make_server: MakeServer, kind: str, state: str) -> None:
    if kind == "text" and state != "live":
        pytest.skip(
            "requests before hello are refused, and after 512 in the time of a hello the connection ends: other tests"
        )
    server = await make_server(frames_per_s=1, frames_burst=BURST)
    witness = await server.connect("witness")
    raw = await Raw.open(server.port)
    await drive(server, raw, state)
    sending = asyncio.create_task(raw.write(FLOODS[kind]))
    assert (await witness.request("ping"))["t"] == "pong"
    assert await asyncio.wait_for(raw.closed(), 10) == 4008
    assert server.node.metrics.frames_throttled >= THROTTLED_MAX - FEED_FRAMES_MAX
    assert (await witness.request("ping"))["t"] == "pong"
    sending.cancel()


@pytest.mark.parametrize("kind", ["pong", "fragments", "messages"])
async def test_megabytes_readable_at_once_take_many_turns(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The flood has a request at its end, and arrives first: the honest one's is answered before it.

    No slice is more than a turn's share.
    """
    slices: list[tuple[int, int]] = []

    class Recorder(FrameReader):
        __slots__ = ()

        def feed(self, data: bytes) -> Sequence[Event]:
            events = super().feed(data)
            slices.append((len(data), len(events)))
            return events

    monkeypatch.setattr(connection, "FrameReader", Recorder)
    server = await make_server(**FAST, heartbeat_ms=600_000)
    witness = await server.connect("witness")
    raw = await Raw.open(server.port)
    await raw.hello(server.token("mallory"), "m")
    n = FLOOD_BYTES // 7
    flood = {
        "pong": frame(PONG) * n,
        "fragments": frame(TEXT, b"", fin=False) + frame(CONT, b" ", fin=False) * n + frame(CONT),
        "messages": frame(TEXT, b'{"id":0}' + b" " * 15_000) * 4,
    }[kind]
    at_once(raw, flood + frame(TEXT, b'{"t":"ping","id":2}'))
    answered = asyncio.create_task(raw.frame())
    assert (await witness.request("ping"))["t"] == "pong"
    assert not answered.done()
    assert server.node.metrics.reads_put_off
    while (got := await asyncio.wait_for(answered, 10)) is not None:
        if json.loads(got[1]).get("id") == 2:
            break
        answered = asyncio.create_task(raw.frame())
    assert got is not None, "all of it is read in the end, in order"
    assert max(size for size, _ in slices) <= SLICE_BYTES
    assert max(frames for _, frames in slices) <= FEED_FRAMES_MAX


async def test_who_floods_from_many_connections_waits_for_its_turn(make_server: MakeServer) -> None:
    server = await make_server(**FAST, heartbeat_ms=600_000)
    witness = await server.connect("witness")
    raws = [await Raw.open(server.port) for _ in range(20)]
    for raw in raws:
        at_once(raw, frame(PONG) * (FLOOD_BYTES // 6))
    for _ in range(10):
        assert (await witness.request("ping"))["t"] == "pong"
        assert len(server.node.listener.shared.unauthenticated) == len(raws), "each of them still waits"


async def test_a_watch_counts_by_its_names(make_server: MakeServer) -> None:
    """A frame holds a hundred long names, and each is judged: a hundred such frames a second took
    the whole loop.
    """
    server = await make_server(frames_per_s=1, frames_burst=40)
    mallory, bob = await server.connect("mallory"), await server.connect("bob")
    answers = [await mallory.request("watch", users=[f"{n}-{k}" for k in range(90)]) for n in range(8)]
    assert [one["t"] for one in answers[:3]] == ["ok"] * 3  # 10 tokens each
    assert answers[-1]["code"] == "rate_limited"
    assert sum(one["t"] == "ok" for one in answers) <= 5
    assert server.node.metrics.frames_throttled >= 3
    # Few names cost hardly more than a frame
    assert [(await bob.request("watch", users=["alice"]))["t"] for _ in range(20)] == ["ok"] * 20


async def test_after_our_close_no_more_than_an_outbox_is_read(make_server: MakeServer) -> None:
    server = await make_server(**FAST)
    witness = await server.connect("witness")
    raw = await Raw.open(server.port)
    await raw.write(b"".join(frame(TEXT, b"{") for _ in range(30)))
    assert int.from_bytes((await raw.frame_of_close())[:2]) == 4000
    for _ in range(3):
        raw.sock.sendall(frame(PONG) * CLOSING_FRAMES_MAX)
    async with asyncio.timeout(5):
        while not server.node.metrics.closing_floods:
            await witness.request("ping")
    (flooding,) = [one for one in server.node.listener.connections if one.session is None or one.session.user is None]
    await raw.write(frame(PONG) * 10_000)
    for _ in range(10):
        assert (await witness.request("ping"))["t"] == "pong"
    assert flooding._passed_over <= CLOSING_FRAMES_MAX + FEED_FRAMES_MAX
    assert server.node.metrics.closing_floods == 1


async def test_an_outbox_on_its_way_does_not_hide_the_answer_to_our_close(make_server: MakeServer) -> None:
    server = await make_server(**FAST)
    raw = await Raw.open(server.port)
    await raw.write(b"".join(frame(TEXT, b"{") for _ in range(30)))
    await raw.write(frame(TEXT, b"x" * 2_000) * 400 + frame(8, (4000).to_bytes(2)))
    assert int.from_bytes((await raw.frame_of_close())[:2]) == 4000
    assert await asyncio.wait_for(raw.read(), 2) == b"", "closed at once, not after the time for an answer"


async def test_handshakes_beyond_the_budget_wait_for_the_next_turn(make_server: MakeServer) -> None:
    server = await make_server()
    raws = [await Raw.dial(server.port) for _ in range(8 * UNAUTHENTICATED_BUDGET // HANDSHAKE_COST)]
    await (await server.connect("witness")).request("ping")  # all of them are accepted
    for raw in raws:
        raw.sock.sendall(HANDSHAKE)
    answers = await asyncio.gather(*(raw.read() for raw in raws))
    assert {answer[:13] for answer in answers} == {b"HTTP/1.1 101 "}
    assert server.node.metrics.reads_put_off


async def test_silent_connections_of_one_address_keep_nobody_out(make_server: MakeServer) -> None:
    server = await make_server(unauthenticated_max=50, unauthenticated_per_address_max=10, hello_ms=60_000)
    silent = [await Raw.open(server.port) for _ in range(60)]
    assert server.node.metrics.connections_refused == {("evicted",): 50}
    assert [await asyncio.wait_for(raw.closed(), 5) for raw in silent[:50]] == [4009] * 50
    for n, address in enumerate(("127.0.0.2", "127.0.0.1")):
        honest = await Raw.open(server.port, address=address)
        await honest.hello(server.token(f"user{n}"), "d")
    assert server.node.metrics.connections_refused == {("evicted",): 51}, (
        "the oldest of the address, for one of its own"
    )


@pytest.fixture
def unread_log() -> Iterator[int]:
    """The log goes into a pipe of one page that nobody reads."""
    reads, writes = os.pipe()
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4_096)
    with log_restored():
        with os.fdopen(writes, "wb", closefd=False) as stream:
            logs.setup("info", "json", stream)
            yield reads
        os.close(reads)
        log_writer.writer(writes).flush()
        os.close(writes)


async def test_a_log_that_nobody_reads_stops_nobody(make_server: MakeServer, unread_log: int) -> None:
    server = await make_server()
    witness = await server.connect("witness")
    for _ in range(60):  # each is a line of some 200 bytes
        raw = await Raw.open(server.port)
        raw.close()
    while len(server.node.listener.connections) > 1:
        assert (await witness.request("ping"))["t"] == "pong"
    assert os.read(unread_log, 1 << 16).count(b"\n") >= 1
