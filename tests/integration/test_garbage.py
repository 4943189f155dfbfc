"""Nothing of the path waits for the garbage collector: what a connection or a refused request
leaves refers to itself nowhere, so it is freed when it is let go. Found by a run over its limit:
each refused send left a cycle (its error, the traceback, the frame that held the error), and the
collector stopped the loop for 30 to 60 ms four times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import pytest_asyncio

from chatd.net.flow_control import Phase
from chatd.postgres.lane import Lane
from chatd.wire.handshake import Handshake
from tests.fix_costs import WAIT_S, Wire, masked
from tests.until import until

if TYPE_CHECKING:
    from tests.fix_server import MakeServer, Server

OURS: Final = ("chatd.", "websockets.")
DRAGGED: Final = (FrameType, TracebackType)
N: Final = 10
FREE: Final = {"rate_messages": 10_000, "frames_per_s": 1_000_000, "frames_burst": 1_000_000}


@contextmanager
def uncollected() -> Iterator[Counter[str]]:
    """How many objects of each type the block left to the collector: ours, the handshake library's,
    and what errors drag along.
    """
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = (type(one) for one in gc.garbage)
        found.update(
            f"{kind.__module__}.{kind.__qualname__}"
            for kind in kinds
            if kind.__module__.startswith(OURS) or kind in DRAGGED
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_what_refers_to_itself_is_found() -> None:
    def fail() -> None:
        error = ValueError()
        raise error

    with uncollected() as found, contextlib.suppress(ValueError):
        fail()
    assert found["builtins.frame"] == 1


class Home:
    """Two users with a conversation, and what happens to the first one."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def join(self, user: str) -> Wire:
        return await Wire.connect(self.server.port, user, self.server.token(user))

    async def meet(self) -> Home:
        self.me, self.peer = await self.join("me"), await self.join("peer")
        self.me.put(self.me.send("peer"))
        await self.me.until(1)
        await self.peer.until(1)
        self.reset()
        return self

    def reset(self) -> None:
        self.me.reset()
        self.peer.reset()

    async def answers(self, code: str, *frames: bytes) -> None:
        """Each of these is refused by that code."""
        self.reset()
        self.me.put(b"".join(frames))
        await self.me.until(len(frames))
        assert [code.encode() in text for text in self.me.texts] == [True] * len(frames), self.me.texts


MakeHome = Callable[..., Awaitable[Home]]


@pytest_asyncio.fixture
async def make_home(make_server: MakeServer) -> Any:
    async def make(**settings: Any) -> Home:
        return await Home(await make_server(**{**FREE, **settings})).meet()

    async with asyncio.timeout(WAIT_S * 3):
        yield make


UPGRADE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: chat\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
)
KEY: Final = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /ws HTTP/1.1\r\nHost: chat\r\n", b" 426 "),
        (UPGRADE, b" 400 "),
        (UPGRADE + KEY + b"Origin: http://evil\r\n", b" 403 "),
        (UPGRADE + KEY + b"Sec-WebSocket-Protocol: other\r\n", b" 400 "),
        (b"POST /ws HTTP/1.1\r\nHost: chat\r\n", b" 405 "),
        (b"nonsense\r\n", b" 400 "),
    ],
)
def test_handshakes_that_are_refused(head: bytes, status: bytes) -> None:
    with uncollected() as found:
        answer = Handshake(cast("Any", None), ()).feed(head + b"\r\n")
    assert answer is not None
    assert status in answer.data.split(b"\r\n")[0]
    assert not found


async def test_connections_that_come_and_go(make_home: MakeHome) -> None:
    home = await make_home()
    connections = home.server.node.listener.connections

    async def come_and_go(name: str, leave: Callable[[Wire], None]) -> None:
        before = len(connections)
        wires = [await home.join(f"{name}{n}") for n in range(N)]
        for wire, peer in zip(wires[::2], wires[1::2], strict=True):
            wire.put(wire.send(peer.user))
            await wire.until(1)
            await peer.until(1)
        for wire in wires:
            leave(wire)
        await until(lambda: len(connections) <= before)

    await come_and_go("warm", lambda wire: wire.transport.abort())
    for leave in (lambda wire: wire.transport.abort(), lambda wire: wire.put(b"\x88\x82\0\0\0\0\x03\xe8")):
        with uncollected() as found:
            await come_and_go(f"u{id(leave)}-", leave)
            await home.server.node.store.flush()
            await asyncio.sleep(0)
        assert not found


def cases(home: Home) -> dict[str, Callable[[], bytes]]:
    """Requests that are refused, by their code."""
    me = home.me
    hello = {"v": 1, "token": home.server.token("me"), "device": "d"}
    return {
        "no_conversation": lambda: me.frame("ack", to="nobody", seq=1),
        "bad_seq": lambda: me.frame("read", to="peer", seq=999),
        "not_open": lambda: me.frame("typing", to="peer"),
        "no_message": lambda: me.frame("edit", to="peer", cid=str(uuid.uuid4()), ref=999, body="x"),
        "bad_frame": lambda: masked(b"[]"),
        "bad_field": lambda: me.send("peer", cid="no"),
        "unknown_type": lambda: me.frame("nonsense"),
        "bad_state": lambda: me.frame("hello", **hello),
    }


async def test_wrong_requests(make_home: MakeHome) -> None:
    home = await make_home()
    for code, make in cases(home).items():
        await home.answers(code, make())
        with uncollected() as found:
            await home.answers(code, *(make() for _ in range(2)))
        assert not found, code


async def test_sends_over_the_rate_and_those_blocked_behind_them(make_home: MakeHome) -> None:
    home = await make_home(rate_messages=1, rate_per_ms=60_000)
    await home.answers("rate_limited", home.me.send("peer"))
    with uncollected() as found:
        await home.answers("blocked", *(home.me.send("peer") for _ in range(N)))
    assert not found


async def test_sends_that_find_the_queue_full(make_home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    home = await make_home()
    monkeypatch.setattr(Lane, "submit", lambda lane, item: False)
    first = str(uuid.uuid4())
    await home.answers("overloaded", home.me.send("peer", cid=first))
    with uncollected() as found:
        await home.answers("overloaded", *(home.me.send("peer", cid=first) for _ in range(N)))
    assert not found


async def test_frames_over_the_rate(make_home: MakeHome) -> None:
    home = await make_home(frames_per_s=1, frames_burst=20)
    first = str(uuid.uuid4())
    # Far more than there are tokens, or come meanwhile
    home.me.put(b"".join(home.me.frame("typing", to="peer") for _ in range(40)))
    await home.me.until(40)
    home.reset()
    with uncollected() as found:
        home.me.put(b"".join(home.me.send("peer", cid=first) for _ in range(N)))
        await home.me.until(N)
    assert not found
    assert sum(b"rate_limited" in text for text in home.me.texts) >= N - 2, (
        "a token may have come meanwhile: one a second"
    )


async def test_hellos_that_are_refused(make_home: MakeHome) -> None:
    home = await make_home()
    connections = home.server.node.listener.connections

    async def refused() -> None:
        for _ in range(N):
            with pytest.raises(AssertionError, match="unauthorized"):
                await Wire.connect(home.server.port, "me", "wrong", "d2")
        for one in [one for one in connections if one.phase is Phase.CLOSING]:
            one.abort()  # the client does not answer its close: not to wait for seconds
        await until(lambda: len(connections) <= 2)

    await refused()
    with uncollected() as found:
        await refused()
    assert not found
