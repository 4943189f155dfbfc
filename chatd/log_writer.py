"""Writes log lines from a thread, so that no caller waits for the log's reader.

    put(line) ──► queue of `QUEUE_BYTES_MAX` ──thread──► write(2)     more: dropped and counted

A write blocks while its reader does not read: a pipe to a stopped process, a terminal held by ^S.
In the event loop that would stop the node, and a client that causes log lines can fill a pipe.
Polling the descriptor first does not help: it is writable, and a line of 10 KB still blocks.
O_NONBLOCK would apply to all processes that share the descriptor.

The thread uses `os.write`, because a buffered stream has a lock, and a daemon thread that holds it
at exit makes the interpreter abort. At the end of the process, waiting lines get `FLUSH_S`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
import threading
from collections import deque
from typing import Final

QUEUE_BYTES_MAX: Final = 1 << 20  # some 5,000 lines, or 300 errors with tracebacks
WRITE_BYTES: Final = 65_536  # in one call: the capacity of a pipe
FLUSH_S: Final = 1.0


class LogWriter:
    """Writes to one descriptor. `put` and `flush` may be called from any thread."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.dropped = 0
        self._lines: deque[bytes] = deque()
        self._bytes = 0  # waiting or being written
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def put(self, line: bytes) -> None:
        """Queue a line. Never waits and never raises."""
        with self._changed:
            if self._pid != os.getpid():  # the first line, or the first after a fork, which copies no thread
                self._begin()
            if self._bytes + len(line) > QUEUE_BYTES_MAX:
                self.dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify_all()

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until all lines are written; False after `timeout_s`."""
        with self._changed:
            return self._pid != os.getpid() or self._changed.wait_for(lambda: not self._bytes, timeout_s)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lines.clear()
        self._bytes = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines))
                data = self._gathered()
            with contextlib.suppress(OSError):  # the reader has closed its end: these lines are lost
                self._write(data)
            with self._changed:
                self._bytes -= len(data)
                self._changed.notify_all()

    def _gathered(self) -> bytes:
        """The lines of one write."""
        lines = [self._lines.popleft()]
        size = len(lines[0])
        while self._lines and size + len(self._lines[0]) <= WRITE_BYTES:
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        return b"".join(lines)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]


_writers: Final[dict[int, LogWriter]] = {}  # by descriptor: one each per process, so that lines keep their order


def writer(fd: int) -> LogWriter:
    """The writer of a descriptor."""
    found = _writers.get(fd)
    if found is None:
        found = _writers[fd] = LogWriter(fd)
        atexit.register(found.flush)
    return found


def may_block(fd: int) -> bool:
    """Whether a write may wait for a reader. A regular file takes its lines at once."""
    return not stat.S_ISREG(os.fstat(fd).st_mode)


def dropped() -> int:
    """Lines dropped so far."""
    return sum(one.dropped for one in _writers.values())
