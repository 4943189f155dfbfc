"""Connections are spread over workers: the choice by a model, the rest with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.ops.hand_over import HandOver, Load
from chatd.ops.worker_line import WorkerLine
from tests.until import until


@given(
    st.lists(
        st.sampled_from(["sent", "taken", "ended", "report", "heard"]),
        max_size=60,
    )
)
def test_a_load_counts_what_is_under_way_whatever_the_order_of_reports(steps: list[str]) -> None:
    """Reports are heard late; what ended since the last one is the only thing that is not known."""
    load, has, taken, sent = Load(), 0, 0, 0
    reports: list[tuple[int, int]] = []
    ended_since = [0]  # connections that ended after each report that was not heard yet
    for step in steps:
        if step == "sent":
            load.sent()
            sent += 1
        elif step == "taken" and taken < sent:
            taken, has = taken + 1, has + 1
        elif step == "ended" and has:
            has -= 1
            ended_since[-1] += 1
        elif step == "report":
            reports.append((has, taken))
            ended_since.append(0)
        elif step == "heard" and reports:
            load.heard(*reports.pop(0))
            ended_since.pop(0)
        assert load.connections == has + (sent - taken) + sum(ended_since)


class Greeter(asyncio.Protocol):
    """Says the number of its worker."""

    def __init__(self, number: int) -> None:
        self._number = number

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"%d" % self._number)
        transport.close()


class Fleet:
    """Workers in this process, each with a line of its own."""

    def __init__(self) -> None:
        self.hand_over = HandOver(asyncio.get_running_loop())
        self.ended: list[int] = []
        self.lines: dict[int, WorkerLine] = {}
        self._ends: dict[int, socket.socket] = {}
        self.port = 0

    def listen(self) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.hand_over.listen([listening])

    def start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        with theirs:
            self.lines[number] = WorkerLine(theirs.fileno(), lambda: self.ended.append(number))
        self.lines[number].take(lambda: Greeter(number))
        self._ends[number] = ours
        self.hand_over.add(number, ours)

    def stop(self, number: int) -> None:
        self.hand_over.remove(number)
        self._ends.pop(number).close()

    async def greeted(self) -> int:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                return int(await reader.read())
            finally:
                writer.close()

    def close(self) -> None:
        self.hand_over.close()
        for number in list(self._ends):
            self.stop(number)
        for line in self.lines.values():
            line.close()


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet()
    with contextlib.closing(fleet):
        yield fleet


async def test_each_connection_goes_to_the_worker_with_the_fewest(fleet: Fleet) -> None:
    for number in range(3):
        fleet.start(number)
    fleet.listen()
    greetings = await asyncio.gather(*(fleet.greeted() for _ in range(12)))
    assert sorted(greetings) == [0] * 4 + [1] * 4 + [2] * 4, "nobody has reported yet: what was sent counts"
    for number, connections in enumerate((5, 0, 4)):
        fleet.hand_over.heard(number, connections, 4)
    assert await fleet.greeted() == 1
    assert fleet.hand_over.loads() == {0: 5, 1: 1, 2: 4}


async def test_a_worker_that_is_started_again_catches_up(fleet: Fleet) -> None:
    fleet.start(0)
    fleet.start(1)
    fleet.listen()
    await asyncio.gather(*(fleet.greeted() for _ in range(8)))
    fleet.stop(1)
    await until(lambda: fleet.ended == [1])
    assert await fleet.greeted() == 0, "the port is served all the while"
    fleet.start(1)
    assert [await fleet.greeted() for _ in range(5)] == [1] * 5


async def test_a_worker_that_does_not_report_comes_last(fleet: Fleet) -> None:
    fleet.start(0)
    fleet.start(1)
    fleet.listen()
    fleet.hand_over.heard(1, 100, 0)
    fleet.hand_over.silent(0)
    assert await fleet.greeted() == 1
    fleet.hand_over.silent(1)
    assert await fleet.greeted() == 0, "there is no other"
    fleet.hand_over.heard(1, 0, 1)
    assert await fleet.greeted() == 1


async def test_when_all_lines_are_full_connections_wait_and_are_served(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = socket.send_fds, [True]

    def send(line: socket.socket, buffers: list[bytes], descriptors: list[int]) -> int:
        if full[0]:
            full[1:] = [True]
            raise BlockingIOError
        return real(line, buffers, descriptors)

    monkeypatch.setattr(socket, "send_fds", send)
    fleet.start(0)
    fleet.listen()
    served = asyncio.gather(*(fleet.greeted() for _ in range(20)))
    await until(lambda: len(full) == 2)
    full[0] = False
    assert await served == [0] * 20


async def test_the_port_is_free_once_it_is_closed(fleet: Fleet) -> None:
    fleet.start(0)
    fleet.listen()
    assert await fleet.greeted() == 0
    fleet.hand_over.close()
    fleet.hand_over.close()
    assert not fleet.hand_over.is_open
    with socket.create_server(("127.0.0.1", fleet.port), reuse_port=False):
        pass
