"""What all connections of a node share, and what they ask of the listener.

    connection ──► Shared ── bounds, intakes, flusher, access log, chat
                     └─ table: ConnectionTable (the listener) ── room, the phase of each connection

The listener makes one `Shared`, and each connection holds it in one slot. Both classes are generic
in the connection, so this module knows neither the connection nor the listener.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from chatd.chat.handlers import Chat
from chatd.core.read_pacing import Intake
from chatd.core.write_pacing import Output
from chatd.metrics import Metrics
from chatd.net.access_log import AccessLog
from chatd.protocol import Bounds
from chatd.wire.arrival import Sources
from chatd.wire.handshake import HttpHandler

Conn = TypeVar("Conn")
Conn_contra = TypeVar("Conn_contra", contravariant=True)


class ConnectionTable(Protocol[Conn_contra]):
    """The connections of a node: who gets room, and which phase each is in."""

    def admit(self, connection: Conn_contra, *, is_known: bool) -> bool:
        """True if there is room for one more; else the caller answers 503.

        `is_known`: its address is the client's, and counts.
        """

    def locate(self, connection: Conn_contra, address: str, differ: bool) -> bool:
        """A proxy's headers name the client's address: True if it has room for one more."""

    def refused(self, reason: str, address: str) -> Literal[False]:
        """Count and log a connection that gets no session."""

    def answered(self, connection: Conn_contra) -> None:
        """A plain HTTP request was answered: the next one must follow, or the connection ends."""

    def shaken(self, connection: Conn_contra) -> None:
        """Its handshake is done: a hello must follow."""

    def authenticated(self, connection: Conn_contra) -> None:
        """It has said hello: the limits of its user apply from now on."""

    def closing(self, connection: Conn_contra) -> None:
        """It waits for the client's part of the closing handshake."""

    def gone(self, connection: Conn_contra) -> None:
        """It has ended. Idempotent."""


@dataclass(slots=True)
class Shared(Generic[Conn]):
    """One of a node. `now`: seconds, monotonic."""

    table: ConnectionTable[Conn]
    chat: Chat
    metrics: Metrics
    access_log: AccessLog
    loop: asyncio.AbstractEventLoop
    now: Callable[[], float]

    # before the handshake
    http: HttpHandler
    origins: tuple[str, ...]  # allowed besides the server's own host
    sources: Sources

    # input
    bounds: Bounds
    frame_bytes_max: int
    frames_per_s: float
    frames_burst: int
    hello_s: float  # from the handshake to the hello
    sessions: Intake
    unauthenticated: Intake  # of connections without a hello

    # output
    to_flush: Callable[[Output], None]
    flush_bytes: int  # queued output that is written before the end of the turn
    out_queue_bytes_max: int  # queued output for a client that does not read
