"""Presence as nodes tell it each other: batches on a channel, and values in a hash. Pure.

    batch  {"v":1,"boot":"0123456789abcdef","n":7,"users":[[user, state, v, seen, [[device, attached, active], ...]], ...]}
    value  [state, v, seen, [[device, attached, active], ...]]

What is decoded is valid in itself; all else gives None and never raises: a channel can be written
to by anybody who has Redis. A batch is taken whole or not at all: the hole in its numbers has the
hash read. Keys that are added and items after the last are passed over, so a later chatd may say
more under the same version; what means something else gets a new one, which the nodes before it do
not take.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import orjson

from chatd.core.remote_presence import V_MAX, Device, Remote, Status
from chatd.core.steady_time import SteadyReading
from chatd.ids import USER_CHARS_MAX, DeviceId, UserId, user_id

__all__ = ["Batch", "Remote", "decode_batch", "decode_entry", "encode_batch", "encode_entry"]

VERSION: Final = 1
BATCH_USERS_MAX: Final = 1_000
DEVICES_MAX: Final = 100  # what `devices_max` can be set to
BATCH_BYTES_MAX: Final = 12 << 20
ENTRY_BYTES_MAX: Final = 16 << 10
NAME_CHARS_MAX: Final = 64
GRACE_MS_MAX: Final = 60_000  # a drain's notice and what follows it take 10 s
DIGITS_MAX: Final = 16  # of V_MAX

_DEVICE_BYTES: Final = 64 + 2 * 16 + 6  # numbers have 16 digits at most
_ENTRY_BYTES: Final = 9 + 2 * 16 + 8 + DEVICES_MAX * _DEVICE_BYTES
assert ENTRY_BYTES_MAX > _ENTRY_BYTES
# Printable text in UTF-8; \" is the longest escape
assert BATCH_BYTES_MAX > BATCH_USERS_MAX * (USER_CHARS_MAX * 4 + 4 + _ENTRY_BYTES) + 100

_BOOT = re.compile(r"[0-9a-f]{16}")
_BOOT_BYTES = re.compile(rb"[0-9a-f]{16}")
_DEVICE = re.compile(r"[A-Za-z0-9._:-]{1,64}")  # as in a hello (protocol.py)
_STATES: Final = {status.value: status for status in (Status.ONLINE, Status.AWAY, Status.OFFLINE)}


class Batch(NamedTuple):
    """What a boot says, in its n-th batch."""

    boot: str
    n: int
    users: list[tuple[UserId, Remote]]


def _devices(devices: tuple[Device, ...]) -> list[tuple[str, int, int]]:
    """Of more than DEVICES_MAX those attached last: one that is being closed for the newest still
    counts until its connection has ended.
    """
    if len(devices) > DEVICES_MAX:
        devices = tuple(sorted(devices, key=lambda one: one.attached_ms)[-DEVICES_MAX:])
    return [(*device,) for device in devices]


def encode_entry(said: Remote) -> bytes:
    """A value of the hash."""
    return orjson.dumps((said.status.value, said.v, said.seen_ms, _devices(said.devices)))


def encode_batch(boot: str, n: int, users: Iterable[tuple[UserId, Remote]]) -> bytes:
    """`BATCH_USERS_MAX` users at most."""
    rows = [(user, said.status.value, said.v, said.seen_ms, _devices(said.devices)) for user, said in users]
    assert len(rows) <= BATCH_USERS_MAX
    return orjson.dumps({"v": VERSION, "boot": boot, "n": n, "users": rows})


def decode_entry(data: bytes) -> Remote | None:
    if len(data) > ENTRY_BYTES_MAX:
        return None
    try:
        return _remote(orjson.loads(data), 0)
    except ValueError:
        return None


def decode_batch(data: bytes) -> Batch | None:
    if len(data) > BATCH_BYTES_MAX:
        return None
    try:
        o = orjson.loads(data)
        if type(o) is not dict or type(o.get("v")) is not int or o["v"] != VERSION:
            return None
        boot, rows = o.get("boot"), o.get("users")
        if type(boot) is not str or not _BOOT.fullmatch(boot) or type(rows) is not list or len(rows) > BATCH_USERS_MAX:
            return None
        return Batch(boot, _number(o.get("n")), [(_user(row), _remote(row, 1)) for row in rows])
    except ValueError:
        return None


# ---- parts; each raises ValueError ---------------------------------------------------------------


def _user(row: object) -> UserId:
    if type(row) is not list or not row or type(row[0]) is not str:
        raise ValueError("no user")
    return user_id(row[0])


def _remote(row: object, at: int) -> Remote:
    """The entry in the items of `row` from `at` on."""
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
    """What a node says of itself beside its lease, as far as other nodes act on it."""

    name: str
    n: int  # its last batch
    left: bool  # it has drained
    grace_ms: int  # its users stay for so much longer than its lease
    shards: bool | None  # whether it can use sharded pub/sub; None: it does not say
    steady: SteadyReading | None = None  # its steady time at that moment; None: it does not say


def decode_info(data: bytes) -> dict[str, Any]:
    """What a node writes of itself beside its lease; empty if it cannot be read.

    Of its values nothing is promised.
    """
    try:
        info = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return info if isinstance(info, dict) else {}


def read_info(data: bytes) -> Info:
    """The same, checked: a value of a wrong type or out of bounds is as good as none."""
    info = decode_info(data)
    name, n, grace_ms, shards = info.get("name"), info.get("n"), info.get("grace_ms"), info.get("shards")
    return Info(
        name=name[:NAME_CHARS_MAX] if type(name) is str else "",
        n=n if type(n) is int and 0 <= n <= V_MAX else 0,
        left=info.get("left") is True,
        grace_ms=min(grace_ms, GRACE_MS_MAX) if type(grace_ms) is int and grace_ms >= 0 else 0,
        shards=shards if type(shards) is bool else None,
        steady=_steady(info.get("steady")),
    )


def _steady(row: object) -> SteadyReading | None:
    if type(row) is not list or len(row) < 3 or any(type(item) is not int or abs(item) > V_MAX for item in row[:3]):
        return None
    ms, ahead_ms, up_ms = row[:3]
    return SteadyReading(ms, ahead_ms, up_ms) if ms >= 0 and up_ms >= 0 else None


def is_boot(name: bytes) -> bool:
    return _BOOT_BYTES.fullmatch(name) is not None


def read_number(text: bytes) -> int | None:
    """A number that a node wrote as text; None if it is none."""
    return int(text) if text.isdigit() and len(text) <= DIGITS_MAX else None
