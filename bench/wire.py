"""The client's bytes: handshake, masked frames, and what of the server's frames the bench has to
know.

Pure.

Written from docs/protocol.md and RFC 6455 and not with chatd's own modules: a fault on both sides
would not show. `read_frames` is minimal; a server sends whole unmasked frames. `read_*` are quick
ways for the frames that come by the thousand; all else goes through JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
DIGITS: Final = 10  # of the number at the front of a body

OK: Final = re.compile(rb'\{"t":"ok","id":(\d+),"c":"[^"]*","seq":(\d+)')
CURSORS: Final = re.compile(rb'\{"t":"ok","id":(\d+),"c":"[^"]*","delivered":')
PRESENCE: Final = re.compile(rb'\{"t":"presence","user":"([^"\\]*)","state":"([a-z]+)","v":(\d+)')
CONVERSATION: Final = re.compile(rb'"c":"([^"]*)"')
MARK: Final = re.compile(rb'"since":("[^"]*")')
EPOCH: Final = re.compile(rb'"epoch":"([^"]*)"')
ENTRY: Final = b'{"t":"entry",'
SEQ: Final = re.compile(rb'"seq":(\d+)')
NUMBERED: Final = re.compile(rb'"body":"(\d{10}) ')


def upgrade(host: str, port: int, path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol:"
        " chatd.v1\r\n\r\n"
    ).encode()


def frame(payload: bytes, mask: int, head: int = TEXT) -> bytes:
    """A masked frame; `mask` below 2^32."""
    n = len(payload)
    assert n < 1 << 16
    size = bytes((head, 0x80 | n)) if n < 126 else bytes((head, 0xFE)) + n.to_bytes(2)
    key = mask.to_bytes(4)
    stream = int.from_bytes((key * (n // 4 + 1))[:n])
    return size + key + (int.from_bytes(payload) ^ stream).to_bytes(n)


def request(t: str, id: int, mask: int, **keys: Any) -> bytes:
    return frame(json.dumps({"t": t, "id": id, **keys}, separators=(",", ":")).encode(), mask)


def message(k: int, id: int, to: str, run: int, body_bytes: int, mask: int, retry: bool = False) -> bytes:
    """Send number k: its number stands in the cid's last digits and at the front of the body.

    `run` (32 bits) makes the cids of two runs differ; `retry`: it may have been sent before.
    """
    body = f"{k:0{DIGITS}d} ".ljust(body_bytes, "x")
    cid, more = f"{run:08x}-0000-4000-8000-{k:012d}", ',"retry":true' if retry else ""
    payload = f'{{"t":"send","id":{id},"to":"{to}","cid":"{cid}","body":"{body}"{more}}}'
    return frame(payload.encode(), mask)


def cursor(t: str, id: int, to: str, seq: int, mask: int) -> bytes:
    """`ack` or `read` of a conversation that is named by the other participant."""
    return frame(f'{{"t":"{t}","id":{id},"to":"{to}","seq":{seq}}}'.encode(), mask)


def read_frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """(first byte, payload) of each whole frame, and the rest."""
    frames = []
    at, end = 0, len(data)
    while end - at >= 2:
        size, start = data[at + 1], at + 2
        if size == 126:
            if end - at < 4:
                break
            size, start = data[at + 2] << 8 | data[at + 3], at + 4
        elif size == 127:
            if end - at < 10:
                break
            size, start = int.from_bytes(data[at + 2 : at + 10]), at + 10
        if start + size > end:
            break
        frames.append((data[at], data[start : start + size]))
        at = start + size
    return frames, data[at:]


def read_ok(payload: bytes) -> tuple[int, int, bool] | None:
    """(id, seq, dup) of an `ok` to a send."""
    m = OK.match(payload)
    return (int(m[1]), int(m[2]), payload.endswith(b'"dup":true}')) if m else None


def read_entry(payload: bytes) -> tuple[int, int] | None:
    """(k, seq) of an entry that is one of ours."""
    if not payload.startswith(ENTRY):
        return None
    seq, body = SEQ.search(payload), NUMBERED.search(payload)  # two searches: a pattern of both took 2.3 us against 0.9
    return (int(body[1]), int(seq[1])) if seq and body else None


def read_cursors(payload: bytes) -> int | None:
    """id of an `ok` to an ack or a read."""
    m = CURSORS.match(payload)
    return int(m[1]) if m else None


def read_presence(payload: bytes) -> tuple[str, str, int] | None:
    """(user, state, v) of a presence push."""
    m = PRESENCE.match(payload)
    return (m[1].decode(), m[2].decode(), int(m[3])) if m else None


def conversation(payload: bytes) -> str | None:
    """The server's name of the conversation that an `ok` or an entry is about."""
    m = CONVERSATION.search(payload)
    return m[1].decode() if m else None


def epoch(payload: bytes) -> str | None:
    """Of the first page of a welcome."""
    m = EPOCH.search(payload)
    return m[1].decode() if m else None


def mark(payload: bytes) -> str | None:
    """The mark of the last page of a welcome."""
    m = MARK.search(payload)
    return str(json.loads(m[1])) if m else None
