"""A worker's end of the line to its supervisor, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from chatd.ops import worker_line
from chatd.ops.worker_line import WorkerLine, reported
from tests.until import until


@pytest.mark.parametrize(
    ("message", "report"),
    [
        (b"CONNECTIONS=7 12", (7, 12)),
        (b"CONNECTIONS=0 0", (0, 0)),
        (b"WATCHDOG=1", None),
        (b"CONNECTIONS=7", None),
        (b"CONNECTIONS=-7 1", None),
        (b"CONNECTIONS=7 1 2", None),
        (b"CONNECTIONS= ", None),
        (b"", None),
    ],
)
def test_a_report_is_read(message: bytes, report: tuple[int, int] | None) -> None:
    assert reported(message) == report


class Nobody(asyncio.Protocol):
    """Tells of each connection, and closes it."""

    def __init__(self, connected: list[str]) -> None:
        self._connected = connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connected.append(transport.get_extra_info("peername")[0])
        transport.close()


class Supervisor:
    """The other end: what it hears, and how it hands a connection over."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self._left: list[socket.socket] = []

    def hand_over(self) -> socket.socket:
        """A client whose connection the worker gets."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            self._left.append(client)
            with listening.accept()[0] as accepted:
                socket.send_fds(self.line, [b"\0"], [accepted.fileno()])
        return client

    def close(self) -> None:
        for client in self._left:
            client.close()


@pytest.fixture
def ends() -> Iterator[tuple[Supervisor, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    supervisor = Supervisor(ours)
    with ours, theirs:
        yield supervisor, theirs
        supervisor.close()


async def test_it_serves_what_is_handed_over_and_reports_it(ends: tuple[Supervisor, socket.socket]) -> None:
    supervisor, theirs = ends
    line, connected = WorkerLine(theirs.fileno(), lambda: None), list[str]()
    line.take(lambda: Nobody(connected))
    for _ in range(3):
        supervisor.hand_over()
    await until(lambda: len(connected) == 3)
    assert connected == ["127.0.0.1"] * 3, "the client's address is that of the connection"
    line.report(2)
    assert reported(supervisor.line.recv(100).rstrip()) == (2, 3)
    line.close()
    line.close()


async def test_a_worker_that_serves_nobody_yet_leaves_no_connection_open(
    ends: tuple[Supervisor, socket.socket],
) -> None:
    supervisor, theirs = ends
    line = WorkerLine(theirs.fileno(), lambda: None)
    client = supervisor.hand_over()
    await until(lambda: line.taken == 1)
    assert client.recv(1) == b""
    line.close()


async def test_a_connection_that_has_ended_meanwhile_ends_nothing_else(ends: tuple[Supervisor, socket.socket]) -> None:
    supervisor, theirs = ends
    line, connected = WorkerLine(theirs.fileno(), lambda: None), list[str]()
    line.take(lambda: Nobody(connected))
    supervisor.hand_over().close()
    supervisor.hand_over()
    await until(lambda: line.taken == 2 and connected)
    line.close()


async def test_it_tells_once_that_the_supervisor_has_ended(ends: tuple[Supervisor, socket.socket]) -> None:
    supervisor, theirs = ends
    ended: list[bool] = []
    line = WorkerLine(theirs.fileno(), lambda: ended.append(True))
    supervisor.line.close()
    await until(lambda: ended)
    line.report(3)  # to nobody
    assert ended == [True]


async def test_a_worker_that_drains_already_is_not_told(ends: tuple[Supervisor, socket.socket]) -> None:
    supervisor, theirs = ends
    line = WorkerLine(theirs.fileno(), lambda: pytest.fail("told"))
    line.leaving()
    supervisor.line.close()
    await until(lambda: line.is_closed)


@pytest.mark.parametrize(("text", "found"), [("7", 7), ("", None), ("seven", None), ("\u0667", None), (None, None)])
def test_only_a_worker_has_a_line(monkeypatch: pytest.MonkeyPatch, text: str | None, found: int | None) -> None:
    if text is None:
        monkeypatch.delenv(worker_line.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(worker_line.VARIABLE, text)
    assert worker_line.descriptor() == found
