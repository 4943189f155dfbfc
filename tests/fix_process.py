"""chatd as a real process, to be killed; and a PostgreSQL of the test's own, which a kill of chatd
leaves alone.

    own_postgres    an `Embedded` for this test alone: `kill`, `start`, `freeze`, `thaw`
    make_process    `await make_process(database_url=..., rate_messages=1000)`: a running `Process`; settings become
                    flags
    fork_server     what makes them (`tests/forkserver.py`)

A process is ready when it says READY on its NOTIFY_SOCKET (as to systemd): an event, and the very
one that operators rely on. What it logs is in `<folder>/chatd-N.log`, and is shown when the test
fails. Whatever a test leaves running is killed at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import pytest_asyncio

from chatd.chat.auth import KeySet, issue
from chatd.ids import UserId
from chatd.postgres.embedded import Embedded
from chatd.postgres.migrate import migrate
from tests.forkserver import Child, ForkServer
from tests.ports import free_port

READY_S_MAX: Final = 40.0  # far beyond what it takes, also beside other tests on a small machine
EXIT_S_MAX: Final = 20.0
LOG_TAIL: Final = 40  # lines shown on failure


class OwnPostgres(Embedded):
    """An embedded PostgreSQL that can also be made to hang: all of its processes are stopped, none
    ends.
    """

    def _family(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def _signal_all(self, sent: signal.Signals) -> None:
        for pid in self._family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)

    def freeze(self) -> None:
        """SIGSTOP to every process: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)  # the postmaster first, so that it makes no further ones
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)


class Process:
    """One chatd. `start` may be called again after `kill`: same port, same database.

    `before`: Python that runs in the process first, for faults that have no setting: a clock that
    is wrong, a bus that loses. Such a process has an interpreter of its own, in which nothing of
    chatd is read yet.
    """

    def __init__(
        self, folder: Path, number: int, settings: dict[str, Any], fork_server: ForkServer, before: str = ""
    ) -> None:
        self._before = before
        self._fork_server = fork_server
        self.folder = folder
        self.log_file = folder / f"chatd-{number}.log"
        self.port = int(settings.get("port") or free_port())
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self.admin = f"http://127.0.0.1:{settings.get('admin_port', -1)}"
        self._settings = {
            "log_level": "info",
            "log_format": "json",
            "data_dir": folder,
            "admin_port": -1,
            **settings,
            "port": self.port,
        }
        self._process: subprocess.Popen[bytes] | Child | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return None if self._process is None else self._process.poll()

    def token(self, user: str) -> str:
        return issue(KeySet.development(self.folder), UserId(user), 3_600, time.time(), None, None)

    async def start(self) -> None:
        """Run it, and wait until it is ready."""
        assert self._process is None or self._process.poll() is not None
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in self._settings.items()]
        with (
            tempfile.TemporaryDirectory(prefix="chatd-notify-") as place,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
        ):
            ear.setblocking(False)
            ear.bind(f"{place}/notify")
            environment = {k: v for k, v in os.environ.items() if not k.startswith("CHATD_")} | {
                "NOTIFY_SOCKET": f"{place}/notify"
            }
            if self._before:
                way = ["-c", f"{self._before}\nimport sys\nfrom chatd.cli import main\nsys.exit(main())"]
                with self.log_file.open("ab") as log:
                    self._process = subprocess.Popen(
                        [sys.executable, *way, "serve", *flags],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=environment,
                    )
            else:
                self._process = await asyncio.to_thread(
                    self._fork_server.start, ["serve", *flags], environment, self.log_file
                )
            await self._ready(ear)
        self.starts += 1

    async def _ready(self, ear: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.ensure_future(loop.sock_recv(ear, 1024))
        ended = asyncio.ensure_future(self.ended(READY_S_MAX))
        try:
            await asyncio.wait([ready, ended], return_when=asyncio.FIRST_COMPLETED)
            assert ready.done(), f"chatd is not ready, status {self.status}; it said:\n{self.said()}"
            assert b"READY=1" in ready.result()
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM: drain."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def hang_up(self) -> None:
        """SIGHUP: read the keys again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    async def ended(self, within_s: float = EXIT_S_MAX) -> int:
        """Wait for its end; gives the exit status."""
        process = self._process
        assert process is not None
        if (status := process.poll()) is not None:
            return status
        fd = process.ended_fd() if isinstance(process, Child) else os.pidfd_open(process.pid)
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, done.set)
        try:
            async with asyncio.timeout(within_s):
                await done.wait()
            return process.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def freeze(self) -> None:
        """SIGSTOP: it hears nothing and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def said(self, lines: int = LOG_TAIL) -> str:
        """The end of its log."""
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def rss_bytes(self) -> int:
        """Its memory in RAM now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


MakeProcess: TypeAlias = Callable[..., Awaitable[Process]]


@pytest.fixture(scope="session")
def own_template() -> Iterator[Path]:
    """A data folder with a migrated cluster that does not run: a copy of it is there in a tenth of
    the time.
    """
    with tempfile.TemporaryDirectory(prefix="chatd-own-") as folder:
        server = Embedded(Path(folder))
        try:
            migrate(server.start())
        finally:
            server.stop()
        yield Path(folder)


@pytest.fixture
def own_postgres(own_template: Path) -> Iterator[OwnPostgres]:
    with tempfile.TemporaryDirectory(prefix="chatd-fault-") as folder:
        subprocess.run(["/bin/cp", "-a", str(own_template / "postgres"), folder], check=True)
        server = OwnPostgres(Path(folder))
        try:
            server.start()
            yield server
        finally:
            with contextlib.suppress(OSError, AssertionError):
                server.thaw()
            server.stop()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.stop()


@pytest_asyncio.fixture
async def make_process(tmp_path: Path, fork_server: ForkServer) -> AsyncIterator[MakeProcess]:
    processes: list[Process] = []

    async def make(before: str = "", **settings: Any) -> Process:
        process = Process(tmp_path, len(processes) + 1, settings, fork_server, before)
        processes.append(process)
        await process.start()
        return process

    yield make
    for process in processes:
        process.stop()
        print(f"--- end of the log of chatd on port {process.port}, status {process.status} ---\n{process.said()}")
