"""What one node tells others on a user's channel: an entry, a receipt, typing. Pure.

    version 1 | kind 1 | boot 8 | log 4 | fields of the kind, big-endian | the frame's JSON, as it is pushed to sessions

The frame is encoded once, by the node that wrote the entry, and travels as the bytes that clients
get: the receiver reads a header of fixed size, 0.4 us, and no JSON. Entries travel without their
cid, which is in the header: whoever pushes to the sender's own devices puts it in (`own`). `log`
stands for the epoch of the log: after a failover a node that still has the one before is not heard.
Redis is trusted not to forge; but what is delivered from a channel is only ever the next entry of
its log, all else is looked up (chat/delivery.py). What cannot be read, or is of another version,
gives None: the log has every entry, and the feed tells of it (cluster/change_feed.py). JSON for the
header was turned down: decoding it cost 2 us an entry at every receiver.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from typing import Final, NamedTuple, TypeAlias

from chatd.ids import Cid, ConvId

VERSION: Final = 2
_VERSION_BYTE: Final = bytes([VERSION])
BODY_BYTES_MAX: Final = 1 << 20  # of one message on a channel; a frame is far shorter

_HEAD: Final = struct.Struct(">BB8s4s")
_ENTRY: Final = struct.Struct(">BB8s4sQQQIIBB16s")  # conv, seq, ts, na, nb, side, kind, cid
_RECEIPT: Final = struct.Struct(">BB8s4sQBQQ")  # conv, side, delivered, read
_TYPING: Final = struct.Struct(">BB8s4sQB")  # conv, side

_ENTRY_KIND: Final = 1
_RECEIPT_KIND: Final = 2
_TYPING_KIND: Final = 3
SEQ_MAX: Final = (1 << 63) - 1  # bigint
KINDS_N: Final = 3  # message, edit, delete


class Entry(NamedTuple):
    """An entry as its writer delivered it.

    `na`, `nb`: messages of each side up to it; `frame`: JSON without the cid.
    """

    conv: ConvId
    seq: int
    ts: int
    na: int
    nb: int
    side: int
    kind: int
    cid: Cid
    frame: bytes


class Receipt(NamedTuple):
    """The cursors of one side of a conversation."""

    conv: ConvId
    side: int
    delivered: int
    read: int


class Typing(NamedTuple):
    """One side is typing; `frame`: JSON for the other."""

    conv: ConvId
    side: int
    frame: bytes


Envelope: TypeAlias = Entry | Receipt | Typing


class Codec:
    """Encodes as one node and drops what that node itself has sent."""

    __slots__ = ("_boot", "_log")

    def __init__(self, boot: str, epoch: str = "") -> None:
        self._boot = bytes.fromhex(boot)
        assert len(self._boot) == 8
        self.of_log(epoch)

    def of_log(self, epoch: str) -> None:
        """From now on the node has the log of this epoch."""
        self._log = hashlib.sha256(epoch.encode()).digest()[:4]

    def entry(
        self, conv: int, seq: int, ts: int, na: int, nb: int, side: int, kind: int, cid: str, frame: bytes
    ) -> bytes:
        cid_bytes = bytes.fromhex(cid.replace("-", ""))
        return (
            _ENTRY.pack(VERSION, _ENTRY_KIND, self._boot, self._log, conv, seq, ts, na, nb, side, kind, cid_bytes)
            + frame
        )

    def receipt(self, conv: int, side: int, delivered: int, read: int) -> bytes:
        return _RECEIPT.pack(VERSION, _RECEIPT_KIND, self._boot, self._log, conv, side, delivered, read)

    def typing(self, conv: int, side: int, frame: bytes) -> bytes:
        return _TYPING.pack(VERSION, _TYPING_KIND, self._boot, self._log, conv, side) + frame

    def mine(self, data: bytes) -> bool:
        """This node sent it: it has done with it what others are to do."""
        return data[2:10] == self._boot

    def foreign(self, data: bytes) -> bool:
        """It is of another log than this node's: what it tells is true there."""
        return data[:1] == _VERSION_BYTE and len(data) >= _HEAD.size and data[10:14] != self._log

    @staticmethod
    def decode(data: bytes) -> Envelope | None:
        """What it says; None if it cannot be read or is of another version. Never raises."""
        if not _HEAD.size < len(data) <= BODY_BYTES_MAX or data[0] != VERSION:
            return None
        kind = data[1]
        if kind == _ENTRY_KIND and len(data) > _ENTRY.size + 1:
            _, _, _, _, conv, seq, ts, na, nb, side, what, cid = _ENTRY.unpack_from(data)
            frame = data[_ENTRY.size :]
            if side < 2 and what < KINDS_N and frame.startswith(_entry_start(conv, seq, ts)) and frame[-1:] == b"}":
                return Entry(ConvId(conv), seq, ts, na, nb, side, what, Cid(str(uuid.UUID(bytes=cid))), frame)
        elif kind == _RECEIPT_KIND and len(data) == _RECEIPT.size:
            _, _, _, _, conv, side, delivered, read = _RECEIPT.unpack(data)
            if side < 2 and read <= delivered <= SEQ_MAX:
                return Receipt(ConvId(conv), side, delivered, read)
        elif kind == _TYPING_KIND and len(data) > _TYPING.size + 1:
            _, _, _, _, conv, side = _TYPING.unpack_from(data)
            frame = data[_TYPING.size :]
            if side < 2 and frame.startswith(b'{"t":"typing","c":"%d",' % conv) and frame[-1:] == b"}":
                return Typing(ConvId(conv), side, frame)
        return None


def _entry_start(conv: int, seq: int, ts: int) -> bytes:
    """How the frame of such an entry begins (protocol.entry): holds header and frame together."""
    return b'{"t":"entry","c":"%d","seq":%d,"ts":%d,' % (conv, seq, ts)


def own(frame: bytes, cid: str) -> bytes:
    """An entry's frame as the sender's own devices get it."""
    return b'%b,"cid":"%b"}' % (frame[:-1], cid.encode())
