"""Messages to systemd, received on a real unix socket."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

import pytest

from chatd.ops import sd_notify, worker_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@chatd-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name if name[0] == "/" else "\0" + name[1:])
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_the_life_of_a_daemon_is_told(systemd: socket.socket) -> None:
    sd_notify.ready()
    sd_notify.reloading()
    sd_notify.stopping()
    assert systemd.recv(4096).decode().splitlines()[0] == "READY=1"
    reloading = dict(line.split("=") for line in systemd.recv(4096).decode().splitlines())
    assert reloading["RELOADING"] == "1"
    assert int(reloading["MONOTONIC_USEC"]) > 0
    assert systemd.recv(4096).decode().splitlines()[0] == "STOPPING=1"


def test_the_watchdog_is_fed_only_where_one_waits(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    sd_notify.alive()
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    sd_notify.alive()
    assert systemd.recv(4096) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)


@pytest.mark.parametrize(
    "address",
    [None, "", "relative", "vsock:2:1234", "/nowhere/at/all", "@nobody-listens-here", "/" + "x" * 300, "/a\ud800"],
)
def test_without_anybody_who_listens_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setattr("os.environ", {"NOTIFY_SOCKET": address})
    sd_notify.ready()


def test_a_full_socket_does_not_block(systemd: socket.socket) -> None:
    for _ in range(10_000):
        sd_notify.ready()
    assert systemd.recv(4096).startswith(b"READY=1")


def all_calls() -> list[Callable[[], None]]:
    return [sd_notify.ready, sd_notify.reloading, sd_notify.stopping, sd_notify.alive]


@pytest.mark.parametrize("call", all_calls())
def test_no_descriptor_is_left_open(systemd: socket.socket, call: Callable[[], None]) -> None:
    call()  # a leak would be a ResourceWarning, and warnings are errors here


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The supervisor's end of a worker's line; this process is the worker."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.setenv(worker_line.VARIABLE, str(theirs.fileno()))
        yield ours


def test_a_worker_tells_its_supervisor(line: socket.socket) -> None:
    sd_notify.ready()
    sd_notify.alive()
    assert line.recv(4096).decode().splitlines() == ["READY=1", "STATUS=serving", "WATCHDOG=1"]


def test_a_supervisor_that_does_not_listen_does_not_block_its_worker(line: socket.socket) -> None:
    for _ in range(100_000):
        sd_notify.alive()
    assert line.recv(10) == b"WATCHDOG=1"
