"""Reports the state of this process to its supervisor, by the messages of sd_notify(3).

The environment says who the supervisor is. Without one, nothing is sent.

    systemd                  NOTIFY_SOCKET names a datagram socket; WATCHDOG_USEC: `alive` is wanted
    chatd serve --workers    a worker has a line to its supervisor (ops/worker_line.py)

Rejected: the package sdnotify. It is as short, was last released in 2017, and blocks when the
socket is full.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

from chatd.ops import worker_line

WAITING_S: Final = 60  # by which `waiting` extends a start


def ready() -> None:
    """Start-up is over: units ordered after this one may start."""
    _send("READY=1\nSTATUS=serving")


def waiting(reason: str) -> None:
    """Start-up waits for something that may take long.

    It extends the supervisor's `TimeoutStartSec=` by `WAITING_S`, until the next call or `ready`.
    """
    _send(f"STATUS=waiting: {reason}\nEXTEND_TIMEOUT_USEC={WAITING_S * 1_000_000}")


def reloading() -> None:
    """Settings are being read again; call `ready` when done."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The drain has begun."""
    _send("STOPPING=1\nSTATUS=draining")


def alive() -> None:
    """The event loop still turns. Call it every second.

    A supervisor with `WatchdogSec=` restarts a daemon that is silent for that long.
    """
    if "WATCHDOG_USEC" in os.environ:
        _send("WATCHDOG=1")


def _send(state: str) -> None:
    """Never blocks and never raises: a daemon must not fail because nothing listens."""
    try:
        line = worker_line.descriptor()
        if line is not None:
            # The supervisor made it non-blocking; what does not fit is lost
            os.write(line, f"{state}\n".encode())
        else:
            _send_to_systemd(state)
    except (OSError, ValueError):  # ValueError: not an address
        pass


def _send_to_systemd(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":  # Linux's abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode(), address)
