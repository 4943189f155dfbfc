"""Nodes by fork: one interpreter that has read all of chatd, and each node a child of it.

Their start is then a tenth of a second, not one.

Most of a start's CPU is Python reading modules (0.65 of 0.8 s), and the suite starts some 200 nodes
on two cores. A child is a process like any other: its own memory, files, signals and end. What it
shares with its siblings is the seed of Python's hashes; the generators of random numbers that
modules hold are seeded anew. A test for which the start itself matters takes an interpreter of its
own (`make_process(before=...)`).

    ForkServer ──(arguments, environment, log)──► this file as a process ──fork──► a node
        ▲                                                  │
        └───────────────(how it ended)─────────────────────┘

A `Child` has the part of `subprocess.Popen` that the tests use. Signals go by pidfd: a pid may be
another's by then. With the tests' end, however it comes, the server ends its children by SIGKILL.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

MESSAGE_BYTES_MAX: Final = 1 << 18
START_S_MAX: Final = 60.0
LEFT_OUT: Final = ("chatd.client", "chatd.web", "chatd.__main__")  # no part of a node


class Child:
    """A node that runs or ran."""

    def __init__(self, pid: int, pidfd: int, ended: socket.socket) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._ended = ended
        self._status: int | None = None

    def ended_fd(self) -> int:
        """A descriptor that can be read once it has ended; the caller closes it.

        It has not been waited for yet.
        """
        return os.dup(self._ended.fileno())

    def poll(self) -> int | None:
        """The exit status, -N for signal N; None while it runs."""
        if self._status is None and select.select([self._ended], [], [], 0)[0]:
            self.wait()
        return self._status

    def wait(self) -> int:
        if self._status is None:
            self._status = int(self._ended.recv(16) or b"-9")  # nothing: the server was killed, and ends with it
            self._ended.close()
            os.close(self._pidfd)
        return self._status

    def send_signal(self, sent: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, sent)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Runs from the first `start` to `stop`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._one_at_a_time = threading.Lock()

    def start(self, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """Run `chatd` with these arguments; it writes to `log`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = json.dumps([list(argv), dict(environment), str(log)]).encode()
        with theirs, self._one_at_a_time:
            line = self._line or self._run()
            socket.send_fds(line, [order], [theirs.fileno()])
            pid, (pidfd, *_), _, _ = socket.recv_fds(line, 16, 1)
        return Child(int(pid), pidfd, ours)

    def _run(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(START_S_MAX)
        with theirs:
            command = [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[1]
            )
        self._line = ours
        return ours

    def stop(self) -> None:
        if self._line is not None and self._process is not None:
            self._line.close()
            self._process.wait()


# ---- the server ----------------------------------------------------------------------------------


def read_modules() -> None:
    """All that a node may need.

    What only some need, and a test asks for (`redis`), has its own interpreter there.
    """
    import chatd

    for module in pkgutil.walk_packages(chatd.__path__, "chatd."):
        if not module.name.startswith(LEFT_OUT):
            importlib.import_module(module.name)
    for name in ("asyncio", "uvloop", "redis.asyncio", "psycopg_binary"):
        importlib.import_module(name)


def seed_anew() -> None:
    for module in list(sys.modules.values()):
        for held in list(vars(module).values()) if module.__name__.startswith("chatd.") else ():
            if type(held) is random.Random:
                held.seed()


def be_a_node(argv: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    """What a fresh interpreter does for `python -m chatd`; never returns."""
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.closerange(3, 1 << 12)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["chatd", *argv]
        seed_anew()
        from chatd.cli import main

        status = main()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def serve(line: socket.socket) -> None:
    """Fork at each order; tell each end."""
    children: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
    poller = select.poll()
    poller.register(line, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd != line.fileno():
                pid, told = children.pop(fd)
                poller.unregister(fd)
                os.close(fd)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with told, contextlib.suppress(OSError):  # nobody may be left to hear it
                    told.send(b"%d" % status)
                continue
            order, fds, _, _ = socket.recv_fds(line, MESSAGE_BYTES_MAX, 1)
            if not order:
                for pidfd in children:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return
            if (pid := os.fork()) == 0:
                be_a_node(*json.loads(order))
            pidfd = os.pidfd_open(pid)
            children[pidfd] = pid, socket.socket(fileno=fds[0])
            poller.register(pidfd, select.POLLIN)
            socket.send_fds(line, [b"%d" % pid], [pidfd])


if __name__ == "__main__":
    read_modules()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the tests' to handle: they end it
    serve(socket.socket(fileno=int(sys.argv[1])))
