"""Supervises the worker processes of `chatd serve --workers N`.

    chatd serve --workers 3          has the port, runs the embedded PostgreSQL and Valkey if needed
      ├──line── chatd serve   0      a node, which gets its connections by its line; each has an
      ├──line── chatd serve   1      admin port and a name of its own
      └──line── chatd serve   2

    start    worker 0 alone, so that a wrong setting is reported once and migrations run in one
             process; once it is ready, the others
    connect  each connection goes to the worker that has the fewest (ops/hand_over.py); the port
             listens while any worker is ready
    serve    a worker that ends is started again, with back-off; one that is silent is killed
    drain    SIGTERM to all, and wait; a second signal kills them. Valkey and the database stop last

This process reads and writes nothing of a client. A line is a socket pair (ops/worker_line.py): a
worker sends READY, WATCHDOG and its number of connections on it. A worker whose line ends drains,
because this process has ended, by kill -9 or otherwise. So no worker keeps running unsupervised.
Rejected: PR_SET_PDEATHSIG, which is Linux-only and bound to the thread that forked.

Settings reach the workers by the environment: this process has checked them already, and flags
would show passwords to all users. Each worker leads a session of its own, so that a Ctrl-C reaches
this process alone, which passes it on as a drain. Exit status 2 (a wrong setting) of a worker ends
everything only until all workers have once been ready. After that the settings are known to be
right, and what a later start finds wrong (PostgreSQL away, a keys file half-written) passes.
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

from chatd import config_sources
from chatd.cluster.redis.embedded import EmbeddedValkey
from chatd.config import Settings
from chatd.loop.backoff import Backoff
from chatd.ops import reserved_port, sd_notify, worker_line
from chatd.ops.hand_over import HandOver
from chatd.postgres.embedded import Embedded
from chatd.postgres.embedded_owner import EmbeddedOwner

log = structlog.get_logger("workers")

FAILED: Final = 1
WRONG_SETTING: Final = 2
TICK_S: Final = 1.0
SILENT_TICKS_MAX: Final = 30  # a worker reports once a second that it is alive
START_TICKS_MAX: Final = 660  # a start may wait for migrations of another node, 600 s at most
DRAIN_MARGIN_S: Final = 5.0  # a worker that has not ended so long after drain_ms hangs
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
NAME_CHARS_MAX: Final = 64  # of node_name
LINE_BYTES: Final = 1 << 16
QUIET_TICKS: Final = 3  # a worker that has not reported for so long gets no new connections if others have
SPARE_CONNECTIONS: Final = 6  # of a worker beyond lanes and pool: retention, change feed, migration

_WATCHER: Final = """
trap "" HUP INT TERM
read -r _
sleep "$2"
read -r _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ started _ < "/proc/$1/stat"
[ "$started" = "$3" ] && kill -9 "$1"
"""


class Worker:
    """The state of one worker.

    `process` is set while it runs. `ticks` counts sweeps since its last message.
    """

    def __init__(self, number: int, rng: random.Random) -> None:
        self.number = number
        self.backoff = Backoff(rng, BACKOFF_FIRST_S, BACKOFF_MAX_S)
        self.process: asyncio.subprocess.Process | None = None
        self.task: asyncio.Task[None] | None = None
        self.ready_at: float | None = None
        self.ticks = 0
        self.reload_due = False  # a reload was asked for before it was ready
        self.failed = False  # it failed in the drain

    def signal(self, sent: signal.Signals) -> None:
        """Send a signal to its process, if there is one."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(sent)


class Supervisor:
    """Starts, watches and drains the workers. `run` is its whole life.

    `command` (what a worker runs), `pause` (the wait before a restart) and `tick_s` (between two
    sweeps) are for tests.
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
        self._end: asyncio.Future[int] = self._loop.create_future()  # exit status: 0 by a signal, 2 for a wrong setting
        self._stopping = False
        self._serving = False  # all workers have been ready at the same time
        self._workers: list[Worker] = []
        self._reserved: list[socket.socket] = []
        self._locks: list[socket.socket] = []
        self._hand_over = HandOver(self._loop)
        self._database_url = self._redis_url = ""  # of the embedded ones

    # ---- life ------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Start, serve until a signal, drain, stop; returns an exit status. Raises SettingError."""
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.reload}
        for sent, handler in handlers.items():
            self._loop.add_signal_handler(sent, handler)
        owner, valkey = self._owner(), self._valkey()
        own_tasks = [self._watch(self._sweep())]
        try:
            self._locks = reserved_port.lock(self.settings.host, self.settings.port)
            self._reserved = reserved_port.reserve(self.settings.host, self.settings.port)
            self.port = self._reserved[0].getsockname()[1]
            if owner is not None:
                self._database_url = await owner.start()
                own_tasks.append(self._watch(owner.run()))
            if valkey is not None:
                self._redis_url = await valkey.start()
                own_tasks.append(self._watch(valkey.run()))
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
            await asyncio.gather(*own_tasks, return_exceptions=True)
            if valkey is not None:
                await valkey.stop()
            if owner is not None:
                await owner.stop()
            for sent in handlers:
                self._loop.remove_signal_handler(sent)

    def stop(self) -> None:
        """Begin the drain; when called again, kill the workers."""
        if not self._end.done():
            self._end.set_result(0)
        else:
            log.warning("workers.forced")
            for worker in self._workers:
                worker.signal(signal.SIGKILL)

    def reload(self) -> None:
        """Pass a SIGHUP on, by which the workers read their keys again.

        A worker that is starting gets it once it is ready, as it may have read the old keys.
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

    def _valkey(self) -> EmbeddedValkey | None:
        s = self.settings
        return EmbeddedValkey(s.data_dir) if s.workers > 1 and s.redis_url is None else None

    # ---- a worker's life -------------------------------------------------------------------------

    def _launch(self) -> None:
        """Start the first worker, or when that one is ready, the others."""
        for number in range(len(self._workers), self.settings.workers if self._workers else 1):
            worker = Worker(number, self._rng)
            self._workers.append(worker)
            worker.task = self._watch(self._keep(worker))

    def _watch(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task that must not fail: an error is logged and ends everything."""
        task = self._loop.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("task.died", exc_info=error)
            if not self._end.done():
                self._end.set_exception(error)

    async def _keep(self, worker: Worker) -> None:
        """Run a worker again and again, until the drain, which cancels this if no process runs."""
        while True:
            status = await self._live(worker)
            served_s = 0.0 if worker.ready_at is None else self._loop.time() - worker.ready_at
            was_ready, worker.ready_at = worker.ready_at is not None, None
            if self._stopping:
                # An end by SIGTERM is no failure of a worker that was not ready yet
                worker.failed = status != 0 and (was_ready or status != -signal.SIGTERM)
                if worker.failed:
                    log.error("worker.drain_failed", worker=worker.number, status=status)
                return
            if status == WRONG_SETTING and not self._serving:
                if not self._end.done():
                    self._end.set_result(WRONG_SETTING)
                return
            wait_s = worker.backoff.wait_s(served_s)
            write, event = (log.info, "worker.drained") if status == 0 else (log.error, "worker.died")
            times = {"served_s": round(served_s, 1), "restart_in_s": round(wait_s, 1)}
            write(event, worker=worker.number, status=status, **times)
            await self._pause(wait_s)

    async def _live(self, worker: Worker) -> int:
        """Run one process to its end; returns its exit status, negative for a signal."""
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
                self._leaves(worker)
                watcher.kill()
                watcher.communicate()
                listen_errors.cancel()
                await asyncio.wait([listen_errors])

    async def _listen(self, worker: Worker, line: socket.socket) -> None:
        """Read a worker's messages, a line each."""
        rest = b""
        with contextlib.suppress(OSError):
            while data := await self._loop.sock_recv(line, LINE_BYTES):
                worker.ticks = 0
                *messages, rest = (rest + data).split(b"\n")
                for message in messages:
                    self._heard(worker, line, message)

    def _heard(self, worker: Worker, line: socket.socket, message: bytes) -> None:
        if message == b"READY=1" and worker.ready_at is None:
            self._heard_ready(worker, line)
        elif message == b"STOPPING=1":
            self._leaves(worker)
        elif (report := worker_line.reported(message)) is not None:
            self._hand_over.heard(worker.number, *report)

    def _leaves(self, worker: Worker) -> None:
        """The worker takes no more connections; without any that does, nobody listens."""
        self._hand_over.remove(worker.number)
        if not self._hand_over.loads():
            self._hand_over.close()

    def _open_port(self) -> None:
        """Listen, if there are workers for it and it does not yet; the next sweep tries again."""
        if self._stopping or self._hand_over.is_open or not self._hand_over.loads():
            return
        try:
            self._hand_over.listen(reserved_port.again(self._reserved))
        except OSError as e:
            log.error("listen.failed", host=self.settings.host, port=self.port, reason=str(e))

    def _heard_ready(self, worker: Worker, line: socket.socket) -> None:
        worker.ready_at = self._loop.time()
        if not self._stopping:
            self._hand_over.add(worker.number, line)
            self._open_port()
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
        """A worker's environment: ours, without what is for this process alone; settings; line."""
        s = self.settings
        end = f"/{number}"
        name = (s.node_name or f"{socket.gethostname()}:{self.port}")[: NAME_CHARS_MAX - len(end)] + end
        own = {
            "port": self.port,
            "workers": 1,
            "admin_port": s.admin_port + number if s.admin_port > 0 else s.admin_port,
            "node_name": name,
        }
        mine = (config_sources.ENV_PREFIX, "NOTIFY_SOCKET", "WATCHDOG_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
        environment |= config_sources.environment(s) | {
            config_sources.ENV_PREFIX + name.upper(): str(value) for name, value in own.items()
        }
        if self._database_url:
            environment["CHATD_DATABASE_URL"] = self._database_url
        if self._redis_url:
            environment["CHATD_REDIS_URL"] = self._redis_url
        watchdog_us = int(SILENT_TICKS_MAX * TICK_S * 1_000_000)
        return environment | {worker_line.VARIABLE: str(line), "WATCHDOG_USEC": str(watchdog_us)}

    # ---- watching, draining ----------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Kill workers that are silent for too long. Never returns.

        Silence is counted in turns of this loop, not by the clock, so that a pause of this process
        itself does not count. systemd is notified as long as any worker serves, because a worker
        that dies again and again must not end the others.
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
                elif worker.ticks > QUIET_TICKS:
                    self._hand_over.silent(worker.number)
            self._open_port()
            if any(worker.ready_at is not None for worker in self._workers):
                sd_notify.alive()

    async def _drain(self) -> int:
        """Pass the signal on and wait for all. Idempotent.

        Returns the exit status: 0 only if each worker drained without an error.
        """
        self._stopping = True
        self._hand_over.close()
        # From here on a new chatd may take the port
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
    """The command line of a worker.

    `-P` keeps the current folder off its module path, unless it is on ours.
    """
    own_folder = sys.path[0] in ("", str(Path.cwd()))
    return [sys.executable, *([] if own_folder else ["-P"]), "-m", "chatd", "serve"]


def _watcher(pid: int, after_s: float) -> subprocess.Popen[bytes]:
    """A shell that kills a worker `after_s` after this process has ended, by kill -9 or otherwise.

    A worker that is stopped (SIGSTOP) cannot drain, and would keep the port. The shell waits for
    the end of a pipe, as in postgres/embedded.py, and checks that the pid is still the same
    process. Kill the shell when the worker has ended.
    """
    return subprocess.Popen(  # noqa: S603 (the script is ours)
        ["/bin/sh", "-c", _WATCHER, "worker-watcher", str(pid), str(after_s), _started(pid)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _started(pid: int) -> str:
    """When a process was started, as /proc has it (proc(5), field 22); "" if it is not there."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().split()[21]
    return ""
