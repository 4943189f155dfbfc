"""The server's frames as typed values, and how they are read from JSON objects. Pure.

Unknown keys are ignored, and unknown kinds and states are kept as strings, as docs/protocol.md
asks. A required key that is missing or of another type raises ProtocolError, never KeyError.

All times are integer milliseconds since 1970 UTC by the server's database. `c` names a conversation
and is opaque.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from chatd import protocol
from chatd.client.errors import ProtocolError

Frame: TypeAlias = dict[str, Any]  # one JSON object of the wire
KINDS: Final = ("message", "edit", "delete")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a conversation's log.

    `own`: this user made it, here or on another device. `ref`: the message that an edit or delete
    changes. A message may include its later changes: `rev` is the seq of its last
    change, `edited` or `deleted` the time of it, `body` None if deleted.
    """

    c: str
    peer: str
    seq: int
    ts: int
    own: bool
    kind: str
    body: str | None
    ref: int | None = None
    rev: int | None = None
    edited: int | None = None
    deleted: int | None = None
    cid: str | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """Where a send, edit or delete stands in the log.

    `dup`: it had been stored before this answer was asked for.
    """

    c: str
    seq: int
    ts: int
    dup: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """How far `user` has got in a conversation. Both numbers only rise."""

    c: str
    peer: str
    user: str
    delivered: int
    read: int


@dataclass(frozen=True, slots=True)
class Presence:
    """`state` is `online`, `away`, `offline` or `hidden`.

    `seen`: when the user was last seen, where the server says so.
    """

    user: str
    state: str
    v: int
    seen: int | None = None


@dataclass(frozen=True, slots=True)
class Typing:
    """`user` is typing. Ends 6 s after the last of these, or with an entry of that user."""

    c: str
    user: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Word from the server about itself. `drain`: it goes away, and the client moves by itself."""

    kind: str
    retry_ms: int | None


@dataclass(frozen=True, slots=True)
class Reset:
    """The log is another one (a failover, a restore from a backup): any `c` and `seq` of before is
    void.

    With `c`: that conversation has lost entries that this client was given, or goes on at its head
    (docs/client.md).
    """

    c: str | None
    peer: str | None


@dataclass(frozen=True, slots=True)
class Unsent:
    """A send that nobody waits for any more (its await was cancelled, or it comes from a saved
    state) was refused for good.
    """

    peer: str
    cid: str
    kind: str
    body: str | None
    ref: int | None
    code: str
    msg: str


Event: TypeAlias = Receipt | Presence | Typing | Notice | Reset | Unsent


@dataclass(frozen=True, slots=True)
class ConversationItem:
    """One conversation in a list.

    `delivered`, `read` are this user's cursors. `page`, `reset`: see section 3 of docs/protocol.md.
    """

    c: str
    peer: str
    head: int
    floor: int
    ts: int
    delivered: int
    read: int
    peer_delivered: int
    peer_read: int
    unread: int
    open: bool
    page: bool = False
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """An unbroken run of a log, in rising order.

    `more`: there are further ones in the direction asked for.
    """

    c: str
    entries: tuple[Entry, ...]
    more: bool
    head: int
    floor: int


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """Conversations, the latest entry first. `cursor` asks for the next page; None: no more."""

    items: tuple[ConversationItem, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server allows; the defaults hold until a welcome says otherwise."""

    frame_bytes: int = protocol.FRAME_BYTES_MAX
    body_bytes: int = protocol.BODY_BYTES_MAX
    messages: int = 10
    per_ms: int = 5_000
    watch: int = protocol.WATCH_MAX
    history: int = protocol.HISTORY_MAX
    edit_ms: int = 900_000


@dataclass(frozen=True, slots=True)
class Welcome:
    """All pages of a welcome in one.

    `exp_ms`: when the token ends, by the server's clock, which stood at `ts`.
    """

    user: str
    epoch: str
    ts: int
    exp_ms: int | None
    limits: Limits
    items: tuple[ConversationItem, ...]
    presence: tuple[Presence, ...]
    since: str | None


# ---- reading -------------------------------------------------------------------------------------


def _str(o: Mapping[str, Any], key: str) -> str:
    value = o.get(key)
    if not isinstance(value, str):
        raise ProtocolError(f"`{key}` should be a string in {o.get('t', 'an item')}")
    return value


def integer(o: Mapping[str, Any], key: str) -> int:
    """The integer under `key`, or ProtocolError."""
    value = o.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProtocolError(f"`{key}` should be an integer in {o.get('t', 'an item')}")
    return value


def _integer_or_none(o: Mapping[str, Any], key: str) -> int | None:
    return None if o.get(key) is None else integer(o, key)


def _objects(o: Mapping[str, Any], key: str) -> list[Frame]:
    value = o.get(key, [])
    if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
        raise ProtocolError(f"`{key}` should be a list of objects in {o.get('t', 'an item')}")
    return value


def entry(o: Mapping[str, Any], c: str, user: str) -> Entry:
    """An `entry` push, or an item of history in conversation `c`, as `user` sees it."""
    sender, to, body, cid = _str(o, "from"), _str(o, "to"), o.get("body"), o.get("cid")
    own = sender == user
    return Entry(
        c,
        to if own else sender,
        integer(o, "seq"),
        integer(o, "ts"),
        own,
        _str(o, "kind"),
        body if isinstance(body, str) else None,
        _integer_or_none(o, "ref"),
        _integer_or_none(o, "rev"),
        _integer_or_none(o, "edited"),
        _integer_or_none(o, "deleted"),
        cid if isinstance(cid, str) else None,
    )


def pushed_entry(o: Mapping[str, Any], user: str) -> Entry:
    """An `entry` push."""
    return entry(o, _str(o, "c"), user)


def item(o: Mapping[str, Any]) -> ConversationItem:
    """An item of `welcome` or `conversations`."""
    return ConversationItem(
        _str(o, "c"),
        _str(o, "peer"),
        integer(o, "head"),
        integer(o, "floor"),
        integer(o, "ts"),
        integer(o, "delivered"),
        integer(o, "read"),
        integer(o, "peer_delivered"),
        integer(o, "peer_read"),
        integer(o, "unread"),
        open=o.get("open") is True,
        page=o.get("page") is True,
        reset=o.get("reset") is True,
    )


def receipt(o: Mapping[str, Any], user: str) -> Receipt:
    """A `receipt` push, as `user` sees it."""
    sender, to = _str(o, "from"), _str(o, "to")
    return Receipt(_str(o, "c"), to if sender == user else sender, sender, integer(o, "delivered"), integer(o, "read"))


def presence(o: Mapping[str, Any]) -> Presence:
    """A `presence` push, or an item of a watch list."""
    return Presence(_str(o, "user"), _str(o, "state"), integer(o, "v"), _integer_or_none(o, "seen"))


def presences(o: Mapping[str, Any]) -> tuple[Presence, ...]:
    """The answer to `watch`."""
    return tuple(presence(x) for x in _objects(o, "presence"))


def typing(o: Mapping[str, Any]) -> Typing:
    """A `typing` push."""
    return Typing(_str(o, "c"), _str(o, "from"))


def notice(o: Mapping[str, Any]) -> Notice:
    """A `notice` push."""
    return Notice(_str(o, "kind"), _integer_or_none(o, "retry_ms"))


def sent(o: Mapping[str, Any]) -> Sent:
    """The `ok` to a send, edit or delete."""
    return Sent(_str(o, "c"), integer(o, "seq"), integer(o, "ts"), o.get("dup") is True)


def page(o: Mapping[str, Any], user: str) -> Page:
    """The `ok` to `history`."""
    c = _str(o, "c")
    entries = tuple(entry(x, c, user) for x in _objects(o, "entries"))
    return Page(c, entries, o.get("more") is True, integer(o, "head"), integer(o, "floor"))


def conversation_page(o: Mapping[str, Any]) -> ConversationPage:
    """The `ok` to `conversations`."""
    cursor = o.get("cursor")
    return ConversationPage(
        tuple(item(x) for x in _objects(o, "conversations")), cursor if isinstance(cursor, str) else None
    )


def limits(o: Mapping[str, Any]) -> Limits:
    """`limits` of a welcome; what it leaves out keeps its default."""
    given = o.get("limits")
    known = {k: integer(given, k) for k in Limits.__slots__ if k in given} if isinstance(given, dict) else {}
    return Limits(**known)


def welcome(o: Mapping[str, Any]) -> Welcome:
    """A whole welcome, its pages joined."""
    since = o.get("since")
    return Welcome(
        _str(o, "user"), _str(o, "epoch"), integer(o, "ts"), _integer_or_none(o, "exp"), limits(o),
        tuple(item(x) for x in _objects(o, "conversations")), presences(o),
        since if isinstance(since, str) else None,
    )  # fmt: skip
