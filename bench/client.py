"""One user's connection: as little as it takes, for thousands of them are to cost less than the
server does.

    connect ─► upgrade ─► hello ─► welcome: `ready` ─► every text frame to `on_text(conn, payload, at)`

Pings are answered. A connection that ends before it was told to is counted in `Crowd.dropped`, with
its close code.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from typing import cast

from bench import wire


class Phase(enum.Enum):
    UPGRADE = "upgrade"
    HELLO = "hello"
    LIVE = "live"
    ENDED = "ended"


class Client(asyncio.Protocol):
    """`ready` gets the time of the last welcome frame, or the exception that kept it from coming."""

    __slots__ = (
        "_hello",
        "_on_text",
        "_on_welcome",
        "_partial",
        "_phase",
        "_upgrade",
        "close_code",
        "conn",
        "leaving",
        "lost",
        "next_id",
        "ready",
        "transport",
    )

    def __init__(
        self,
        conn: int,
        upgrade: bytes,
        hello: bytes,
        on_text: Callable[[int, bytes, float], None],
        lost: Callable[[Client], None],
        on_welcome: Callable[[int, bytes], None],
        ready: asyncio.Future[float],
    ) -> None:
        self.conn = conn
        self._upgrade, self._hello, self._on_text, self.lost = upgrade, hello, on_text, lost
        self._on_welcome, self.ready = on_welcome, ready
        self._phase = Phase.UPGRADE
        self._partial = b""
        self.transport: asyncio.Transport | None = None
        self.close_code = 0
        self.leaving = False
        self.next_id = 2  # 1 was hello's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._upgrade)

    def data_received(self, data: bytes) -> None:
        at = time.perf_counter()
        if self._phase is Phase.ENDED:
            return
        if self._partial:
            data = self._partial + data
        if self._phase is Phase.UPGRADE:
            rest = self._upgraded(data)
            if rest is None:
                return
            data = rest
        frames, self._partial = wire.read_frames(data)
        for head, payload in frames:
            if head == wire.TEXT:
                if self._phase is Phase.LIVE:
                    self._on_text(self.conn, payload, at)
                elif self._phase is Phase.HELLO:
                    self._welcome(payload, at)
            elif head == wire.PING:
                self.write(wire.frame(payload, 0, wire.PONG))
            elif head == wire.CLOSE:
                self.close_code = int.from_bytes(payload[:2])

    def _upgraded(self, data: bytes) -> bytes | None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._partial = data
            return None
        if not data.startswith(b"HTTP/1.1 101 "):
            self._fail(ConnectionError(data[:40].decode(errors="replace")))
            return None
        self._phase = Phase.HELLO
        self.write(self._hello)
        return data[end + 4 :]

    def _welcome(self, payload: bytes, at: float) -> None:
        if not payload.startswith(b'{"t":"welcome"'):
            self._fail(ConnectionError(payload[:200].decode(errors="replace")))
            return
        self._on_welcome(self.conn, payload)
        if b'"more":false' in payload:
            self._phase = Phase.LIVE
            if not self.ready.done():
                self.ready.set_result(at)

    def _fail(self, error: Exception) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
        self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = Phase.ENDED
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(f"ended before its welcome, close code {self.close_code}"))
        if not self.leaving:
            self.lost(self)

    @property
    def live(self) -> bool:
        """Welcomed, and not ended."""
        return self._phase is Phase.LIVE

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def leave(self) -> None:
        self.leaving = True
        self._phase = Phase.ENDED  # what the loop has read already is not seen any more
        if self.transport is not None:
            self.transport.abort()
