"""Client frames of RFC 6455, right or wrong on purpose, written byte for byte: neither chatd's
framing nor websockets' has a part in it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK: Final = b"\x37\xfa\x21\x3d"


def xor(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    return (int.from_bytes(payload) ^ int.from_bytes((mask * (size // 4 + 1))[:size])).to_bytes(size)


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    form: int = 0,
    size: int | None = None,
) -> bytes:
    """One frame.

    `mask` None: unmasked; `form`: 16 or 64 writes the length in so many bits, 0 in as few as
    possible; `size`: the length to claim.
    """
    size = len(payload) if size is None else size
    form = form or (7 if size < 126 else 16 if size < 65_536 else 64)
    masked = 0 if mask is None else 0x80
    head = bytes((fin << 7 | rsv << 4 | opcode,))
    if form == 7:
        head += bytes((masked | size,))
    elif form == 16:
        head += bytes((masked | 126,)) + size.to_bytes(2)
    else:
        head += bytes((masked | 127,)) + size.to_bytes(8)
    return head + payload if mask is None else head + mask + xor(payload, mask)


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else code.to_bytes(2) + reason)


def fragments(payload: bytes, *cuts: int, between: tuple[bytes, ...] = ()) -> bytes:
    """A text message in `len(cuts) + 1` frames, with the frames `between` after each but the last."""
    edges = [0, *cuts, len(payload)]
    parts = [payload[a:b] for a, b in pairwise(edges)]
    out = b""
    for n, part in enumerate(parts):
        last = n == len(parts) - 1
        out += frame(CONT if n else TEXT, part, fin=last) + (b"" if last else b"".join(between))
    return out
