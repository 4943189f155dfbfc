"""The messages between nodes on a user's channel: an entry, a receipt, typing. Pure.

    version 1 │ kind 1 │ incarnation 8 │ log 4 │ fields of the kind, big-endian │ payload, JSON

Numbers are bytes. The payload is encoded once, by the node that wrote the entry, and travels as the
bytes that clients get. So the receiver reads a header of fixed size, 0.4 us, and no JSON. The
payload of an entry has no cid: it is in the header, and `own` adds it for the sender's own devices.

`log` is a hash of the epoch of the log: after a failover, messages of a node that still has the log
before it are ignored. Redis is trusted not to forge. Still, only the next entry of a log is ever
delivered from a channel; anything else is read from PostgreSQL (chat/remote_entries.py). A message
that cannot be read, or is of another version, gives None: the log has every entry, and the change
feed announces it (cluster/change_feed.py). Rejected: JSON for the header; decoding it cost 2 us an
entry at every receiver.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple, TypeAlias

import orjson

from chatd.ids import Cid, ConvId, UserId, user_id

VERSION: Final = 2
_VERSION_BYTE: Final = bytes([VERSION])
BODY_BYTES_MAX: Final = 1 << 20  # of one message on a channel; a payload is far shorter

_HEAD: Final = struct.Struct(">BB8s4s")
_ENTRY: Final = struct.Struct(">BB8s4sQQQIIBB16s")  # conv, seq, ts, na, nb, side, kind, cid
_RECEIPT: Final = struct.Struct(">BB8s4sQBQQ")  # conv, side, delivered, read
_TYPING: Final = struct.Struct(">BB8s4sQB")  # conv, side

_ENTRY_KIND: Final = 1
_RECEIPT_KIND: Final = 2
_TYPING_KIND: Final = 3
# An entry as above, published before its node has delivered it: `na` and `nb` are not known yet.
# Nodes of releases before it cannot read it, and get the entry from the log.
_AHEAD_KIND: Final = 4
_ENTRY_KINDS: Final = (_ENTRY_KIND, _AHEAD_KIND)
SEQ_MAX: Final = (1 << 63) - 1  # bigint
KINDS_N: Final = 3  # message, edit, delete


class Entry(NamedTuple):
    """An entry as its writer delivered it, or got it into the log.

    `ts`: ms since 1970, database clock. `na`, `nb`: messages of each side up to it; both 0 if the
    writer does not know yet: who delivers it counts. `frame`: the payload without the cid.
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


class TypingNotice(NamedTuple):
    """One side is typing; `frame`: the payload for the other."""

    conv: ConvId
    side: int
    frame: bytes


Envelope: TypeAlias = Entry | Receipt | TypingNotice


class Codec:
    """Encodes the messages of one node, and recognises its own and those of another log.

    `incarnation`: 16 hex digits. `epoch`: the epoch of the log.
    """

    __slots__ = ("_incarnation", "_log")

    def __init__(self, incarnation: str, epoch: str = "") -> None:
        self._incarnation = bytes.fromhex(incarnation)
        assert len(self._incarnation) == 8
        self.of_log(epoch)

    def of_log(self, epoch: str) -> None:
        """Use the log of this epoch from now on."""
        self._log = hashlib.sha256(epoch.encode()).digest()[:4]

    def entry(
        self, conv: int, seq: int, ts: int, na: int, nb: int, side: int, kind: int, cid: str, frame: bytes
    ) -> bytes:
        cid_bytes = bytes.fromhex(cid.replace("-", ""))
        head = VERSION, _ENTRY_KIND if na or nb else _AHEAD_KIND, self._incarnation, self._log
        return _ENTRY.pack(*head, conv, seq, ts, na, nb, side, kind, cid_bytes) + frame

    def receipt(self, conv: int, side: int, delivered: int, read: int) -> bytes:
        return _RECEIPT.pack(VERSION, _RECEIPT_KIND, self._incarnation, self._log, conv, side, delivered, read)

    def typing(self, conv: int, side: int, frame: bytes) -> bytes:
        return _TYPING.pack(VERSION, _TYPING_KIND, self._incarnation, self._log, conv, side) + frame

    def mine(self, data: bytes) -> bool:
        """True if this node sent it: it has already done what the others must do."""
        return data[2:10] == self._incarnation

    def foreign(self, data: bytes) -> bool:
        """True if it is of another log than this node's: it is valid only there."""
        return data[:1] == _VERSION_BYTE and len(data) >= _HEAD.size and data[10:14] != self._log

    @staticmethod
    def decode(data: bytes) -> Envelope | None:
        """The message; None if it cannot be read or is of another version. Never raises."""
        if not _HEAD.size < len(data) <= BODY_BYTES_MAX or data[0] != VERSION:
            return None
        kind = data[1]
        if kind in _ENTRY_KINDS and len(data) > _ENTRY.size + 1:
            _, _, _, _, conv, seq, ts, na, nb, side, entry_kind, cid = _ENTRY.unpack_from(data)
            frame = data[_ENTRY.size :]
            starts_well = frame.startswith(_entry_start(conv, seq, ts))
            if side < 2 and entry_kind < KINDS_N and starts_well and frame[-1:] == b"}":
                return Entry(ConvId(conv), seq, ts, na, nb, side, entry_kind, _cid(cid), frame)
        elif kind == _RECEIPT_KIND and len(data) == _RECEIPT.size:
            _, _, _, _, conv, side, delivered, read = _RECEIPT.unpack(data)
            if side < 2 and read <= delivered <= SEQ_MAX:
                return Receipt(ConvId(conv), side, delivered, read)
        elif kind == _TYPING_KIND and len(data) > _TYPING.size + 1:
            _, _, _, _, conv, side = _TYPING.unpack_from(data)
            frame = data[_TYPING.size :]
            if side < 2 and frame.startswith(b'{"t":"typing","c":"%d",' % conv) and frame[-1:] == b"}":
                return TypingNotice(ConvId(conv), side, frame)
        return None


def _cid(data: bytes) -> Cid:
    """As `str(uuid.UUID(bytes=data))`, which takes 2 us of the 7 of a received entry."""
    digits = data.hex()
    return Cid(f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}")


def _entry_start(conv: int, seq: int, ts: int) -> bytes:
    """The first bytes of the entry's payload (protocol.entry); they must agree with the header."""
    return b'{"t":"entry","c":"%d","seq":%d,"ts":%d,' % (conv, seq, ts)


def own(frame: bytes, cid: str) -> bytes:
    """An entry's payload as the sender's own devices get it: with the cid."""
    return b'%b,"cid":"%b"}' % (frame[:-1], cid.encode())


def parties(frame: bytes, side: int) -> tuple[UserId, UserId] | None:
    """(a, b) of the conversation, from the payload of an entry that this side made.

    None if the payload does not say: it comes from another node.
    """
    try:
        o = orjson.loads(frame)
        one, other = user_id(o["from"]), user_id(o["to"])
    except (ValueError, TypeError, KeyError):
        return None
    return (one, other) if side == 0 else (other, one)
