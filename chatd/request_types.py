"""The requests of `chatd.v1`: a type for each, as `protocol.decode` makes them. Pure.

They are NamedTuples and not frozen dataclasses because one is made per message: the frozen
`__init__` of seven fields takes 1.1 us, a NamedTuple 0.3 us. `id`: of the request, rising in a
connection; its reply has the same.

A new one stands in three places: here and in `Request`; its decoder in `request_decoders.py`; what
it does in `chat/handlers.py`, where mypy asks for its case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from chatd.ids import Cid, ConvId, DeviceId, Seq, UserId


class Hello(NamedTuple):
    """The first request of a connection.

    `epoch`: of the log that the device knows. `cursors`: the last seq that it has of each
    conversation. `since`: the mark of its last `welcome`. `watch`: the users to watch.
    """

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
    """A new message. Here and below, exactly one of `c` and `to` names the conversation.

    `cid`: the client's id of the entry. `retry`: the client may have sent this cid before.
    """

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
    ref: Seq | None  # the message to edit; None: only `refcid` names it
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
    """The device has all entries up to `seq`."""

    id: int
    c: ConvId | None
    to: UserId | None
    seq: Seq


class Read(NamedTuple):
    """The user has read all entries up to `seq`."""

    id: int
    c: ConvId | None
    to: UserId | None
    seq: Seq


class History(NamedTuple):
    """A page of entries `before` or `after` a seq; the latest if neither is given."""

    id: int
    c: ConvId | None
    to: UserId | None
    before: Seq | None
    after: Seq | None
    limit: int


class Conversations(NamedTuple):
    """A page of the user's conversations, after the `cursor` of the page before."""

    id: int
    limit: int
    cursor: str | None


class Typing(NamedTuple):
    id: int
    c: ConvId | None
    to: UserId | None


class SetPresence(NamedTuple):
    """The device is idle, or is not."""

    id: int
    away: bool


class WatchRequest(NamedTuple):
    """Replaces the users whose presence the session watches."""

    id: int
    users: tuple[UserId, ...]


class Skip(NamedTuple):
    """The client gives up an entry that blocks a conversation."""

    id: int
    c: ConvId | None
    to: UserId | None
    cid: Cid


class Refresh(NamedTuple):
    """A new token for the session."""

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
    | WatchRequest
    | Skip
    | Refresh
    | PingRequest
)
