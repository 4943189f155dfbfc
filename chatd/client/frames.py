"""Reads the server's frames into the values of values.py. Pure.

Unknown keys are ignored; unknown kinds and states become `unknown`. A required key that is missing
or of another type raises ProtocolError, never KeyError.

All times are integer milliseconds since 1970 UTC by the server's database. `c` names a conversation
and is opaque.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from chatd.client.errors import RETRY_MS_MAX, ProtocolError
from chatd.client.values import KINDS as KINDS
from chatd.client.values import PRESENCE_STATES as PRESENCE_STATES
from chatd.client.values import CatchUpFailed as CatchUpFailed
from chatd.client.values import ConversationItem as ConversationItem
from chatd.client.values import ConversationPage as ConversationPage
from chatd.client.values import Entry as Entry
from chatd.client.values import Event as Event
from chatd.client.values import Kind as Kind
from chatd.client.values import Limits as Limits
from chatd.client.values import Line as Line
from chatd.client.values import Notice as Notice
from chatd.client.values import Page as Page
from chatd.client.values import Presence as Presence
from chatd.client.values import PresenceState as PresenceState
from chatd.client.values import Receipt as Receipt
from chatd.client.values import Reset as Reset
from chatd.client.values import Sent as Sent
from chatd.client.values import Typing as Typing
from chatd.client.values import Unreadable as Unreadable
from chatd.client.values import Unsent as Unsent
from chatd.client.values import Welcome as Welcome

Frame: TypeAlias = dict[str, Any]  # one JSON object of the wire


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


def entry(o: Mapping[str, Any], c: str, user: str, epoch: str = "") -> Entry:
    """An `entry` push, or an item of history in conversation `c`, as `user` sees it."""
    sender, to, body, cid = _str(o, "from"), _str(o, "to"), o.get("body"), o.get("cid")
    own = sender == user
    return Entry(
        c,
        to if own else sender,
        integer(o, "seq"),
        integer(o, "ts"),
        own,
        _kind(_str(o, "kind")),
        body if isinstance(body, str) else None,
        _integer_or_none(o, "ref"),
        _integer_or_none(o, "rev"),
        _integer_or_none(o, "edited"),
        _integer_or_none(o, "deleted"),
        cid if isinstance(cid, str) else None,
        epoch,
    )


def _kind(word: str) -> Kind:
    return next((kind for kind in KINDS if kind == word), "unknown")


def _state(word: str) -> PresenceState:
    return next((state for state in PRESENCE_STATES if state == word), "unknown")


def pushed_entry(o: Mapping[str, Any], user: str, epoch: str = "") -> Entry:
    """An `entry` push."""
    return entry(o, _str(o, "c"), user, epoch)


def place_of(o: Mapping[str, Any]) -> tuple[str, int]:
    """(c, seq) of an `entry` push, of which the rest may be anything."""
    return _str(o, "c"), integer(o, "seq")


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
    return Presence(_str(o, "user"), _state(_str(o, "state")), integer(o, "v"), _integer_or_none(o, "seen"))


def presences(o: Mapping[str, Any]) -> tuple[Presence, ...]:
    """The answer to `watch`."""
    return tuple(presence(x) for x in _objects(o, "presence"))


def typing(o: Mapping[str, Any]) -> Typing:
    """A `typing` push."""
    return Typing(_str(o, "c"), _str(o, "from"))


def notice(o: Mapping[str, Any]) -> Notice:
    """A `notice` push."""
    retry_ms = _integer_or_none(o, "retry_ms")
    return Notice(_str(o, "kind"), None if retry_ms is None else min(max(retry_ms, 0), RETRY_MS_MAX))


def sent(o: Mapping[str, Any]) -> Sent:
    """The `ok` to a send, edit or delete."""
    return Sent(_str(o, "c"), integer(o, "seq"), integer(o, "ts"), o.get("dup") is True)


def page(o: Mapping[str, Any], user: str, epoch: str = "", *, after: int = 0) -> Page:
    """The `ok` to `history`. `after`: what it was asked for.

    An item that cannot be read is left out, and its seq is in `unreadable`: a page has no holes.
    """
    c, head, floor = _str(o, "c"), integer(o, "head"), integer(o, "floor")
    items = o.get("entries", [])
    if not isinstance(items, list):
        raise ProtocolError("`entries` should be a list in ok")
    entries: list[Entry] = []
    lost: list[int] = []  # indexes
    start: int | None = None  # seq of the first item
    for n, x in enumerate(items):
        try:
            if not isinstance(x, dict):
                raise ProtocolError("an entry should be an object")
            entries.append(entry(x, c, user, epoch))
            start = entries[-1].seq - n if start is None else start
        except ProtocolError:
            lost.append(n)
    first = max(after + 1, floor) if start is None else start
    return Page(c, tuple(entries), o.get("more") is True, head, floor, tuple(first + n for n in lost))


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
