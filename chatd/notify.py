"""Tells systemd how the daemon fares (sd_notify(3)): one datagram to the socket that `NOTIFY_SOCKET` names; elsewhere, nothing.

Own lines rather than the package sdnotify: that one is as short, last released in 2017, and blocks where the socket is full.
"""

from __future__ import annotations

import os
import socket
import time


def ready() -> None:
    """Start-up is over: units that come after this one may start."""
    _send("READY=1\nSTATUS=serving")


def reloading() -> None:
    """Settings are being read again; `ready` ends it."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The drain has begun."""
    _send("STOPPING=1\nSTATUS=draining")


def alive() -> None:
    """The event loop still turns. With `WatchdogSec=` systemd restarts a daemon that has not said so for that long: call it every second."""
    if "WATCHDOG_USEC" in os.environ:
        _send("WATCHDOG=1")


def _send(state: str) -> None:
    """Never blocks and never raises: a daemon must not fail because nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":  # Linux' abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), address)
    except (OSError, ValueError):  # ValueError: an address that cannot be one
        pass
