"""Tells whoever supervises this process how it fares, in the words of sd_notify(3).

Who that is, the environment says; if nobody, nothing happens.

    systemd                  NOTIFY_SOCKET names a datagram socket; WATCHDOG_USEC says that it wants to hear `alive`
    chatd serve --workers    _CHATD_WORKER is the descriptor of a stream socket, a worker's line to its supervisor (chatd/ops/supervisor.py):
                             messages go up; nothing ever comes down but its end, when the supervisor is gone, however it went

Own lines rather than the package sdnotify: that one is as short, last released in 2017, and blocks
where the socket is full.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Final

WAITING_S: Final = 60
WORKER_VARIABLE: Final = "_CHATD_WORKER"  # it is no setting, so its name does not begin as theirs do

_stopping = False


def is_worker() -> bool:
    """Is this one of the workers of a `chatd serve --workers`? They share one port."""
    return _line() is not None


def on_orphaned(call: Callable[[], None]) -> None:
    """Call it once when this worker's supervisor is gone, unless a drain has begun before.

    In other processes: nothing. Needs the running loop.
    """
    line = _line()
    if line is None:
        return
    loop = asyncio.get_running_loop()

    def over() -> None:
        loop.remove_reader(line)
        if not _stopping:  # to be asked twice would mean to stop at once
            call()

    loop.add_reader(line, over)


def ready() -> None:
    """Start-up is over: units that come after this one may start."""
    _send("READY=1\nSTATUS=serving")


def waiting(reason: str) -> None:
    """Start-up waits for something that may take long: the supervisor is to give it time
    (`TimeoutStartSec=`), until it is said again or `ready`.
    """
    _send(f"STATUS=waiting: {reason}\nEXTEND_TIMEOUT_USEC={WAITING_S * 1_000_000}")


def reloading() -> None:
    """Settings are being read again; `ready` ends it."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The drain has begun."""
    global _stopping
    _stopping = True
    _send("STOPPING=1\nSTATUS=draining")


def alive() -> None:
    """The event loop still turns: to be said every second.

    Whoever waits for it (`WatchdogSec=`) restarts a daemon that is silent for that long.
    """
    if "WATCHDOG_USEC" in os.environ:
        _send("WATCHDOG=1")


def _line() -> int | None:
    text = os.environ.get(WORKER_VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() else None


def _send(state: str) -> None:
    """Never blocks and never raises: a daemon must not fail because nobody listens."""
    try:
        line = _line()
        if line is not None:
            os.write(line, f"{state}\n".encode())  # the supervisor made it non-blocking; what no longer fits is lost
        else:
            _send_to_systemd(state)
    except (OSError, ValueError):  # ValueError: an address that cannot be one
        pass


def _send_to_systemd(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":  # Linux' abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode(), address)
