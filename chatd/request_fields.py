"""Bounds and checks of the fields of requests. Pure.

Each check takes the object of a frame, `o`, and gives the typed value of one field. It raises
`errors.ClientFault` with a sentence for the client. `docs/protocol.md` has the rules;
`chatd/protocol.py` makes requests of the values.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from chatd import errors
from chatd.ids import Cid, ConvId, DeviceId, Seq, UserId, user_id
from chatd.loose_json import UNREADABLE

ID_MAX: Final = 2**53 - 1
BODY_BYTES_MAX: Final = 2048
# A send without its body: two ids of 64 characters at up to 12 bytes each, and the keys.
ENVELOPE_BYTES_MAX: Final = 4096
FRAME_BYTES_MAX: Final = 16_384
CURSORS_MAX: Final = 500
WATCH_MAX: Final = 200
HISTORY_MAX: Final = 100
PAGE_DEFAULT: Final = 50
TOKEN_CHARS_MAX: Final = 8_192
FEATURES_MAX: Final = 32

# Each byte of a body takes at most 6 bytes in JSON, as an escape (\uXXXX).
assert FRAME_BYTES_MAX >= BODY_BYTES_MAX * 6 + ENVELOPE_BYTES_MAX

_CID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DEVICE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# A mark of chatd/postgres/mark.py, or one of an earlier release, which lists everything.
_SINCE = re.compile(r"[0-9a-f]{1,16}\.[0-9a-f]{1,16}\.[0-9a-f]{1,8}|[0-9]{1,19}")
_CONV = re.compile(r"[1-9][0-9]{0,18}")


class Bounds(NamedTuple):
    """The bounds on requests that an operator can set; the defaults are those of the contract."""

    body_bytes: int = BODY_BYTES_MAX
    watch: int = WATCH_MAX
    history: int = HISTORY_MAX


DEFAULT_BOUNDS: Final = Bounds()


def bad_field(field: str, what: str) -> errors.BadField:
    return errors.BadField(f"`{field}` {what}", field=field)


def text(o: dict[str, object], key: str, chars_max: int) -> str:
    """A string of 1 to `chars_max` characters."""
    value = o.get(key)
    if type(value) is not str or not 1 <= len(value) <= chars_max:
        raise bad_field(key, f"must be a string of 1 to {chars_max} characters")
    return value


def user(value: object, field: str) -> UserId:
    """A user id that may be known (ids.py)."""
    if type(value) is not str:
        raise bad_field(field, "must be a user id")
    try:
        return user_id(value)
    except ValueError as e:
        raise bad_field(field, f"is no user id: {e}") from None


def conv(value: object, field: str) -> ConvId:
    """A conversation id: a string of digits.

    19 digits can exceed 2^63 - 1. PostgreSQL is not asked for such an id: it cannot exist.
    """
    if type(value) is not str:
        raise bad_field(field, "must be a conversation id")
    if not _CONV.fullmatch(value) or (number := int(value)) > 2**63 - 1:
        raise errors.NoConversation("no such conversation of yours")
    return ConvId(number)


def where(o: dict[str, object]) -> tuple[ConvId | None, UserId | None]:
    """The conversation that a request names, by exactly one of `c` and `to`."""
    c, to = o.get("c"), o.get("to")
    if (c is None) == (to is None):
        raise bad_field("c", "or `to` must name the conversation, and not both")
    if c is None:
        return None, user(to, "to")
    return conv(c, "c"), None


def seq(o: dict[str, object], key: str, least: int = 1) -> Seq:
    """The seq of an entry, from `least` to 2^53 - 1."""
    value = o.get(key)
    if type(value) is not int:
        # The parser gives a float for an integer beyond its bounds; NaN is no integer.
        if type(value) is not float or not abs(value) > ID_MAX:
            raise bad_field(key, "must be an integer")
    elif least <= value <= ID_MAX:
        return Seq(value)
    raise errors.BadSeq(f"`{key}` is no seq: {least} is the least", field=key)


def cid(o: dict[str, object], key: str = "cid") -> Cid:
    """A UUID, in lower case."""
    value = o.get(key)
    if type(value) is not str or not _CID.fullmatch(value):
        raise bad_field(key, "must be a UUID, 36 characters with hyphens")
    return Cid(value.lower())


def message(o: dict[str, object]) -> tuple[Seq | None, Cid | None]:
    """The message that an edit or delete names: by its seq, by its cid, or by both."""
    if o.get("refcid") is None:
        if o.get("ref") is None:
            raise bad_field("ref", "or `refcid` must name the message")
        return seq(o, "ref"), None
    return None if o.get("ref") is None else seq(o, "ref"), cid(o, "refcid")


def body(o: dict[str, object], bounds: Bounds) -> str:
    """The text of a message, as `docs/protocol.md` section 2 allows it.

    Most texts are printable, and `isprintable` is faster than the pattern.
    """
    value = o.get("body")
    if type(value) is not str:
        if value is UNREADABLE:
            raise errors.BadText("body is no JSON text", field="body")
        raise bad_field("body", "must be a string")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise errors.BadText(
            "body has half a character (a lone surrogate): cut a text between characters", field="body"
        ) from None
    if size > bounds.body_bytes:
        raise errors.TooLong(f"body has {size} bytes of UTF-8; {bounds.body_bytes} is the most")
    if not value:
        raise errors.BadText("body is empty")
    if not value.isprintable() and _CONTROL.search(value):
        raise errors.BadText("body has control characters; newline and tab alone are allowed")
    return value


def flag(o: dict[str, object], key: str) -> bool:
    value = o.get(key, False)
    if type(value) is not bool:
        raise bad_field(key, "must be true or false")
    return value


def limit(o: dict[str, object], bounds: Bounds) -> int:
    """The size of a page."""
    value = o.get("limit", min(PAGE_DEFAULT, bounds.history))
    if type(value) is not int or not 1 <= value <= bounds.history:
        raise bad_field("limit", f"must be an integer from 1 to {bounds.history}")
    return value


def users(o: dict[str, object], key: str, bounds: Bounds) -> tuple[UserId, ...]:
    """A list of user ids, each once."""
    value = o.get(key)
    if type(value) is not list or len(value) > bounds.watch:
        raise bad_field(key, f"must be a list of at most {bounds.watch} user ids")
    return tuple(dict.fromkeys(user(u, key) for u in value))


def away(o: dict[str, object]) -> bool:
    """The `state` of a device: True if it is `away`, False if `online` or not given."""
    value = o.get("state", "online")
    if value not in ("online", "away"):
        raise bad_field("state", "must be `online` or `away`")
    return bool(value == "away")


def cursors(o: dict[str, object]) -> dict[ConvId, Seq]:
    """The last seq that a device has of each conversation."""
    value = o.get("cursors", {})
    if type(value) is not dict or len(value) > CURSORS_MAX:
        raise bad_field("cursors", f"must be an object of at most {CURSORS_MAX} conversations")
    found = {}
    for c, at in value.items():
        if type(at) is not int or not 0 <= at <= ID_MAX:
            raise bad_field("cursors", "must give an integer from 0 for each conversation")
        # A conversation that is not the user's is ignored, and so is a malformed id.
        if _CONV.fullmatch(c) and int(c) < 2**63:
            found[ConvId(int(c))] = Seq(at)
    return found


def device(o: dict[str, object]) -> DeviceId:
    """The id of the device that says hello."""
    value = o.get("device")
    if type(value) is not str or not _DEVICE.fullmatch(value):
        raise bad_field("device", "must be 1-64 characters of A-Z a-z 0-9 . _ : -")
    return DeviceId(value)


def check_features(o: dict[str, object]) -> None:
    """Check the list of features that a client asks for; the names themselves have no effect."""
    value = o.get("features", [])
    if type(value) is not list or len(value) > FEATURES_MAX or not all(type(f) is str for f in value):
        raise bad_field("features", f"must be a list of at most {FEATURES_MAX} names")


def since(o: dict[str, object]) -> str:
    """The mark of an earlier `welcome`: opaque to clients, made of transaction numbers here."""
    mark = text(o, "since", 48)
    if not _SINCE.fullmatch(mark):
        raise bad_field("since", "must come from an earlier `welcome`")
    return mark
