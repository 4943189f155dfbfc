"""The bytes of presence between nodes: batches on a channel, and values in a hash. Pure.

    batch  {"v":1,"boot":"0123456789abcdef","n":7,"users":[[user, *value], ...]}
           on the channel of all presence; on that of a user, with this user alone
    value  [state, v, seen, [[device, attached, active], ...]]

`boot` is the incarnation of the node that sends; `v` of a value is the version of the status, and
the times are in ms. A decoded value is valid in itself; anything else gives None and nothing
raises, because anyone with access to Redis can write to a channel. A batch is accepted whole or not
at all: the hole in the numbers then causes a read of the hash. Unknown keys and further items are
ignored, so a later chatd may add some under the same version. A change of meaning gets a new
version, which earlier nodes do not accept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import orjson

from chatd.core.steady_time import SteadyReading
from chatd.core.user_status import V_MAX, Device, Remote, Status
from chatd.ids import USER_CHARS_MAX, DeviceId, UserId, user_id

__all__ = ["PresenceBatch", "Remote", "decode_batch", "decode_entry", "encode_batch", "encode_entry"]

VERSION: Final = 1
BATCH_USERS_MAX: Final = 1_000
DEVICES_MAX: Final = 100  # the largest value of the setting `devices_max`
BATCH_BYTES_MAX: Final = 12 << 20
ENTRY_BYTES_MAX: Final = 16 << 10
NAME_CHARS_MAX: Final = 64
GRACE_MS_MAX: Final = 60_000  # a drain takes 10 s
DIGITS_MAX: Final = 16  # of V_MAX

_DEVICE_BYTES: Final = 64 + 2 * 16 + 6  # numbers have at most 16 digits
_ENTRY_BYTES: Final = 9 + 2 * 16 + 8 + DEVICES_MAX * _DEVICE_BYTES
assert ENTRY_BYTES_MAX > _ENTRY_BYTES
# Printable text in UTF-8, at most 4 bytes a character; the longest escape is \"
assert BATCH_BYTES_MAX > BATCH_USERS_MAX * (USER_CHARS_MAX * 4 + 4 + _ENTRY_BYTES) + 100

_INCARNATION = re.compile(r"[0-9a-f]{16}")
_INCARNATION_BYTES = re.compile(rb"[0-9a-f]{16}")
_DEVICE = re.compile(r"[A-Za-z0-9._:-]{1,64}")  # as in a hello (protocol.py)
_STATES: Final = {status.value: status for status in (Status.ONLINE, Status.AWAY, Status.OFFLINE)}


class PresenceBatch(NamedTuple):
    """The n-th batch of an incarnation."""

    incarnation: str
    n: int
    users: list[tuple[UserId, Remote]]


def _devices(devices: tuple[Device, ...]) -> list[tuple[str, int, int]]:
    """The devices as rows: at most DEVICES_MAX, those attached last.

    There can be more: a device that is closed for a newer one counts until its connection ends.
    """
    if len(devices) > DEVICES_MAX:
        devices = tuple(sorted(devices, key=lambda one: one.attached_ms)[-DEVICES_MAX:])
    return [(*device,) for device in devices]


def encode_entry(said: Remote) -> bytes:
    """The value of a user in the hash."""
    return orjson.dumps((said.status.value, said.v, said.seen_ms, _devices(said.devices)))


def encode_batch(incarnation: str, n: int, users: Iterable[tuple[UserId, Remote]]) -> bytes:
    """A batch of at most `BATCH_USERS_MAX` users."""
    rows = [(user, said.status.value, said.v, said.seen_ms, _devices(said.devices)) for user, said in users]
    assert len(rows) <= BATCH_USERS_MAX
    return orjson.dumps({"v": VERSION, "boot": incarnation, "n": n, "users": rows})


def decode_entry(data: bytes) -> Remote | None:
    """A value of the hash; None if it is not valid."""
    if len(data) > ENTRY_BYTES_MAX:
        return None
    try:
        return _remote(orjson.loads(data), 0)
    except ValueError:
        return None


def decode_batch(data: bytes) -> PresenceBatch | None:
    """A batch of the channel; None if it is not valid."""
    if len(data) > BATCH_BYTES_MAX:
        return None
    try:
        o = orjson.loads(data)
        if type(o) is not dict or type(o.get("v")) is not int or o["v"] != VERSION:
            return None
        incarnation, rows = o.get("boot"), o.get("users")
        if type(incarnation) is not str or not _INCARNATION.fullmatch(incarnation):
            return None
        if type(rows) is not list or len(rows) > BATCH_USERS_MAX:
            return None
        return PresenceBatch(incarnation, _number(o.get("n")), [(_user(row), _remote(row, 1)) for row in rows])
    except ValueError:
        return None


# ---- parts; each raises ValueError ---------------------------------------------------------------


def _user(row: object) -> UserId:
    if type(row) is not list or not row or type(row[0]) is not str:
        raise ValueError("no user")
    return user_id(row[0])


def _remote(row: object, at: int) -> Remote:
    """The value in the items of `row` from `at` on."""
    if type(row) is not list or len(row) < at + 4:
        raise ValueError("no entry")
    state, v, seen, devices = row[at : at + 4]
    status = _STATES.get(state) if type(state) is str else None
    if status is None or type(devices) is not list or len(devices) > DEVICES_MAX:
        raise ValueError("no entry")
    return Remote(
        status, _number(v), None if seen is None else _number(seen), tuple([_device(device) for device in devices])
    )


def _device(row: object) -> Device:
    if type(row) is not list or len(row) < 3 or type(row[0]) is not str or not _DEVICE.fullmatch(row[0]):
        raise ValueError("no device")
    return Device(DeviceId(row[0]), _number(row[1]), _number(row[2]))


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= V_MAX:
        raise ValueError("no number")
    return value


class Info(NamedTuple):
    """What a node publishes beside its lease, as far as other nodes act on it."""

    name: str
    n: int  # number of its last batch
    left: bool  # it has drained
    grace_ms: int  # how much longer than its lease its users stay
    shards: bool | None  # whether it can use sharded pub/sub; None: not given
    # Number of its last listing of all users. None: it is of a release that publishes presence on
    # one channel for all, and listens there alone.
    listing: int | None = None
    steady: SteadyReading | None = None  # its steady time at that moment; None: not given


def decode_info(data: bytes) -> dict[str, Any]:
    """What a node published beside its lease, unchecked; empty if it cannot be read."""
    try:
        info = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return info if isinstance(info, dict) else {}


def read_info(data: bytes) -> Info:
    """The same, checked: a value of a wrong type or out of bounds counts as not given."""
    info = decode_info(data)
    name, n, grace_ms, shards = info.get("name"), info.get("n"), info.get("grace_ms"), info.get("shards")
    listing = info.get("listing")
    return Info(
        name=name[:NAME_CHARS_MAX] if type(name) is str else "",
        n=n if type(n) is int and 0 <= n <= V_MAX else 0,
        left=info.get("left") is True,
        grace_ms=min(grace_ms, GRACE_MS_MAX) if type(grace_ms) is int and grace_ms >= 0 else 0,
        shards=shards if type(shards) is bool else None,
        listing=listing if type(listing) is int and 0 <= listing <= V_MAX else None,
        steady=_steady(info.get("steady")),
    )


def _steady(row: object) -> SteadyReading | None:
    if type(row) is not list or len(row) < 3 or any(type(item) is not int or abs(item) > V_MAX for item in row[:3]):
        return None
    ms, ahead_ms, up_ms = row[:3]
    return SteadyReading(ms, ahead_ms, up_ms) if ms >= 0 and up_ms >= 0 else None


def is_incarnation(name: bytes) -> bool:
    return _INCARNATION_BYTES.fullmatch(name) is not None


def read_number(text: bytes) -> int | None:
    """A number that a node wrote as text; None if it is not a number, or too long."""
    return int(text) if text.isdigit() and len(text) <= DIGITS_MAX else None
