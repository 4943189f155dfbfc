"""How lines of the log get out without anybody waiting for it: a bounded queue, and a thread that
writes.

    put(line) ──► queue, `QUEUE_BYTES_MAX` at most ──thread──► write(2)          past the bound: dropped and counted

Writing blocks when whoever reads does not: a pipe to a stopped process, a terminal held by ^S. In
the loop that stops the node, and who can cause lines can fill a pipe. A descriptor cannot be asked
beforehand (it is writable, and a line of 10 KB blocks), and O_NONBLOCK would be set for all
processes that share it.

The thread writes with `os.write`: a buffered stream has a lock, and a daemon thread that holds it
ends the interpreter with an abort. At the end of the process what waits gets `FLUSH_S`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
import threading
from collections import deque
from typing import Final

QUEUE_BYTES_MAX: Final = 1 << 20  # some 5,000 lines; of an error with its traceback 300
WRITE_BYTES: Final = 65_536  # in one call: what a pipe holds
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
        """Never waits, never raises."""
        with self._changed:
            if self._pid != os.getpid():  # the first line, or the first after a fork, which takes no thread along
                self._begin()
            if self._bytes + len(line) > QUEUE_BYTES_MAX:
                self.dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify_all()

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until all is written; False if that takes too long."""
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
            with contextlib.suppress(OSError):  # the reader has gone: what cannot be told is lost, and nothing else
                self._write(data)
            with self._changed:
                self._bytes -= len(data)
                self._changed.notify_all()

    def _gathered(self) -> bytes:
        """What goes out in one call."""
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


_writers: Final[dict[int, LogWriter]] = {}  # by descriptor: a process has one, whose lines keep their order


def writer(fd: int) -> LogWriter:
    """The writer of a descriptor."""
    found = _writers.get(fd)
    if found is None:
        found = _writers[fd] = LogWriter(fd)
        atexit.register(found.flush)
    return found


def may_block(fd: int) -> bool:
    """Whether a write waits for somebody who reads.

    A file takes its lines at once, and who reads it finds them there.
    """
    return not stat.S_ISREG(os.fstat(fd).st_mode)


def dropped() -> int:
    """Lines that did not get out, so far."""
    return sum(one.dropped for one in _writers.values())
