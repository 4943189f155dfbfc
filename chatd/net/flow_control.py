"""When a connection is read, and when it may be written; `net/connection.py` knows what is sent.

    transport ──data──► a slice at once, or `_put_off` ──a later turn──► take_slice ──► _read
        └── pause_writing ──► reads nothing, `drained` waits ──► resume_writing ──► flush, reads on

Input: each turn reads a slice of each connection (`core/read_pacing.py`). At most one read of the
socket (`RECEIVE_BYTES`) waits for its turn, because no other follows before it is processed.

Output: while the transport is full we also stop reading, so that a client cannot ask for more than
it reads. A connection that closes is read in any case, because its client's answer ends it.
"""

from __future__ import annotations

import asyncio
import enum
from abc import abstractmethod
from collections.abc import Sequence
from typing import Final, Generic

from chatd.core.read_pacing import SLICE_BYTES
from chatd.core.session import Session, State
from chatd.net.shared import Conn, Shared
from chatd.wire.frames import Event, Failure
from chatd.wire.framing import FrameReader

# Frames ignored while we wait for it: an outbox may be on its way. Past it nothing more is read.
CLOSING_FRAMES_MAX: Final = 512


class Phase(enum.Enum):
    HANDSHAKE = "handshake"
    OPEN = "open"
    FULL = "full"  # the client does not read; it is closed at the end of the loop turn
    CLOSING = "closing"
    CLOSED = "closed"


OPEN: Final = Phase.OPEN  # for the path of a message, as `session.LIVE`
CLOSING: Final = Phase.CLOSING


class FlowControl(asyncio.Protocol, Generic[Conn]):
    """Implements `read_pacing.Paced`, and the half of `sink.Sink` that waits for room."""

    __slots__ = (
        "_intake", "_is_waiting", "_passed_over", "_paused", "_phase", "_reader", "_rest", "_room", "_session",
        "_shared", "_transport", "heard_at",
    )  # fmt: skip

    def __init__(self, shared: Shared[Conn]) -> None:
        self._shared = shared
        self._intake = shared.unauthenticated
        self._phase = Phase.HANDSHAKE
        self._reader: FrameReader | None = None
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._room: asyncio.Future[None] | None = None  # set while output is paused: done when there is room
        self._rest = b""  # input that waits for its turn
        self._is_waiting = False  # in the intake's ring
        self._passed_over = 0  # frames ignored since we closed
        self.heard_at = 0.0  # in seconds, monotonic

    @abstractmethod
    def _read(self, data: bytes) -> None:
        """Read a slice."""

    @abstractmethod
    def _bug(self, error: Exception) -> None:
        """`_read` raised: end this connection."""

    @abstractmethod
    def flush(self) -> None:
        """Write the queue to the transport."""

    # ---- output ----------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self._paused = True
        if self._room is None and self._session is not None and self._session.state is not State.CLOSED:
            self._room = self._shared.loop.create_future()
        if self._transport is not None and self._phase in (Phase.HANDSHAKE, Phase.OPEN):
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        # The client reads, which counts as a pong: no pong was read while output was paused.
        self.heard_at = self._shared.now()
        self.flush()
        if self._paused:  # full again at once
            return
        self._has_room()
        self._read_on()

    @property
    def is_paused(self) -> bool:
        return self._room is not None

    async def drained(self) -> None:
        while (room := self._room) is not None:
            await asyncio.wait([room])

    def _has_room(self) -> None:
        """The client reads again, or its session has ended: wake those who wait in `drained`."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # ---- input -----------------------------------------------------------------------------------

    def _put_off(self, data: bytes) -> None:
        """Read this in later turns, and nothing more from the socket until then."""
        self._rest += data
        if not self._is_waiting and self._transport is not None:
            self._is_waiting = True
            self._shared.metrics.reads_put_off += 1
            if not self._transport.is_closing():
                self._transport.pause_reading()
            self._intake.put_off(self)

    def take_slice(self) -> bool:
        """Read a slice of what waits (`read_pacing.Paced`)."""
        intake, reader = self._intake, self._reader
        # Paused: `resume_writing` continues.
        if self._phase is Phase.CLOSED or (self._paused and self._phase is not Phase.CLOSING):
            self._is_waiting = False
            return False
        self.heard_at, data = self._shared.now(), b""
        if reader is None or not reader.more:
            data, self._rest = self._rest[:SLICE_BYTES], self._rest[SLICE_BYTES:]
            intake.left -= len(data)
        if data or (reader is not None and reader.more):  # else it was closed since it was put off
            try:
                self._read(data)
            except Exception as e:  # as in `data_received`
                self._bug(e)
        self._is_waiting = bool(self._rest) or (self._reader is not None and self._reader.more)
        if self._is_waiting and self._intake is not intake:  # it said hello in this slice
            self._intake.put_off(self)
            return False
        self._read_on()
        return self._is_waiting

    def _read_on(self) -> None:
        """Read from the socket again, unless input waits or the client does not read."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._is_waiting:
            return
        if self._paused and self._phase is not Phase.CLOSING:
            return
        if self._rest or (self._reader is not None and self._reader.more):
            self._put_off(b"")
        elif not transport.is_reading() and self._passed_over <= CLOSING_FRAMES_MAX:
            transport.resume_reading()

    def _pass_over(self, events: Sequence[Event]) -> None:
        """Ignore frames after our close.

        A client that continues to send, or sends bytes that are no frame, is not read any more: the
        sweep ends it.
        """
        self._passed_over += CLOSING_FRAMES_MAX + 1 if events and type(events[-1]) is Failure else len(events)
        if self._passed_over > CLOSING_FRAMES_MAX and self._transport is not None and not self._transport.is_closing():
            self._shared.metrics.closing_floods += 1
            self._reader, self._rest = None, b""
            self._transport.pause_reading()
