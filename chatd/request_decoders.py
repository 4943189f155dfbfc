"""Makes a typed request of the JSON object of a frame: a decoder for each request type. Pure.

    `t` ──DECODERS──► decoder(id, object, bounds) ──► a type of request_types.py

A decoder reads each field by a check of `request_fields.py` and raises `errors.ClientFault`. It is
called by `protocol.decode`, which has read `id` and `t`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from chatd import errors
from chatd import request_fields as fields
from chatd.request_fields import Bounds
from chatd.request_types import (
    Ack,
    Conversations,
    Delete,
    Edit,
    Hello,
    History,
    PingRequest,
    Read,
    Refresh,
    Request,
    Send,
    SetPresence,
    Skip,
    Typing,
    WatchRequest,
)

VERSION: Final = 1  # of the protocol: the `v` of a hello


def _hello(id: int, o: dict[str, object], bounds: Bounds) -> Hello:
    if o.get("v") != VERSION or type(o.get("v")) is not int:
        raise errors.BadVersion(f"this server speaks version {VERSION}: send `v`:{VERSION}")
    device = fields.device(o)
    fields.check_features(o)
    return Hello(
        id, VERSION, fields.text(o, "token", fields.TOKEN_CHARS_MAX), device,
        fields.text(o, "epoch", 64) if o.get("epoch") is not None else None,
        fields.cursors(o),
        fields.since(o) if o.get("since") is not None else None,
        fields.users(o, "watch", bounds) if o.get("watch") is not None else (),
        fields.away(o),
    )  # fmt: skip


def _send(id: int, o: dict[str, object], bounds: Bounds) -> Send:
    c, to = fields.where(o)
    return Send(id, c, to, fields.cid(o), fields.body(o, bounds), fields.flag(o, "retry"))


def _edit(id: int, o: dict[str, object], bounds: Bounds) -> Edit:
    c, to = fields.where(o)
    cid, (ref, refcid) = fields.cid(o), fields.message(o)
    return Edit(id, c, to, cid, ref, fields.body(o, bounds), fields.flag(o, "retry"), refcid)


def _delete(id: int, o: dict[str, object], bounds: Bounds) -> Delete:
    c, to = fields.where(o)
    cid, (ref, refcid) = fields.cid(o), fields.message(o)
    return Delete(id, c, to, cid, ref, fields.flag(o, "retry"), refcid)


def _history(id: int, o: dict[str, object], bounds: Bounds) -> History:
    c, to = fields.where(o)
    before = fields.seq(o, "before") if o.get("before") is not None else None
    after = fields.seq(o, "after", 0) if o.get("after") is not None else None
    if after is not None and before is not None:
        raise fields.bad_field("after", "and `before` exclude each other")
    return History(id, c, to, before, after, fields.limit(o, bounds))


def _conversations(id: int, o: dict[str, object], bounds: Bounds) -> Conversations:
    cursor = fields.text(o, "cursor", 128) if o.get("cursor") is not None else None
    return Conversations(id, fields.limit(o, bounds), cursor)


DECODERS: Final[Mapping[str, Callable[[int, dict[str, object], Bounds], Request]]] = {
    "send": _send,
    "hello": _hello,
    "edit": _edit,
    "delete": _delete,
    "ack": lambda id, o, bounds: Ack(id, *fields.where(o), fields.seq(o, "seq")),
    "read": lambda id, o, bounds: Read(id, *fields.where(o), fields.seq(o, "seq")),
    "history": _history,
    "conversations": _conversations,
    "typing": lambda id, o, bounds: Typing(id, *fields.where(o)),
    "presence": lambda id, o, bounds: SetPresence(id, fields.away(o)),
    "watch": lambda id, o, bounds: WatchRequest(id, fields.users(o, "users", bounds)),
    "skip": lambda id, o, bounds: Skip(id, *fields.where(o), fields.cid(o)),
    "refresh": lambda id, o, bounds: Refresh(id, fields.text(o, "token", fields.TOKEN_CHARS_MAX)),
    "ping": lambda id, o, bounds: PingRequest(id),
}
