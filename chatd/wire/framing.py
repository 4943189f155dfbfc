"""WebSocket frames (RFC 6455) of a client: bytes in, payloads and control frames out. Pure.

    data_received ──feed──► bytes | Ping | Pong | Fragment | PeerClose | Failure

The websockets library does the handshake before. The kinds of frames, and those that we send, are
in wire/frames.py. Each `bytes` that `feed` gives is one whole text message in valid UTF-8, however
it was cut and fragmented. Anything wrong that a client sends ends in one `PeerClose` or `Failure`,
after which nothing is read. Nothing raises. An idle reader holds no buffer.

Each frame is one event, so that the caller can count them. One call of `feed` reads at most
`FEED_FRAMES_MAX` frames. The rest of, say, a megabyte of six-byte frames waits in the reader
(`more`) until the next call, so that other connections have their turn.

The oracle is the core of websockets (`tests/oracles/test_framing_against_websockets.py`): the
messages and close codes are the same. Two differences are wanted. An error that a header shows ends
the connection at that header, not after its payload. A control frame inside a fragmented message
does not count towards the size of that message (RFC 6455 5.4 allows it there, whatever is left of
the bound).

The loop is written for speed: a whole masked text frame, the common case, makes no call of ours. A
frame of 200 bytes costs 0.41 us at 8 a read, 0.47 us at 1 (websockets' core: 2.3 and 2.5 us). Of
these, 0.17 us are the unmasking in C; XOR of two integers would take 0.7 us. UTF-8 is checked here
and not left to the JSON reader, which allows the close code 1007 and is cheap: 0.02 us for ASCII
text, 0.2 us for other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # a machine without the wheel and without a compiler
    from websockets.utils import apply_mask

from chatd.wire.frames import (
    BINARY,
    CLOSE,
    CONTROL_BYTES_MAX,
    FIN_TEXT,
    NO_STATUS,
    PING,
    PONG,
    TEXT,
    Event,
    Failure,
    Fragment,
    PeerClose,
    Ping,
    Pong,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

FEED_FRAMES_MAX: Final = 32  # in one call: some 0.3 ms of messages; clients send 1 to 8 at a time

# IANA has registered 1012-1014 since the RFC; 1004-1006 and 1015 must not be sent (7.4.1, 7.4.2).
_PEER_CODES: Final = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015)))

_OPCODES: Final = frozenset((0x0, TEXT, BINARY, CLOSE, PING, PONG))
_FEED: Final = range(FEED_FRAMES_MAX)
_A_FRAGMENT: Final = Fragment()


class FrameReader:
    """Reads the frames of one client. `feed` gives the events in the order of the bytes.

    It keeps one partial frame, and the fragments of one message so far: each at most
    `frame_bytes_max` and a header. While `more` is set it also keeps the bytes that the last call
    did not read: call `feed` with no bytes to continue.
    """

    __slots__ = ("_bytes_max", "_ended", "_fragments", "_message", "_need", "_partial", "more")

    def __init__(self, frame_bytes_max: int) -> None:
        assert frame_bytes_max >= CONTROL_BYTES_MAX
        self._bytes_max = frame_bytes_max
        self._partial: bytearray | None = None  # the beginning of a frame
        self._need = 0  # bytes of it before it is read again
        self._message: bytearray | None = None  # the unmasked fragments of a message so far
        self._fragments = 0
        self._ended = False
        self.more = False

    def feed(self, data: bytes) -> Sequence[Event]:
        """The events that these bytes complete, at most `FEED_FRAMES_MAX`. Never raises."""
        if self._ended:
            return ()
        partial = self._partial
        if partial is not None:
            partial += data
            if len(partial) < self._need:
                return ()
            data = bytes(partial)
            self._partial = None
            self.more = False
        events: list[Event] = []
        at, end = 0, len(data)
        for _ in _FEED:
            if end - at < 2:
                self._need = 2
                break
            size = data[at + 1]
            if data[at] == FIN_TEXT and 128 <= size <= 254 and self._message is None:
                if size < 254:
                    start = at + 6
                    stop = start + size - 128
                elif end - at >= 4:
                    start = at + 8
                    size = data[at + 2] << 8 | data[at + 3]
                    if size > self._bytes_max:
                        self._fail(events, 1009, "message too big")
                        return events
                    stop = start + size
                else:
                    self._need = 4
                    break
                if stop > end:
                    self._need = stop - at
                    break
                payload = apply_mask(data[start:stop], data[start - 4 : start])
                if payload.isascii() or _is_utf8(payload):
                    events.append(payload)
                    at = stop
                    continue
                self._fail(events, 1007, "text is not UTF-8")
                return events
            stop = self._other(data, at, events)
            if stop < 0:
                return events
            if stop == at:
                break
            at = stop
        else:
            self._need = 0
            self.more = at < end
        if at < end:
            self._partial = bytearray(data[at:])
        return events

    def _other(self, data: bytes, at: int, events: list[Event]) -> int:
        """Read any frame but the common one; gives the position after it.

        Gives `at` if it is not complete (`_need` says how many bytes it has), -1 after the end.
        """
        head, size, start = data[at], data[at + 1], at + 6
        if head & 0x0F not in _OPCODES:
            return self._fail(events, 1002, "invalid opcode")
        if size < 128:
            return self._fail(events, 1002, "a client must mask its frames")
        size -= 128
        # A length in more bytes than necessary is accepted, as websockets does, though RFC 6455 5.2
        # forbids it.
        if size >= 126:
            start = at + (8 if size == 126 else 14)
            self._need = start - at - 4
            if len(data) - at < self._need:
                return at
            size = int.from_bytes(data[at + 2 : start - 4])
        if (fault := self._fault(head, size)) is not None:
            return self._fail(events, *fault)
        stop = start + size
        if stop > len(data):
            self._need = stop - at
            return at
        payload = apply_mask(data[start:stop], data[start - 4 : start])
        if head & 0x08:
            self._control(head & 0x0F, payload, events)
        else:
            self._fragment(head, payload, events)
        return -1 if self._ended else stop

    def _fault(self, head: int, size: int) -> tuple[int, str] | None:
        """The rule that a header breaks, as (close code, reason); None if it breaks none."""
        opcode = head & 0x0F
        so_far = 0 if self._message is None else len(self._message)
        if opcode < 0x08 and size > self._bytes_max - so_far:
            return 1009, "message too big"
        if head & 0x70:
            return 1002, "reserved bits must be 0"
        if opcode >= 0x08:
            if size > CONTROL_BYTES_MAX:
                return 1002, "control frame too long"
            if not head & 0x80:
                return 1002, "fragmented control frame"
        elif opcode == 0:
            if self._message is None:
                return 1002, "unexpected continuation frame"
            # If there are more fragments than bytes allowed, some are empty: they could go on
            # without end.
            if self._fragments > self._bytes_max:
                return 1009, "message in too many fragments"
        elif self._message is not None:
            return 1002, "expected a continuation frame"
        elif opcode == BINARY:
            return 1003, "this server takes text only"
        return None

    def _fragment(self, head: int, payload: bytes, events: list[Event]) -> None:
        """Read a part of a message, or a whole one whose length has more bytes than necessary."""
        if self._message is None:
            if not head & 0x80:
                self._message = bytearray(payload)
                self._fragments = 1
                events.append(_A_FRAGMENT)
                return
        else:
            self._message += payload
            self._fragments += 1
            if not head & 0x80:
                events.append(_A_FRAGMENT)
                return
            payload = bytes(self._message)
            self._message = None
        if payload.isascii() or _is_utf8(payload):
            events.append(payload)
        else:
            self._fail(events, 1007, "text is not UTF-8")

    def _control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        if opcode == PING:
            events.append(Ping(payload))
        elif opcode == PONG:
            events.append(Pong(payload))
        else:
            self._end(events, self._close(payload))

    def _close(self, payload: bytes) -> PeerClose | Failure:
        code = int.from_bytes(payload[:2]) if payload else NO_STATUS
        if len(payload) == 1:
            return Failure(1002, "close frame too short")
        if not _is_utf8(payload[2:]):
            return Failure(1007, "reason is not UTF-8")
        if payload and code not in _PEER_CODES and not 3000 <= code < 5000:
            return Failure(1002, "invalid close code")
        if self._message is not None:
            return Failure(1002, "incomplete fragmented message")
        return PeerClose(code, payload[2:].decode())

    def _fail(self, events: list[Event], code: int, reason: str) -> int:
        self._end(events, Failure(code, reason))
        return -1

    def _end(self, events: list[Event], last: PeerClose | Failure) -> None:
        events.append(last)
        self._ended = True
        self.more = False
        self._partial = self._message = None


def _is_utf8(payload: bytes) -> bool:
    try:
        str(payload, "utf-8")
    except UnicodeDecodeError:
        return False
    return True
