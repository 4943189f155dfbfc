"""A worker's end of the line to its supervisor (`chatd serve --workers`, ops/supervisor.py).

worker ──READY, WATCHDOG, CONNECTIONS, a text line each──► supervisor
worker ◄──connections: a byte each, with the descriptor (SCM_RIGHTS, unix(7))── ops/hand_over.py
       ◄──end of the stream: the supervisor has ended, for any reason
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "_CHATD_WORKER"  # the line's descriptor; not a setting, so not named as one (CHATD_)
TAKES_A_TURN: Final = 64  # connections that a turn of the loop takes


def descriptor() -> int | None:
    """The line's descriptor; None in a process that is no worker."""
    text = os.environ.get(VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() else None


def reported(message: bytes) -> tuple[int, int] | None:
    """(connections, taken since its start) of a report; None for another message."""
    name, _, text = message.partition(b"=")
    numbers = text.split(b" ")
    if name != b"CONNECTIONS" or len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return None
    return int(numbers[0]), int(numbers[1])


class WorkerLine:
    """Takes the connections that the supervisor hands over, once `take` has said where to.

    `ended()` is called once when the supervisor has ended. Needs the running loop.
    """

    def __init__(self, line: int, ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._line = socket.socket(fileno=os.dup(line))  # non-blocking: the supervisor made it so
        self._ended = ended
        self._make: Callable[[], asyncio.Protocol] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.taken = 0
        self._loop.add_reader(self._line, self._readable)

    def take(self, make: Callable[[], asyncio.Protocol]) -> None:
        """Serve the connections that come from now on, each by a protocol of its own.

        They come after READY. Connections that are under way at a drain come yet: the protocol
        refuses them.
        """
        self._make = make

    def report(self, connections: int) -> None:
        """Tell the supervisor how many connections this worker has."""
        with contextlib.suppress(OSError):  # what does not fit is lost: the next report is right again
            self._line.send(b"CONNECTIONS=%d %d\n" % (connections, self.taken))

    def leaving(self) -> None:
        """The drain has begun: `ended` has nothing new to say."""
        self._ended = lambda: None

    @property
    def is_closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._line.fileno() < 0

    def close(self) -> None:
        """Idempotent. The line itself stays open, for what sd_notify has to say."""
        if not self.is_closed:
            self._loop.remove_reader(self._line)
            self._line.close()

    def _readable(self) -> None:
        for _ in range(TAKES_A_TURN):
            try:
                data, descriptors, _, _ = socket.recv_fds(self._line, 1, 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self.close()
                self._ended()
                return
            for one in descriptors:
                self._serve(socket.socket(fileno=one))

    def _serve(self, connection: socket.socket) -> None:
        self.taken += 1
        if self._make is None:
            connection.close()
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(self._make, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, make: Callable[[], asyncio.Protocol], connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(make, connection)
        except OSError:  # it has ended since
            connection.close()
