"""One connection of an attacker: it dials, shakes hands, says hello where its kind does, writes
what its kind has as fast as it may, and is closed.

    dial ─► upgrade ─► [hello ─► welcome] ─► frames, until the server closes ─► `ended`
              └──────────┴──────────┴─ or leaves by itself: `leaves`

"As fast as it may" is until the kernel takes no more (`per_s` None), or at a pace: the frames that
a connection may send, so that it is not closed and goes on to cost. Masks are zero: a frame is its
payload behind a head, and is cheap to make.
"""

from __future__ import annotations

import asyncio
import enum
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, cast

from bench import wire
from bench.attacks.kinds import Kind, Leaves, Who

ERROR: Final = re.compile(rb'"code":"([a-z_]+)"')
NO_CODE: Final = 1006
TURN_WRITES_MAX: Final = 16  # then the loop reads, so that what closes it is seen
TICK_S: Final = 0.005
NARROW_BYTES: Final = 32_768  # SO_RCVBUF of one that does not read
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: an end is a reset, and leaves no port behind that must wait


class Step(enum.Enum):
    HEAD = "head"
    HELLO = "hello"
    LIVE = "live"
    ENDED = "ended"


class Tally:
    """What all connections of an attack have seen.

    `closes`: by code; `statuses`: of HTTP, but for 101; `errors`: `err` by code.
    """

    def __init__(self) -> None:
        self.closes: Counter[int] = Counter()
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.dials = self.refused_dials = self.frames = self.bytes_out = self.bytes_in = 0


class Attacker(asyncio.Protocol):
    """`ended` is called once. The owner calls `stop` at the end of the attack."""

    def __init__(self, kind: Kind, who: Who, tally: Tally, ended: Callable[[Attacker], None]) -> None:
        self._kind, self._who, self._tally, self._ended = kind, who, tally, ended
        self._loop = asyncio.get_running_loop()
        self._step = Step.HEAD
        self._partial = b""
        self._paused = self._is_stopping = False
        self._next = 2  # id of the next request; 1 is hello's
        self._began_at, self._sent = 0.0, 0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.Handle | None = None
        self._code = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if self._kind.reads_after_s:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW_BYTES)
        self._tally.dials += 1
        if self._kind.head is not None:
            self._write(self._kind.head(self._who))
        if not self._kind.shakes:
            self._begin()

    def data_received(self, data: bytes) -> None:
        self._tally.bytes_in += len(data)
        data = self._partial + data
        if self._step is Step.HEAD:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._partial = data
                return
            status = int(data[9:12]) if data.startswith(b"HTTP/1.") else 0
            if status != 101:
                self._tally.statuses[status] += 1
                self._partial, self._step = b"", Step.ENDED
                return
            data = data[end + 4 :]
            self._shaken()
        frames, self._partial = wire.read_frames(data)
        for head, payload in frames:
            if head == wire.TEXT:
                self._text(payload)
            elif head == wire.CLOSE:
                self._closed(int.from_bytes(payload[:2]))
            elif head == wire.PING and self._kind.answers_pings:
                self._write(wire.frame(payload, 0, wire.PONG))

    def _closed(self, code: int) -> None:
        """The server says goodbye: dial again at once, or go on all the same."""
        self._code = code
        if not self._kind.stays:
            self._tally.closes[code] += 1
            self.stop()

    def _shaken(self) -> None:
        if self._kind.leaves is Leaves.SHAKEN:
            self.stop()
        elif self._kind.hello is not None:
            self._step = Step.HELLO
            self._write(self._kind.hello(self._who))
            if self._kind.leaves is Leaves.HELLO:
                self.stop()
        else:
            self._begin()

    def _text(self, payload: bytes) -> None:
        if self._step is Step.HELLO and payload.startswith(b'{"t":"welcome"'):
            if b'"more":false' in payload:
                self._begin()
        elif payload.startswith(b'{"t":"err"') and (code := ERROR.search(payload)) is not None:
            self._tally.errors[code[1].decode()] += 1

    # ---- out -------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """It is where its kind attacks from."""
        if self._step is Step.ENDED:
            return
        self._step, self._began_at = Step.LIVE, time.perf_counter()
        if self._kind.first is not None:
            self._write(self._kind.first(self._who))
        if self._kind.reads_after_s and self._transport is not None:
            self._transport.pause_reading()
            self._loop.call_later(self._kind.reads_after_s, self._read_on)
        if self._kind.frames is not None:
            self._more()

    def _read_on(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def _more(self) -> None:
        self._timer = None
        kind = self._kind
        if kind.frames is None or not self._may_write():
            return
        if kind.per_s is None:
            for _ in range(TURN_WRITES_MAX):
                self._frames(kind.batch)
                if not self._may_write():
                    return
            self._timer = self._loop.call_soon(self._more)
        else:
            due = int(kind.burst + (time.perf_counter() - self._began_at) * kind.per_s) - self._sent
            if due > 0:
                self._frames(due)
            self._timer = self._loop.call_later(TICK_S, self._more)

    def _may_write(self) -> bool:
        return self._step is Step.LIVE and not self._paused

    def _frames(self, n: int) -> None:
        assert self._kind.frames is not None
        self._write(self._kind.frames(self._who, self._next, n))
        self._next += n
        self._sent += n
        self._tally.frames += n

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._tally.bytes_out += len(data)
            self._transport.write(data)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._timer is None:
            self._timer = self._loop.call_soon(self._more)

    # ---- the end ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Leave by a reset."""
        self._is_stopping = True
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._step is not Step.ENDED and not self._is_stopping:
            self._tally.closes[self._code or NO_CODE] += 1
        self._step, self._transport = Step.ENDED, None
        if self._timer is not None:
            self._timer.cancel()
        self._ended(self)
