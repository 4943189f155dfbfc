"""The frames of `chatd.v1`: JSON text to typed requests, and facts to JSON text. Pure.

    bytes ──decode──► Request (a NamedTuple per type)          facts ──encode──► bytes

`decode` never guesses: what comes out is valid in itself (types, ranges, text, ids); whether it is
*allowed* is the session's and the services' business. It raises `errors.ClientFault` and nothing
else, with the request's id in `Fault.id` as far as it could be read. The contract is
`docs/protocol.md`; `docs/schema/` is held to this module by a test.

JSON is read by orjson: it refuses invalid UTF-8, lone surrogates, NaN and nesting beyond its limit,
and of equal keys keeps the last. What it refuses is read once more by `loose_json`, so that a fault
of one value is answered with the request's id and not with 0. Requests are NamedTuples and not
frozen dataclasses: these are made once per message, and a frozen `__init__` of seven fields costs
1.1 us against 0.3 us. Frames are put together with `%` on bytes: 0.5 us against 1.1 us for orjson
on a dict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from chatd import errors
from chatd.ids import Cid, ConvId, DeviceId, Seq, UserId, user_id
from chatd.loose_json import UNREADABLE, read_object

VERSION: Final = 1
SUBPROTOCOL: Final = "chatd.v1"
ID_MAX: Final = 2**53 - 1
BODY_BYTES_MAX: Final = 2048
# All of a send but its body: ids of 64 characters at up to 12 bytes each, twice, and the keys
ENVELOPE_BYTES_MAX: Final = 4096
FRAME_BYTES_MAX: Final = 16_384
CURSORS_MAX: Final = 500
WATCH_MAX: Final = 200
HISTORY_MAX: Final = 100
PAGE_DEFAULT: Final = 50
TOKEN_CHARS_MAX: Final = 8_192
FEATURES_MAX: Final = 32

# A body of control characters alone would be refused, so each of its bytes takes at most 6 as an
# escape (\uXXXX).
assert FRAME_BYTES_MAX >= BODY_BYTES_MAX * 6 + ENVELOPE_BYTES_MAX

MESSAGE: Final = 0
EDIT: Final = 1
DELETE: Final = 2
KINDS: Final = (b"message", b"edit", b"delete")

_CID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DEVICE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# chatd/postgres/mark.py; what earlier releases gave lists all
_SINCE = re.compile(r"[0-9a-f]{1,16}\.[0-9a-f]{1,16}\.[0-9a-f]{1,8}|[0-9]{1,19}")
_CONV = re.compile(r"[1-9][0-9]{0,18}")


class Bounds(NamedTuple):
    """What an operator can set of the bounds on requests; the defaults are the contract's."""

    body_bytes: int = BODY_BYTES_MAX
    watch: int = WATCH_MAX
    history: int = HISTORY_MAX


DEFAULT_BOUNDS: Final = Bounds()


class Fault(Exception):
    """A frame that cannot be taken: `id` of the reply (0 = unreadable) and the fault itself."""

    def __init__(self, id: int, error: errors.ClientFault) -> None:
        super().__init__(str(error))
        self.id = id
        self.error = error


class Hello(NamedTuple):
    id: int
    v: int
    token: str
    device: DeviceId
    epoch: str | None
    cursors: Mapping[ConvId, Seq]
    since: str | None
    watch: tuple[UserId, ...]
    away: bool


class Send(NamedTuple):
    id: int
    c: ConvId | None
    to: UserId | None
    cid: Cid
    body: str
    retry: bool


class Edit(NamedTuple):
    id: int
    c: ConvId | None
    to: UserId | None
    cid: Cid
    ref: Seq | None  # None: named by `refcid` alone
    body: str
    retry: bool
    refcid: Cid | None = None


class Delete(NamedTuple):
    id: int
    c: ConvId | None
    to: UserId | None
    cid: Cid
    ref: Seq | None
    retry: bool
    refcid: Cid | None = None


class Ack(NamedTuple):
    id: int
    c: ConvId | None
    to: UserId | None
    seq: Seq


class Read(NamedTuple):
    id: int
    c: ConvId | None
    to: UserId | None
    seq: Seq


class History(NamedTuple):
    id: int
    c: ConvId | None
    to: UserId | None
    before: Seq | None
    after: Seq | None
    limit: int


class Conversations(NamedTuple):
    id: int
    limit: int
    cursor: str | None


class Typing(NamedTuple):
    id: int
    c: ConvId | None
    to: UserId | None


class SetPresence(NamedTuple):
    id: int
    away: bool


class Watch(NamedTuple):
    id: int
    users: tuple[UserId, ...]


class Skip(NamedTuple):
    id: int
    c: ConvId | None
    to: UserId | None
    cid: Cid


class Refresh(NamedTuple):
    id: int
    token: str


class PingRequest(NamedTuple):
    id: int


Entering: TypeAlias = Send | Edit | Delete  # requests that make an entry
Request: TypeAlias = (
    Hello
    | Send
    | Edit
    | Delete
    | Ack
    | Read
    | History
    | Conversations
    | Typing
    | SetPresence
    | Watch
    | Skip
    | Refresh
    | PingRequest
)

# ---- decode --------------------------------------------------------------------------------------


def _bad(field: str, what: str) -> errors.BadField:
    return errors.BadField(f"`{field}` {what}", field=field)


def _text(o: dict[str, Any], key: str, chars_max: int) -> str:
    value = o.get(key)
    if type(value) is not str or not 1 <= len(value) <= chars_max:
        raise _bad(key, f"must be a string of 1 to {chars_max} characters")
    return value


def _user(value: object, field: str) -> UserId:
    if type(value) is not str:
        raise _bad(field, "must be a user id")
    try:
        return user_id(value)
    except ValueError as e:
        raise _bad(field, f"is no user id: {e}") from None


def _conv(value: object, field: str) -> ConvId:
    # 19 digits can pass 2^63 - 1: such a conversation cannot exist, and PostgreSQL must not be
    # asked for it.
    if type(value) is not str:
        raise _bad(field, "must be a conversation id")
    if not _CONV.fullmatch(value) or (number := int(value)) > 2**63 - 1:
        raise errors.NoConversation("no such conversation of yours")
    return ConvId(number)


def _where(o: dict[str, Any]) -> tuple[ConvId | None, UserId | None]:
    """The conversation that a request names, by exactly one of `c` and `to`."""
    c, to = o.get("c"), o.get("to")
    if (c is None) == (to is None):
        raise _bad("c", "or `to` must name the conversation, and not both")
    if c is None:
        return None, _user(to, "to")
    return _conv(c, "c"), None


def _seq(o: dict[str, Any], key: str, least: int = 1) -> Seq:
    value = o.get(key)
    if type(value) is not int:
        # The parser makes a float of an integer beyond its own; NaN is no integer
        if type(value) is not float or not abs(value) > ID_MAX:
            raise _bad(key, "must be an integer")
    elif least <= value <= ID_MAX:
        return Seq(value)
    raise errors.BadSeq(f"`{key}` is no seq: {least} is the least", field=key)


def _cid(o: dict[str, Any], key: str = "cid") -> Cid:
    value = o.get(key)
    if type(value) is not str or not _CID.fullmatch(value):
        raise _bad(key, "must be a UUID, 36 characters with hyphens")
    return Cid(value.lower())


def _message(o: dict[str, Any]) -> tuple[Seq | None, Cid | None]:
    """The message that a change names: by its seq, by its cid, or by both."""
    if o.get("refcid") is None:
        if o.get("ref") is None:
            raise _bad("ref", "or `refcid` must name the message")
        return _seq(o, "ref"), None
    return None if o.get("ref") is None else _seq(o, "ref"), _cid(o, "refcid")


def _body(o: dict[str, Any], bounds: Bounds) -> str:
    """Text as `docs/protocol.md` section 2 allows it.

    `isprintable` is the quick way past the pattern for most texts.
    """
    body = o.get("body")
    if type(body) is not str:
        if body is UNREADABLE:
            raise errors.BadText("body is no JSON text", field="body")
        raise _bad("body", "must be a string")
    try:
        size = len(body) if body.isascii() else len(body.encode())
    except UnicodeEncodeError:
        raise errors.BadText(
            "body has half a character (a lone surrogate): cut a text between characters", field="body"
        ) from None
    if size > bounds.body_bytes:
        raise errors.TooLong(f"body has {size} bytes of UTF-8; {bounds.body_bytes} is the most")
    if not body:
        raise errors.BadText("body is empty")
    if not body.isprintable() and _CONTROL.search(body):
        raise errors.BadText("body has control characters; newline and tab alone are allowed")
    return body


def _flag(o: dict[str, Any], key: str) -> bool:
    value = o.get(key, False)
    if type(value) is not bool:
        raise _bad(key, "must be true or false")
    return value


def _limit(o: dict[str, Any], bounds: Bounds) -> int:
    value = o.get("limit", min(PAGE_DEFAULT, bounds.history))
    if type(value) is not int or not 1 <= value <= bounds.history:
        raise _bad("limit", f"must be an integer from 1 to {bounds.history}")
    return value


def _users(o: dict[str, Any], key: str, bounds: Bounds) -> tuple[UserId, ...]:
    value = o.get(key)
    if type(value) is not list or len(value) > bounds.watch:
        raise _bad(key, f"must be a list of at most {bounds.watch} user ids")
    return tuple(dict.fromkeys(_user(u, key) for u in value))


def _away(o: dict[str, Any]) -> bool:
    value = o.get("state", "online")
    if value not in ("online", "away"):
        raise _bad("state", "must be `online` or `away`")
    return bool(value == "away")


def _cursors(o: dict[str, Any]) -> dict[ConvId, Seq]:
    value = o.get("cursors", {})
    if type(value) is not dict or len(value) > CURSORS_MAX:
        raise _bad("cursors", f"must be an object of at most {CURSORS_MAX} conversations")
    cursors = {}
    for c, seq in value.items():
        if type(seq) is not int or not 0 <= seq <= ID_MAX:
            raise _bad("cursors", "must give an integer from 0 for each conversation")
        # A conversation that is not the user's is passed over, also a malformed one
        if _CONV.fullmatch(c) and int(c) < 2**63:
            cursors[ConvId(int(c))] = Seq(seq)
    return cursors


def _since(o: dict[str, Any]) -> str:
    # The mark is opaque to clients; what it is here: the number of a transaction (xid8).
    since = _text(o, "since", 48)
    if not _SINCE.fullmatch(since):
        raise _bad("since", "must come from an earlier `welcome`")
    return since


def _hello(id: int, o: dict[str, Any], bounds: Bounds) -> Hello:
    if o.get("v") != VERSION or type(o.get("v")) is not int:
        raise errors.BadVersion(f"this server speaks version {VERSION}: send `v`:{VERSION}")
    device = o.get("device")
    if type(device) is not str or not _DEVICE.fullmatch(device):
        raise _bad("device", "must be 1-64 characters of A-Z a-z 0-9 . _ : -")
    features = o.get("features", [])
    if type(features) is not list or len(features) > FEATURES_MAX or not all(type(f) is str for f in features):
        raise _bad("features", f"must be a list of at most {FEATURES_MAX} names")
    return Hello(
        id, VERSION, _text(o, "token", TOKEN_CHARS_MAX), DeviceId(device),
        _text(o, "epoch", 64) if o.get("epoch") is not None else None,
        _cursors(o),
        _since(o) if o.get("since") is not None else None,
        _users(o, "watch", bounds) if o.get("watch") is not None else (),
        _away(o),
    )  # fmt: skip


def _send(id: int, o: dict[str, Any], bounds: Bounds) -> Send:
    c, to = _where(o)
    return Send(id, c, to, _cid(o), _body(o, bounds), _flag(o, "retry"))


def _edit(id: int, o: dict[str, Any], bounds: Bounds) -> Edit:
    c, to = _where(o)
    cid, (ref, refcid) = _cid(o), _message(o)
    return Edit(id, c, to, cid, ref, _body(o, bounds), _flag(o, "retry"), refcid)


def _delete(id: int, o: dict[str, Any], bounds: Bounds) -> Delete:
    c, to = _where(o)
    cid, (ref, refcid) = _cid(o), _message(o)
    return Delete(id, c, to, cid, ref, _flag(o, "retry"), refcid)


def _history(id: int, o: dict[str, Any], bounds: Bounds) -> History:
    c, to = _where(o)
    before = _seq(o, "before") if o.get("before") is not None else None
    after = _seq(o, "after", 0) if o.get("after") is not None else None
    if after is not None and before is not None:
        raise _bad("after", "and `before` exclude each other")
    return History(id, c, to, before, after, _limit(o, bounds))


def _conversations(id: int, o: dict[str, Any], bounds: Bounds) -> Conversations:
    return Conversations(id, _limit(o, bounds), _text(o, "cursor", 128) if o.get("cursor") is not None else None)


_DECODERS: Final[Mapping[str, Callable[[int, dict[str, Any], Bounds], Request]]] = {
    "send": _send,
    "hello": _hello,
    "edit": _edit,
    "delete": _delete,
    "ack": lambda id, o, bounds: Ack(id, *_where(o), _seq(o, "seq")),
    "read": lambda id, o, bounds: Read(id, *_where(o), _seq(o, "seq")),
    "history": _history,
    "conversations": _conversations,
    "typing": lambda id, o, bounds: Typing(id, *_where(o)),
    "presence": lambda id, o, bounds: SetPresence(id, _away(o)),
    "watch": lambda id, o, bounds: Watch(id, _users(o, "users", bounds)),
    "skip": lambda id, o, bounds: Skip(id, *_where(o), _cid(o)),
    "refresh": lambda id, o, bounds: Refresh(id, _text(o, "token", TOKEN_CHARS_MAX)),
    "ping": lambda id, o, bounds: PingRequest(id),
}
REQUEST_TYPES: Final = tuple(_DECODERS)


def decode(payload: bytes, last_id: int, bounds: Bounds = DEFAULT_BOUNDS) -> Request:
    """One text frame as a request, whose `id` is greater than `last_id`.

    Raises Fault: with id 0 where `t` or `id` cannot be read, else with the request's own id.
    """
    try:
        o = orjson.loads(payload)
    except orjson.JSONDecodeError:
        if (o := read_object(payload)) is None:
            raise Fault(0, errors.BadFrame("not a JSON object in UTF-8")) from None
    if type(o) is not dict:
        raise Fault(0, errors.BadFrame("a frame is a JSON object"))
    id, t = o.get("id"), o.get("t")
    if type(id) is not int or not 1 <= id <= ID_MAX:
        raise Fault(0, errors.BadFrame(f"`id` must be an integer from 1 to {ID_MAX}"))
    if type(t) is not str:
        raise Fault(0, errors.BadFrame("`t` must be a string"))
    if id <= last_id:
        raise Fault(id, errors.BadId(f"`id` must be greater than the last one, {last_id}"))
    decoder = _DECODERS.get(t)
    if decoder is None:
        raise Fault(id, errors.UnknownType("no such request type"))
    try:
        return decoder(id, o, bounds)
    except errors.ClientFault as e:
        raise Fault(id, e) from None


# ---- encode --------------------------------------------------------------------------------------

dumps = orjson.dumps


def compact(json: bytes) -> bytes:
    """A copy to be kept: what orjson gives holds on to 4 KiB, however short it is (measured, 3.11)."""
    return bytes(bytearray(json))


def ok(id: int) -> bytes:
    return b'{"t":"ok","id":%d}' % id


def ok_entry(id: int, c: int, seq: int, ts: int, dup: bool = False) -> bytes:
    return b'{"t":"ok","id":%d,"c":"%d","seq":%d,"ts":%d%b}' % (id, c, seq, ts, b',"dup":true' if dup else b"")


def ok_cursor(id: int, c: int, delivered: int, read: int) -> bytes:
    return b'{"t":"ok","id":%d,"c":"%d","delivered":%d,"read":%d}' % (id, c, delivered, read)


def ok_history(id: int, c: int, entries: list[bytes], more: bool, head: int, floor: int) -> bytes:
    """`entries`: each as `entry_item` made it."""
    return b'{"t":"ok","id":%d,"c":"%d","entries":[%b],"more":%b,"head":%d,"floor":%d}' % (
        id, c, b",".join(entries), b"true" if more else b"false", head, floor,
    )  # fmt: skip


def reply(id: int, **facts: object) -> bytes:
    """An `ok` with further keys; not for the message path."""
    return dumps({"t": "ok", "id": id, **facts})


def frame(t: str, **facts: object) -> bytes:
    """Any frame from its keys; not for the message path."""
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
    """A live entry; only a message has no `ref`.

    `from_json`, `to_json`: user ids as JSON. `cid` for the sender's devices only.
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


# Of a release after this one, whose nodes write beside ours during an upgrade: clients pass it
# over, and its seq counts
LATER_KIND: Final = b"other"


class Stored(NamedTuple):
    """An entry as the log holds it now, in the order of the columns of `sql/queries/entries_*.sql`.

    Times in ms.
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
    """An entry as it stands now.

    `head`: b'{' for an item of history, or `entry_head(c)` for a push.
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
        c,
        from_json,
        to_json,
        delivered,
        read,
    )


def typing(c: int, from_json: bytes, to_json: bytes) -> bytes:
    return b'{"t":"typing","c":"%d","from":%b,"to":%b}' % (c, from_json, to_json)


def parties(frame: bytes, side: int) -> tuple[UserId, UserId] | None:
    """(a, b) of the conversation of an entry's frame, made by that side; None if it does not tell.

    For what another node sends.
    """
    try:
        o = orjson.loads(frame)
        one, other = user_id(o["from"]), user_id(o["to"])
    except (ValueError, TypeError, KeyError):
        return None
    return (one, other) if side == 0 else (other, one)
