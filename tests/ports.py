"""Ports for the servers of tests: below the range from which the system gives ports to connections,
so that nobody takes one between a kill and the next start; and one that was given is not given
again.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Final

PORTS: Final = range(12_000, 22_000)  # the bus of a Redis Cluster listens 10,000 above
# Other processes that test begin elsewhere: by the golden ratio, so that neighbours among pids are
# far from each other.
_ports: Final[Iterator[int]] = iter([*PORTS[os.getpid() * 6_180 % len(PORTS) :], *PORTS])


def free_port() -> int:
    for port in _ports:
        with socket.socket() as one, socket.socket() as bus, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port
    raise AssertionError("no port is free")
