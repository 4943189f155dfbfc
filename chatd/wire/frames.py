"""WebSocket frames (RFC 6455): the kinds that a client sends, and how ours are made. Pure.

FrameReader.feed (wire/framing.py) ──► bytes | Ping | Pong | Fragment | PeerClose | Failure
encode_text, encode_close, encode_ping, encode_pong ──► transport.write
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

CONTROL_BYTES_MAX: Final = 125  # RFC 6455 5.5
REASON_BYTES_MAX: Final = CONTROL_BYTES_MAX - 2
NO_STATUS: Final = 1005  # a close frame without a code

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
FIN_TEXT: Final = 0x81  # the first byte of a whole text message

# ---- what a client's frames are read as ----------------------------------------------------------


class Ping(NamedTuple):
    """Answer with `encode_pong(data)`; of several in a row only the last needs one (5.5.3)."""

    data: bytes


class Pong(NamedTuple):
    data: bytes


class Fragment(NamedTuple):
    """A part of a message, not the last one: nothing to do, but it counts as a frame."""


class PeerClose(NamedTuple):
    """The client closes: answer with `encode_close(code)`, unless a close was sent before.

    Then end the connection.
    """

    code: int
    reason: str


class Failure(NamedTuple):
    """The client broke the rules: send `encode_close(*failure)` and end the connection."""

    code: int
    reason: str


Event: TypeAlias = bytes | Ping | Pong | Fragment | PeerClose | Failure


# ---- what the server sends -----------------------------------------------------------------------


def _head(first: int, size: int) -> bytes:
    """The header of an unmasked frame."""
    if size < 126:
        return bytes((first, size))
    if size < 65_536:
        return bytes((first, 126)) + size.to_bytes(2)
    return bytes((first, 127)) + size.to_bytes(8)


# A lookup takes 0.07 us, making the header 0.12 us, for an entry of 250 bytes. 45 KB a process.
_HEADS: Final = tuple(_head(FIN_TEXT, size) for size in range(1_024))


def encode_text(payload: bytes) -> bytes:
    """One text frame."""
    size = len(payload)
    if size < 1_024:
        return _HEADS[size] + payload
    return _head(FIN_TEXT, size) + payload


def encode_close(code: int, reason: str = "") -> bytes:
    """A close frame; a reason that is too long is cut between characters.

    With the code `NO_STATUS` it has neither code nor reason.
    """
    payload = b"" if code == NO_STATUS else code.to_bytes(2) + _cut(reason.encode())
    return bytes((0x80 | CLOSE, len(payload))) + payload


def _cut(reason: bytes) -> bytes:
    return reason if len(reason) <= REASON_BYTES_MAX else reason[:REASON_BYTES_MAX].decode(errors="ignore").encode()


def encode_ping(data: bytes) -> bytes:
    """A ping of at most `CONTROL_BYTES_MAX` bytes."""
    assert len(data) <= CONTROL_BYTES_MAX
    return bytes((0x80 | PING, len(data))) + data


def encode_pong(data: bytes) -> bytes:
    """The answer to a ping: the same bytes."""
    assert len(data) <= CONTROL_BYTES_MAX
    return bytes((0x80 | PONG, len(data))) + data
