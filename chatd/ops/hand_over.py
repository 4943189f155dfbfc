"""Spreads connections over the workers of `chatd serve --workers`: each goes to the worker that has
the fewest.

    kernel ──accept──► HandOver ──descriptor by SCM_RIGHTS, on the worker's line──► worker
                          ◄──how many connections it has, how many it has taken── once a second

The kernel's own way, SO_REUSEPORT (socket(7)), takes a worker by a hash of addresses and ports. Of
12 connections over 4 workers one then often gets six and one none, a worker that is started again
never catches up, and what waits in the queue of a worker that is killed is lost. Here nothing is
read of a connection before its worker has it, so a worker sees what it would have accepted itself.

Descriptors that are sent and not taken yet count, so that a burst spreads, too: a worker's load is
what it reported, and what was sent since. A line that is full is passed over. If all are full, one
connection waits here and the others in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Final

import structlog

from chatd.net.listener import BACKLOG, tune

log = structlog.get_logger("workers")

ACCEPTS_A_TURN: Final = 64  # of the loop: 2 ms, in which no worker is watched
PAUSE_S: Final = 0.01  # all lines are full, or this process has no descriptor left


class Load:
    """What one worker has. Pure."""

    __slots__ = ("_reported", "_sent", "_taken", "is_silent")

    def __init__(self) -> None:
        self._reported = self._sent = self._taken = 0
        self.is_silent = False  # it has not reported for some time: the others come first

    @property
    def connections(self) -> int:
        """Its connections: what it reported, and what it had not taken when it did."""
        return self._reported + self._sent - self._taken

    def sent(self) -> None:
        """One more is on its way."""
        self._sent += 1

    def heard(self, connections: int, taken: int) -> None:
        """The worker has so many now, and has taken so many since its start."""
        self._reported, self._taken = connections, min(taken, self._sent)
        self.is_silent = False


class HandOver:
    """Accepts on `listen`'s sockets while any worker can take connections; in turns of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sockets: list[socket.socket] = []
        self._lines: dict[int, tuple[socket.socket, Load]] = {}
        self._waiting: socket.socket | None = None  # accepted, and all lines were full
        self._paused: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return bool(self._sockets)

    def loads(self) -> dict[int, int]:
        """Connections by the number of the worker."""
        return {number: load.connections for number, (_, load) in self._lines.items()}

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Listen on bound sockets, which it owns from now on.

        Raises OSError; they are closed then.
        """
        self._sockets += sockets
        try:
            for one in sockets:
                tune(one)
                one.setblocking(False)
                one.listen(BACKLOG)
        except OSError:
            self.close()
            raise
        self._resume()

    def close(self) -> None:
        """Listen no more. What the kernel has accepted and no worker has is reset. Idempotent."""
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        for one in self._sockets:
            self._loop.remove_reader(one)
            one.close()
        self._sockets.clear()
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    # ---- workers ---------------------------------------------------------------------------------

    def add(self, number: int, line: socket.socket) -> None:
        """A worker takes connections, by its line (not blocking)."""
        self._lines[number] = line, Load()

    def remove(self, number: int) -> None:
        """A worker takes no more. Idempotent."""
        self._lines.pop(number, None)

    def heard(self, number: int, connections: int, taken: int) -> None:
        """A worker reports its connections, and how many it has taken since its start."""
        if (line := self._lines.get(number)) is not None:
            line[1].heard(connections, taken)

    def silent(self, number: int) -> None:
        """A worker does not report: it gets connections only if all others are silent, too."""
        if (line := self._lines.get(number)) is not None:
            line[1].is_silent = True

    # ---- connections -----------------------------------------------------------------------------

    def _resume(self) -> None:
        self._paused = None
        for one in self._sockets:
            self._loop.add_reader(one, self._accept, one)

    def _pause(self) -> None:
        if self._paused is None:
            for one in self._sockets:
                self._loop.remove_reader(one)
            self._paused = self._loop.call_later(PAUSE_S, self._resume)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._waiting is None:
                try:
                    self._waiting, _ = listening.accept()
                except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                    return
                except OSError as e:  # no descriptor or no memory is left: the kernel's queue keeps them
                    log.warning("accept.failed", reason=str(e))
                    self._pause()
                    return
            if not self._send(self._waiting):
                self._pause()
                return
            self._waiting.close()  # the worker has a descriptor of its own
            self._waiting = None

    def _send(self, connection: socket.socket) -> bool:
        """Send it to the worker with the fewest connections; False if no line takes it now."""
        for line, load in sorted(self._lines.values(), key=_order):
            with contextlib.suppress(OSError):  # full, or its worker has ended
                socket.send_fds(line, [b"\0"], [connection.fileno()])
                load.sent()
                return True
        return False


def _order(line: tuple[socket.socket, Load]) -> tuple[bool, int]:
    return line[1].is_silent, line[1].connections
