"""The payloads of `chatd.v1`: JSON text to typed requests, and replies and pushes to JSON. Pure.

    bytes ──decode──► Request (a NamedTuple per type)          values ──encode──► bytes

A decoded request is valid in itself (types, ranges, text, ids). Whether it is *allowed* is decided
by the session and by chat. `decode` raises `RequestFault` and nothing else, with the request's id
if that could be read. The contract is `docs/protocol.md`; a test checks `docs/schema/` against this
module. The types of the requests are in `request_types.py`, what makes one of a JSON object in
`request_decoders.py`, the checks of single fields in `request_fields.py`.

orjson reads the JSON: it refuses invalid UTF-8, lone surrogates, NaN and nesting beyond its limit,
and of equal keys it keeps the last. A frame that it refuses is read again by `loose_json`, so that
a fault of one value is answered with the request's id and not with 0. Payloads are formatted with
`%` on bytes: 0.5 us, against 1.1 us for orjson on a dict.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import orjson

from chatd import errors
from chatd.loose_json import read_object
from chatd.request_decoders import DECODERS
from chatd.request_decoders import VERSION as VERSION
from chatd.request_fields import BODY_BYTES_MAX as BODY_BYTES_MAX
from chatd.request_fields import CURSORS_MAX as CURSORS_MAX
from chatd.request_fields import DEFAULT_BOUNDS as DEFAULT_BOUNDS
from chatd.request_fields import FRAME_BYTES_MAX as FRAME_BYTES_MAX
from chatd.request_fields import HISTORY_MAX as HISTORY_MAX
from chatd.request_fields import ID_MAX as ID_MAX
from chatd.request_fields import PAGE_DEFAULT as PAGE_DEFAULT
from chatd.request_fields import TOKEN_CHARS_MAX as TOKEN_CHARS_MAX
from chatd.request_fields import WATCH_MAX as WATCH_MAX
from chatd.request_fields import Bounds as Bounds
from chatd.request_types import Ack as Ack
from chatd.request_types import Conversations as Conversations
from chatd.request_types import Delete as Delete
from chatd.request_types import Edit as Edit
from chatd.request_types import Entering as Entering
from chatd.request_types import Hello as Hello
from chatd.request_types import History as History
from chatd.request_types import PingRequest as PingRequest
from chatd.request_types import Read as Read
from chatd.request_types import Refresh as Refresh
from chatd.request_types import Request as Request
from chatd.request_types import Send as Send
from chatd.request_types import SetPresence as SetPresence
from chatd.request_types import Skip as Skip
from chatd.request_types import Typing as Typing
from chatd.request_types import WatchRequest as WatchRequest

SUBPROTOCOL: Final = "chatd.v1"
MESSAGE: Final = 0
EDIT: Final = 1
DELETE: Final = 2
KINDS: Final = (b"message", b"edit", b"delete")
REQUEST_TYPES: Final = tuple(DECODERS)


class RequestFault(Exception):
    """A frame that is refused: `id` of the reply (0 if it could not be read), and the error."""

    def __init__(self, id: int, error: errors.ClientFault) -> None:
        super().__init__(str(error))
        self.id = id
        self.error = error


# ---- decode --------------------------------------------------------------------------------------


def decode(payload: bytes, last_id: int, bounds: Bounds = DEFAULT_BOUNDS) -> Request:
    """One text message as a request, whose `id` is greater than `last_id`.

    Raises RequestFault: with id 0 if `t` or `id` cannot be read, else with the request's id.
    """
    try:
        o = orjson.loads(payload)
    except orjson.JSONDecodeError:
        if (o := read_object(payload)) is None:
            raise RequestFault(0, errors.BadFrame("not a JSON object in UTF-8")) from None
    if type(o) is not dict:
        raise RequestFault(0, errors.BadFrame("a frame is a JSON object"))
    id, t = o.get("id"), o.get("t")
    if type(id) is not int or not 1 <= id <= ID_MAX:
        raise RequestFault(0, errors.BadFrame(f"`id` must be an integer from 1 to {ID_MAX}"))
    if type(t) is not str:
        raise RequestFault(0, errors.BadFrame("`t` must be a string"))
    if id <= last_id:
        raise RequestFault(id, errors.BadId(f"`id` must be greater than the last one, {last_id}"))
    decoder = DECODERS.get(t)
    if decoder is None:
        raise RequestFault(id, errors.UnknownType("no such request type"))
    try:
        return decoder(id, o, bounds)
    except errors.ClientFault as e:
        raise RequestFault(id, e) from None


# ---- encode --------------------------------------------------------------------------------------

dumps = orjson.dumps


def compact(json: bytes) -> bytes:
    """A copy to keep: bytes from orjson occupy 4 KiB, however short they are (measured, 3.11)."""
    return bytes(bytearray(json))


def ok(id: int) -> bytes:
    return b'{"t":"ok","id":%d}' % id


def ok_entry(id: int, c: int, seq: int, ts: int, dup: bool = False) -> bytes:
    return b'{"t":"ok","id":%d,"c":"%d","seq":%d,"ts":%d%b}' % (id, c, seq, ts, b',"dup":true' if dup else b"")


def ok_cursor(id: int, c: int, delivered: int, read: int) -> bytes:
    return b'{"t":"ok","id":%d,"c":"%d","delivered":%d,"read":%d}' % (id, c, delivered, read)


def ok_history(id: int, c: int, entries: list[bytes], more: bool, head: int, floor: int) -> bytes:
    """A page of history; `entries`: each as `stored_entry` made it."""
    return b'{"t":"ok","id":%d,"c":"%d","entries":[%b],"more":%b,"head":%d,"floor":%d}' % (
        id, c, b",".join(entries), b"true" if more else b"false", head, floor,
    )  # fmt: skip


def reply(id: int, **facts: object) -> bytes:
    """An `ok` with further keys; too slow for the message path."""
    return dumps({"t": "ok", "id": id, **facts})


def frame(t: str, **facts: object) -> bytes:
    """Any payload from its keys; too slow for the message path."""
    return dumps({"t": t, **facts})


def err(id: int, error: errors.Refused) -> bytes:
    facts: dict[str, object] = {"t": "err", "id": id, "code": error.code, "msg": str(error)}
    if error.retry_ms is not None:
        facts["retry_ms"] = error.retry_ms
    if error.field is not None:
        facts["field"] = error.field
    if error.cid is not None:
        facts["cid"] = error.cid
    return dumps(facts)


def entry(
    c: int,
    seq: int,
    ts: int,
    from_json: bytes,
    to_json: bytes,
    kind: int,
    ref: int | None,
    body: str | None,
    cid: str | None,
) -> bytes:
    """A new entry, as it is pushed; only a message has no `ref`.

    `ts`: ms since 1970, database clock. `from_json`, `to_json`: user ids as JSON. `cid`: only for
    the sender's devices.
    """
    if kind == MESSAGE:
        tail = b',"body":%b}' % dumps(body)
    elif kind == EDIT:
        tail = b',"ref":%d,"body":%b}' % (ref or 0, dumps(body))
    else:
        tail = b',"ref":%d}' % (ref or 0)
    return b'{"t":"entry","c":"%d","seq":%d,"ts":%d,"from":%b,"to":%b,"kind":"%b"%b%b' % (
        c, seq, ts, from_json, to_json, KINDS[kind], b',"cid":"%b"' % cid.encode() if cid else b"", tail,
    )  # fmt: skip


# The kind of an entry of a later release, whose nodes may write during an upgrade. Clients ignore
# such an entry, but its seq counts.
LATER_KIND: Final = b"other"


class Stored(NamedTuple):
    """An entry as the log holds it now, in the order of the columns of `sql/queries/entries_*.sql`.

    `ts`, `changed`: ms since 1970, database clock. `rev`: seq of the last edit or delete of a
    message. `na`, `nb`: messages of each side up to this entry.
    """

    seq: int
    ts: int
    side: int
    kind: int
    cid: str
    body: str | None
    ref: int | None
    rev: int | None
    changed: int | None
    na: int
    nb: int


def stored_entry(head: bytes, e: Stored, from_json: bytes, to_json: bytes, own: bool) -> bytes:
    """An entry as the log holds it now.

    `head`: b'{' for an item of history, or `entry_head(c)` for a push. `own`: for the sender.
    """
    tail = b""
    kind = KINDS[e.kind] if 0 <= e.kind < len(KINDS) else LATER_KIND
    if own:
        tail = b',"cid":"%b"' % e.cid.encode()
    if e.ref is not None:
        tail += b',"ref":%d' % e.ref
    if e.kind != DELETE:
        tail += b',"body":%b' % dumps(e.body)
    if e.kind == MESSAGE and e.rev is not None:
        tail += b',"rev":%d,"%b":%d' % (e.rev, b"deleted" if e.body is None else b"edited", e.changed or 0)
    return b'%b"seq":%d,"ts":%d,"from":%b,"to":%b,"kind":"%b"%b}' % (head, e.seq, e.ts, from_json, to_json, kind, tail)


def entry_head(c: int) -> bytes:
    return b'{"t":"entry","c":"%d",' % c


def receipt(c: int, from_json: bytes, to_json: bytes, delivered: int, read: int) -> bytes:
    return b'{"t":"receipt","c":"%d","from":%b,"to":%b,"delivered":%d,"read":%d}' % (
        c, from_json, to_json, delivered, read,
    )  # fmt: skip


def typing(c: int, from_json: bytes, to_json: bytes) -> bytes:
    return b'{"t":"typing","c":"%d","from":%b,"to":%b}' % (c, from_json, to_json)
