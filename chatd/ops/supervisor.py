"""`chatd serve --workers N`:

N nodes on one port of one machine, and this process, which serves nobody and keeps them running.

    chatd serve --workers 3          reserves the port, runs the embedded PostgreSQL if there is no other
      ├──line── chatd serve   0      a node like any other, but that it listens with SO_REUSEPORT: the kernel spreads connections over the three
      ├──line── chatd serve   1      has the next admin port, and a name of its own
      └──line── chatd serve   2

    start    0 alone: a wrong setting is told once, and migrations have no rivals; once it is ready, the others
    serve    one that ends is started again, with back-off; one that is silent or hangs is killed, and started again
    drain    SIGTERM to all, and waiting; a second signal kills them. The database last

A line is a socket pair (chatd/ops/sd_notify.py): the worker says READY and WATCHDOG on it, and its
end tells a worker that this process is gone, by kill -9 too; it then drains. So workers never live
on unsupervised. (PR_SET_PDEATHSIG was turned down: Linux alone, and bound to the thread that
forked.)

Settings reach the workers by the environment: this process has judged them already, and flags would
show passwords to everybody. Each worker is the leader of a session, so that a Ctrl-C comes here
alone and is passed on as a drain. An exit status of 2 ends everything only until all have once been
ready: settings that the others run with are not wrong, and what a later start finds wrong
(PostgreSQL away, a keys file half-written) will pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from chatd import config
from chatd.config import Settings
from chatd.loop.backoff import Backoff
from chatd.net import listen_errors
from chatd.ops import sd_notify
from chatd.postgres.embedded import Embedded
from chatd.postgres.embedded_owner import EmbeddedOwner

log = structlog.get_logger("workers")

FAILED: Final = 1
WRONG_SETTING: Final = 2
TICK_S: Final = 1.0
SILENT_TICKS_MAX: Final = 30  # a worker says that it is alive once a second
START_TICKS_MAX: Final = 660  # migrations of another node may be waited for, 600 s at most
DRAIN_MARGIN_S: Final = 5.0  # after drain_ms a worker hangs
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
NAME_CHARS_MAX: Final = 64  # of node_name
LINE_BYTES: Final = 1 << 16
RESERVE_TRIES_MAX: Final = 10
SPARE_CONNECTIONS: Final = 6  # of a worker, beyond lanes and pool: retention, feed, migration

_WATCHER: Final = """
trap "" HUP INT TERM
read -r _
sleep "$2"
read -r _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ started _ < "/proc/$1/stat"
[ "$started" = "$3" ] && kill -9 "$1"
"""


class Worker:
    """What is known of one.

    `process` is there while it runs; `ticks` counts how long nothing was heard.
    """

    def __init__(self, number: int, rng: random.Random) -> None:
        self.number = number
        self.backoff = Backoff(rng, BACKOFF_FIRST_S, BACKOFF_MAX_S)
        self.process: asyncio.subprocess.Process | None = None
        self.task: asyncio.Task[None] | None = None
        self.ready_at: float | None = None
        self.ticks = 0
        self.reload_due = False  # the keys changed before it was ready
        self.failed = False  # in the drain

    def signal(self, sent: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(sent)


class Supervisor:
    """`run` is its whole life.

    `command`, `pause` and `tick_s` are for tests: what a worker is, how to wait before a restart,
    how often to look.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        command: Sequence[str] | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
        tick_s: float = TICK_S,
    ) -> None:
        self.settings = settings
        self.port = 0
        self.on_ready: Callable[[], None] = lambda: None
        self._command = list(command or _command())
        self._pause = pause
        self._rng = rng or random.Random()
        self._tick_s = tick_s
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[int] = self._loop.create_future()  # why it ends: 0 a signal, 2 a wrong setting
        self._stopping = False
        self._serving = False  # all of them have been ready at once
        self._workers: list[Worker] = []
        self._reserved: list[socket.socket] = []
        self._locks: list[socket.socket] = []
        self._database_url = ""

    # ---- life ------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Start, serve until a signal, drain, stop; gives the exit status. Raises SettingError."""
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.reload}
        for sent, handler in handlers.items():
            self._loop.add_signal_handler(sent, handler)
        owner = self._owner()
        own_tasks = [self._watch(self._sweep())]
        try:
            self._locks = _lock(self.settings.host, self.settings.port)
            self._reserved = _reserve(self.settings.host, self.settings.port)
            self.port = self._reserved[0].getsockname()[1]
            if owner is not None:
                self._database_url = await owner.start()
                own_tasks.append(self._watch(owner.run()))
            if not self._end.done():
                self._launch()
            status = await self._end
            sd_notify.stopping()
            return status or await self._drain()
        finally:
            own_tasks[0].cancel()
            await self._drain()
            for task in own_tasks[1:]:
                task.cancel()
            if owner is not None:
                await owner.stop()
            for sent in handlers:
                self._loop.remove_signal_handler(sent)

    def stop(self) -> None:
        """Begin the drain; called again: kill."""
        if not self._end.done():
            self._end.set_result(0)
        else:
            log.warning("workers.forced")
            for worker in self._workers:
                worker.signal(signal.SIGKILL)

    def reload(self) -> None:
        """Pass a SIGHUP on: the workers read their keys again.

        One that is just starting is told later: it may have read them already.
        """
        if self._serving:
            sd_notify.reloading()
        for worker in self._workers:
            if worker.ready_at is not None:
                worker.signal(signal.SIGHUP)
            else:
                worker.reload_due = True
        if self._serving:
            sd_notify.ready()

    def _owner(self) -> EmbeddedOwner | None:
        s = self.settings
        if s.database_url is not None:
            return None
        need = s.workers * (s.lanes + s.pool_max + SPARE_CONNECTIONS)
        return EmbeddedOwner(Embedded(s.data_dir, settings={"max_connections": str(max(200, need))}))

    # ---- a worker's life -------------------------------------------------------------------------

    def _launch(self) -> None:
        """Begin with the first, or go on with the others."""
        for number in range(len(self._workers), self.settings.workers if self._workers else 1):
            worker = Worker(number, self._rng)
            self._workers.append(worker)
            worker.task = self._watch(self._keep(worker))

    def _watch(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """What must not fail: if it does, all ends, loudly."""
        task = self._loop.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("task.died", exc_info=error)
            if not self._end.done():
                self._end.set_exception(error)

    async def _keep(self, worker: Worker) -> None:
        """Run it again and again, until the drain; which cancels this where no process runs."""
        while True:
            status = await self._live(worker)
            served_s = 0.0 if worker.ready_at is None else self._loop.time() - worker.ready_at
            was_ready, worker.ready_at = worker.ready_at is not None, None
            if self._stopping:
                # By SIGTERM alone: it was not up yet
                worker.failed = status != 0 and (was_ready or status != -signal.SIGTERM)
                if worker.failed:
                    log.error("worker.drain_failed", worker=worker.number, status=status)
                return
            if status == WRONG_SETTING and not self._serving:
                if not self._end.done():
                    self._end.set_result(WRONG_SETTING)
                return
            wait_s = worker.backoff.wait_s(served_s)
            tell, event = (log.info, "worker.drained") if status == 0 else (log.error, "worker.died")
            tell(event, worker=worker.number, status=status, served_s=round(served_s, 1), restart_in_s=round(wait_s, 1))
            await self._pause(wait_s)

    async def _live(self, worker: Worker) -> int:
        """One process, from start to end; gives its exit status, negative for a signal."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                ours.setblocking(False)
                theirs.setblocking(False)
                try:
                    process = await asyncio.create_subprocess_exec(
                        *self._command,
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,
                        env=self._environment(worker.number, theirs.fileno()),
                    )
                except OSError as e:
                    log.error("worker.not_started", worker=worker.number, reason=str(e))
                    return FAILED
            worker.process, worker.ticks = process, 0
            listen_errors = self._watch(self._listen(worker, ours))
            watcher = _watcher(process.pid, self.settings.drain_ms / 1000 + DRAIN_MARGIN_S)
            try:
                return await process.wait()
            finally:
                worker.process = None
                watcher.kill()
                watcher.communicate()
                listen_errors.cancel()
                await asyncio.wait([listen_errors])

    async def _listen(self, worker: Worker, line: socket.socket) -> None:
        """Messages are a few bytes, each written at once; all that counts is that they come, and
        READY.
        """
        with contextlib.suppress(OSError):
            while said := await self._loop.sock_recv(line, LINE_BYTES):
                worker.ticks = 0
                if b"READY=1" in said and worker.ready_at is None:
                    self._heard_ready(worker)

    def _heard_ready(self, worker: Worker) -> None:
        worker.ready_at = self._loop.time()
        log.info("worker.ready", worker=worker.number, pid=worker.process.pid if worker.process is not None else None)
        if worker.reload_due:
            worker.reload_due = False
            worker.signal(signal.SIGHUP)
        if self._stopping or self._serving:
            return
        self._launch()
        if all(w.ready_at is not None for w in self._workers):
            self._serving = True
            log.info("ready", host=self.settings.host, port=self.port, workers=len(self._workers))
            sd_notify.ready()
            self.on_ready()

    def _environment(self, number: int, line: int) -> dict[str, str]:
        """Its settings and its line; what else is set, but for what is said to this process alone."""
        s = self.settings
        end = f"/{number}"
        name = (s.node_name or f"{socket.gethostname()}:{self.port}")[: NAME_CHARS_MAX - len(end)] + end
        own = {
            "port": self.port,
            "workers": 1,
            "admin_port": s.admin_port + number if s.admin_port > 0 else s.admin_port,
            "node_name": name,
        }
        mine = (config.ENV_PREFIX, "NOTIFY_SOCKET", "WATCHDOG_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
        environment |= config.environment(s) | {
            config.ENV_PREFIX + name.upper(): str(value) for name, value in own.items()
        }
        if self._database_url:
            environment["CHATD_DATABASE_URL"] = self._database_url
        watchdog_us = int(SILENT_TICKS_MAX * TICK_S * 1_000_000)
        return environment | {sd_notify.WORKER_VARIABLE: str(line), "WATCHDOG_USEC": str(watchdog_us)}

    # ---- watching, draining ----------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Kill who is silent.

        Counted in turns of this loop, not by the clock: if this process was itself stopped, it
        blames nobody.

        systemd is told that all is well as long as any worker serves: one that dies again and again
        must not take the others with it.
        """
        while True:
            await asyncio.sleep(self._tick_s)
            for worker in self._workers:
                worker.ticks += 1
                if worker.process is not None and worker.ticks > (
                    START_TICKS_MAX if worker.ready_at is None else SILENT_TICKS_MAX
                ):
                    log.error("worker.silent", worker=worker.number, pid=worker.process.pid, ticks=worker.ticks)
                    worker.signal(signal.SIGKILL)
            if any(worker.ready_at is not None for worker in self._workers):
                sd_notify.alive()

    async def _drain(self) -> int:
        """Pass the signal on, wait for all; gives the exit status:

        0 only if each drained well. Idempotent.
        """
        self._stopping = True
        # A new chatd may have the port as soon as the workers have left it
        for reserved in (*self._reserved, *self._locks):
            reserved.close()
        for worker in self._workers:
            assert worker.task is not None
            if worker.process is not None:
                worker.signal(signal.SIGTERM)
            else:
                worker.task.cancel()
        tasks = [worker.task for worker in self._workers if worker.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.settings.drain_ms / 1000 + DRAIN_MARGIN_S)
            for worker in self._workers:
                if worker.task in late:
                    log.error("worker.hangs", worker=worker.number)
                    worker.signal(signal.SIGKILL)
            await asyncio.wait(tasks)
        return FAILED if any(worker.failed for worker in self._workers) else 0


def _command() -> list[str]:
    """What a worker is.

    The folder that this happens to be started in is none of its places for modules, unless it is
    ours.
    """
    own_folder = sys.path[0] in ("", str(Path.cwd()))
    return [sys.executable, *([] if own_folder else ["-P"]), "-m", "chatd", "serve"]


def _watcher(pid: int, after_s: float) -> subprocess.Popen[bytes]:
    """A shell that kills a worker, so long after this process has ended, by kill -9 too: one that
    was stopped cannot drain, and keeps the port.

    It waits for the end of a pipe, as in postgres/embedded.py, and looks whether the pid is still
    the same process's. Kill it when the worker has ended.
    """
    return subprocess.Popen(  # noqa: S603 (a text of ours)
        ["/bin/sh", "-c", _WATCHER, "worker-watcher", str(pid), str(after_s), _started(pid)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _started(pid: int) -> str:
    """When a process was started, as /proc has it; nothing where there is none."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().split()[21]
    return ""


def _lock(host: str, port: int) -> list[socket.socket]:
    """Keep other supervisors from this port while none of our workers listens yet: a bind fails
    only where somebody listens. Raises SettingError.

    By names in Linux's abstract namespace, which is as wide as ports are and goes with this
    process; elsewhere nothing is kept.
    """
    locks: list[socket.socket] = []
    if port and sys.platform == "linux":
        try:
            for family, _, _, _, address in socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                locks.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                locks[-1].bind(f"\0chatd-port-{family:d}-{address[0]}-{port}")
        except (OSError, UnicodeError) as e:
            for lock in locks:
                lock.close()
            raise listen_errors.refused("", host, port, e) from e
    return locks


def _reserve(host: str, port: int) -> list[socket.socket]:
    """Hold the port (0: a free one) for the workers: bound to every address of the host, and not listening.

    Raises SettingError.
    """
    try:
        for attempt in range(RESERVE_TRIES_MAX):
            try:
                return _bind_all(host, port)
            except OSError:
                # A free one of the first address may be taken at the second
                if port or attempt == RESERVE_TRIES_MAX - 1:
                    raise
        raise AssertionError("unreachable")
    except (OSError, UnicodeError) as e:
        raise listen_errors.refused("", host, port, e) from e


def _bind_all(host: str, port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            # Fails where anybody listens; shared at once, another chatd of ours would be joined
            # without a word
            if port:
                _bind(family, kind, proto, (address[0], port, *address[2:]), shared=False).close()
            bound.append(_bind(family, kind, proto, (address[0], port, *address[2:]), shared=True))
            port = bound[0].getsockname()[1]
    except BaseException:
        for one in bound:
            one.close()
        raise
    return bound


def _bind(family: int, kind: int, proto: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
