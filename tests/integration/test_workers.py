"""The supervisor, with workers that do what a test wants: real processes, a few lines each, that
tell the test of their lives by a pipe.

Each worker acts by a plan, one word for each of its starts, the last one for all further ones. With
real nodes: `tests/cluster/test_workers.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from structlog.testing import capture_logs

from chatd.config import Settings
from chatd.errors import SettingError
from chatd.ops import reserved_port
from chatd.ops import supervisor as workers
from chatd.ops.supervisor import Supervisor
from tests.until import until

WAIT_S = 20.0

STUB = """
import os, signal, sys, time
pipe, *plans = sys.argv[1:]
number = int(os.environ["CHATD_NODE_NAME"].rpartition("/")[2])
line = int(os.environ["_CHATD_WORKER"])
fd = os.open(pipe, os.O_WRONLY)
def tell(word):
    os.write(fd, f"{number} {os.getpid()} {word}\\n".encode())
counter = f"{pipe}.{number}"
start = os.path.getsize(counter) if os.path.exists(counter) else 0
with open(counter, "a") as file:
    file.write(".")
plan = plans[min(number, len(plans) - 1)].split(",")
todo = plan[min(start, len(plan) - 1)]
def over(*_):
    tell("term")
    os._exit(1 if todo == "fail" else 0)
signal.signal(signal.SIGTERM, {"stubborn": signal.SIG_IGN, "slow": signal.SIG_DFL}.get(todo, over))
signal.signal(signal.SIGHUP, lambda *_: tell("hup"))
tell("start")
if todo == "die":
    os._exit(1)
if todo == "wrong":
    os._exit(2)
if todo != "slow":
    os.write(line, b"READY=1\\nSTATUS=serving\\n")
while True:
    time.sleep(0.02)
    if todo not in ("silent", "slow"):
        try:
            os.write(line, b"WATCHDOG=1\\n")
        except BlockingIOError:
            pass
        except OSError:
            os._exit(0)  # the supervisor is gone
    elif os.getppid() == 1:
        os._exit(0)
"""


class Events:
    """What the workers tell: (number, pid, word)."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next(self, word: str | None = None) -> tuple[int, int, str]:
        """The next one (of this word: others are passed over)."""
        async with asyncio.timeout(WAIT_S):
            while True:
                number, pid, said = (await self._reader.readline()).decode().split()
                if word is None or said == word:
                    return int(number), int(pid), said


@pytest_asyncio.fixture
async def events(tmp_path: Path) -> AsyncIterator[Events]:
    os.mkfifo(tmp_path / "pipe")
    reader = asyncio.StreamReader()
    with (tmp_path / "pipe").open("r+b", buffering=0) as pipe:  # both ends, so that it never ends
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        yield Events(reader)
        transport.close()


class Pauses:
    """Restarts do not wait; what they would have waited is here."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.then: Callable[[], None] = lambda: None

    async def __call__(self, wait_s: float) -> None:
        self.waits.append(wait_s)
        self.then()
        await asyncio.sleep(0)


def settings(tmp_path: Path, n: int, **more: Any) -> Settings:
    keys = {
        "port": 0,
        "admin_port": -1,
        "data_dir": tmp_path,
        "database_url": SecretStr("dbname=none"),
        "redis_url": SecretStr("redis://127.0.0.1:1"),
    }
    return Settings(workers=n, **{**keys, **more})


def supervise(
    tmp_path: Path, *plans: str, pauses: Pauses | None = None, tick_s: float = 1.0, **more: Any
) -> Supervisor:
    command = [sys.executable, "-S", "-c", STUB, str(tmp_path / "pipe"), *plans]
    return Supervisor(
        settings(tmp_path, max(2, len(plans)), **more),
        command=command,
        pause=pauses or Pauses(),
        rng=random.Random(7),
        tick_s=tick_s,
    )


async def until_serving(supervisor: Supervisor) -> asyncio.Task[int]:
    serving = asyncio.Event()
    supervisor.on_ready = serving.set
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(WAIT_S):
        await serving.wait()
    return running


async def result(running: asyncio.Task[int]) -> int:
    async with asyncio.timeout(WAIT_S):
        return await running


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_all_are_started_the_first_one_alone_and_a_signal_drains_them(tmp_path: Path, events: Events) -> None:
    supervisor = supervise(tmp_path, "serve", "serve", "serve")
    running = await until_serving(supervisor)
    started = [await events.next() for _ in range(3)]
    assert started[0][0] == 0
    assert {number for number, _, _ in started} == {0, 1, 2}
    os.kill(os.getpid(), signal.SIGTERM)
    assert await result(running) == 0
    assert {(await events.next("term"))[0] for _ in range(3)} == {0, 1, 2}
    assert not any(alive(pid) for _, pid, _ in started)


async def test_the_others_wait_until_the_first_one_is_ready(tmp_path: Path, events: Events) -> None:
    supervisor = supervise(tmp_path, "die,slow", "serve", "serve")
    running = asyncio.create_task(supervisor.run())
    assert [(await events.next())[0] for _ in range(2)] == [0, 0]
    supervisor.stop()
    assert await result(running) == 0, "one that was not ready had nothing to drain"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await events.next("start")


async def test_a_killed_worker_is_replaced_and_the_others_are_left_alone(tmp_path: Path, events: Events) -> None:
    pauses = Pauses()
    supervisor = supervise(tmp_path, "serve", "serve", "serve", pauses=pauses)
    running = await until_serving(supervisor)
    pids = {number: pid for number, pid, _ in [await events.next() for _ in range(3)]}
    with capture_logs() as logs:
        os.kill(pids[1], signal.SIGKILL)
        number, pid, _ = await events.next("start")
    assert number == 1
    assert pid != pids[1]
    assert pauses.waits == [0.0]
    assert [(log["worker"], log["status"], log["log_level"]) for log in logs if log["event"] == "worker.died"] == [
        (1, -9, "error")
    ]
    assert alive(pids[0])
    assert alive(pids[2])
    supervisor.stop()
    assert await result(running) == 0


async def test_a_port_that_cannot_be_opened_for_a_moment_is_tried_again_and_ends_no_worker(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = reserved_port.again, [0]

    def again(reserved: list[socket.socket]) -> list[socket.socket]:
        refused[0] += 1
        if refused[0] < 3:
            raise OSError("no descriptor is left")
        return real(reserved)

    monkeypatch.setattr(reserved_port, "again", again)
    supervisor = supervise(tmp_path, "serve", "serve", tick_s=0.02)
    with capture_logs() as logs:
        running = await until_serving(supervisor)
        await until(lambda: supervisor._hand_over.is_open)
    assert [log["reason"] for log in logs if log["event"] == "listen.failed"] == ["no descriptor is left"] * 2
    with socket.create_connection(("127.0.0.1", supervisor.port)):
        supervisor.stop()
        assert await result(running) == 0


async def test_a_crash_loop_backs_off(tmp_path: Path, events: Events) -> None:
    pauses = Pauses()
    supervisor = supervise(tmp_path, "die", pauses=pauses)
    pauses.then = lambda: supervisor.stop() if len(pauses.waits) == 8 else None
    assert await result(asyncio.create_task(supervisor.run())) == 0
    assert pauses.waits[0] == 0
    for wait_s, ceiling in zip(pauses.waits[1:], (1, 2, 4, 8, 16, 30, 30), strict=True):
        assert ceiling / 2 <= wait_s <= ceiling


async def test_a_wrong_setting_ends_all_with_its_status_and_is_told_once(tmp_path: Path, events: Events) -> None:
    assert await result(asyncio.create_task(supervise(tmp_path, "wrong", "wrong", "wrong").run())) == 2
    assert (await events.next())[0] == 0
    assert not (tmp_path / "pipe.1").exists()


async def test_what_a_later_worker_finds_wrong_at_the_first_start_ends_all(tmp_path: Path, events: Events) -> None:
    assert await result(asyncio.create_task(supervise(tmp_path, "serve", "wrong").run())) == 2
    assert (await events.next("term"))[0] == 0


async def test_what_a_restarted_worker_finds_wrong_does_not_end_the_others(tmp_path: Path, events: Events) -> None:
    pauses = Pauses()
    supervisor = supervise(tmp_path, "serve", "serve,wrong,wrong,serve", pauses=pauses)
    running = await until_serving(supervisor)
    pids = {number: pid for number, pid, _ in [await events.next() for _ in range(2)]}
    os.kill(pids[1], signal.SIGKILL)
    assert [(await events.next("start"))[0] for _ in range(3)] == [1, 1, 1]
    assert [wait_s == 0 for wait_s in pauses.waits] == [True, False, False]
    assert alive(pids[0])
    supervisor.stop()
    assert await result(running) == 0


async def test_a_silent_worker_is_killed_and_started_again(tmp_path: Path, events: Events) -> None:
    pauses = Pauses()
    supervisor = supervise(tmp_path, "serve", "silent,serve", pauses=pauses, tick_s=0.01)
    with capture_logs() as logs:
        running = await until_serving(supervisor)
        assert [(await events.next("start"))[0] for _ in range(3)] == [0, 1, 1]
        supervisor.stop()
        assert await result(running) == 0
    assert [log["worker"] for log in logs if log["event"] == "worker.silent"] == [1]
    assert [(log["worker"], log["status"]) for log in logs if log["event"] == "worker.died"] == [(1, -9)]


async def test_a_supervisor_that_was_itself_stopped_blames_nobody(tmp_path: Path, events: Events) -> None:
    supervisor = supervise(tmp_path, "serve", "serve", tick_s=0.02)
    with capture_logs() as logs:
        running = await until_serving(supervisor)
        time.sleep(1.0)  # 50 ticks of the clock, 1 of the loop
        supervisor.stop()
        assert await result(running) == 0
    assert [log for log in logs if log["event"] == "worker.silent"] == []


async def test_the_exit_status_tells_of_a_drain_that_failed(tmp_path: Path, events: Events) -> None:
    supervisor = supervise(tmp_path, "serve", "fail")
    running = await until_serving(supervisor)
    supervisor.stop()
    assert await result(running) == 1


async def test_who_hangs_in_the_drain_is_killed(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "DRAIN_MARGIN_S", 0.1)
    supervisor = supervise(tmp_path, "serve", "stubborn", drain_ms=0)
    running = await until_serving(supervisor)
    supervisor.stop()
    assert await result(running) == 1


async def test_a_second_signal_kills(tmp_path: Path, events: Events) -> None:
    supervisor = supervise(tmp_path, "stubborn", "stubborn", drain_ms=600_000)
    running = await until_serving(supervisor)
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: supervisor._stopping)
    os.kill(os.getpid(), signal.SIGINT)
    assert await result(running) == 1


async def test_a_reload_is_passed_on_and_reaches_one_that_is_still_starting(tmp_path: Path, events: Events) -> None:
    supervisor = supervise(tmp_path, "serve", "serve")
    launch = supervisor._launch

    def launch_and_reload() -> None:
        before = len(supervisor._workers)
        launch()
        if before == 1 != len(supervisor._workers):
            supervisor.reload()  # 0 is ready, 1 has no process yet

    supervisor._launch = launch_and_reload  # type: ignore[method-assign]
    running = await until_serving(supervisor)
    assert {(await events.next("hup"))[0] for _ in range(2)} == {0, 1}
    os.kill(os.getpid(), signal.SIGHUP)
    assert {(await events.next("hup"))[0] for _ in range(2)} == {0, 1}
    supervisor.stop()
    assert await result(running) == 0


async def test_systemd_is_told_of_all_as_of_one(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.setblocking(False)
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")

        async def heard() -> bytes:
            async with asyncio.timeout(WAIT_S):
                return (await asyncio.get_running_loop().sock_recv(systemd, 4096)).splitlines()[0]

        supervisor = supervise(tmp_path, "serve", "serve", tick_s=0.05)
        running = await until_serving(supervisor)
        while (said := await heard()) == b"WATCHDOG=1":  # the first worker is ready before all are
            pass
        assert said == b"READY=1"
        assert await heard() == b"WATCHDOG=1"
        supervisor.reload()
        while (said := await heard()) == b"WATCHDOG=1":
            pass
        assert [said, await heard()] == [b"RELOADING=1", b"READY=1"]
        supervisor.stop()
        assert await result(running) == 0
        while (said := await heard()) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"


async def test_a_worker_gets_its_settings_by_the_environment_and_nothing_that_is_its_supervisors(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATD_CONFIG", "/nonexistent.toml")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent")
    supervisor = supervise(
        tmp_path, "serve", "serve", "serve", admin_port=20_000, redis_url=SecretStr("redis://:hidden@127.0.0.1:1")
    )
    running = await until_serving(supervisor)
    names = set()
    for _ in range(3):
        number, pid, _ = await events.next("start")
        assert b"hidden" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        environment = dict(pair.split("=", 1) for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if pair)
        assert environment["CHATD_REDIS_URL"] == "redis://:hidden@127.0.0.1:1"
        assert environment["CHATD_PORT"] == str(supervisor.port)
        assert environment["CHATD_ADMIN_PORT"] == str(20_000 + number)
        assert environment["CHATD_WORKERS"] == "1"
        assert not {"CHATD_CONFIG", "NOTIFY_SOCKET"} & environment.keys()
        assert os.getsid(pid) == pid, "a Ctrl-C on the terminal is the supervisor's to pass on, once"
        names.add(environment["CHATD_NODE_NAME"])
    assert len(names) == 3
    supervisor.stop()
    assert await result(running) == 0


async def test_a_port_that_somebody_listens_on_is_refused_even_if_it_could_be_shared(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SettingError, match="--port"):
            await supervise(tmp_path, "serve", port=other.getsockname()[1]).run()


def test_a_free_port_is_the_same_at_every_address_and_stays_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["127.0.0.1", "127.0.0.2"]  # as a name may have several
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = reserved_port.reserve("some-name", 0)
    try:
        (port,) = {one.getsockname()[1] for one in sockets}
        for address in addresses:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((address, port))
    finally:
        for one in sockets:
            one.close()


async def test_a_host_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot listen on no-such-host"):
        await supervise(tmp_path, "serve", host="no-such-host.invalid", allow_remote_dev=True).run()


async def test_a_worker_that_cannot_even_be_started_is_one_that_died(tmp_path: Path) -> None:
    pauses = Pauses()
    supervisor = Supervisor(settings(tmp_path, 2), command=["/nonexistent/python"], pause=pauses)
    pauses.then = lambda: supervisor.stop() if len(pauses.waits) == 3 else None
    assert await result(asyncio.create_task(supervisor.run())) == 0
    assert pauses.waits[0] == 0 < pauses.waits[1]


async def test_two_supervisors_on_one_port_the_second_says_so(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(
        data_dir=tmp_path, host="127.0.0.1", port=port, admin_port=-1, workers=2,
        database_url=SecretStr("postgresql://"), redis_url=SecretStr("redis://127.0.0.1"),
    )  # fmt: skip
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]  # it never gets as far as to listen
    first = Supervisor(settings, command=sleeps)
    running = asyncio.create_task(first.run())
    await until(lambda: first._workers and first._workers[0].process)
    with pytest.raises(SettingError, match="Address already in use"):
        await Supervisor(settings, command=sleeps).run()
    first.stop()
    async with asyncio.timeout(WAIT_S):
        await running


@pytest.mark.parametrize("is_it", [True, False], ids=["the worker", "another process that has its pid by now"])
def test_a_worker_that_was_stopped_is_killed_once_its_supervisor_is_gone(
    monkeypatch: pytest.MonkeyPatch, is_it: bool
) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as worker:
        if not is_it:
            monkeypatch.setattr(workers, "_started", lambda pid: "1")
        with workers._watcher(worker.pid, 0.01) as watcher:
            os.kill(worker.pid, signal.SIGSTOP)
            assert watcher.stdin is not None
            watcher.stdin.close()  # as when the supervisor is killed
            watcher.wait(WAIT_S)
        if is_it:
            assert worker.wait(WAIT_S) == -signal.SIGKILL
        else:
            assert worker.poll() is None
            worker.kill()
