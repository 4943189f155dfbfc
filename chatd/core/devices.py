"""Which devices a user has on this node, and which of them must be closed. Pure.

Every node decides for its own devices, from what all nodes have published. Once all know the same,
exactly one node closes each device that must go.
"""

from __future__ import annotations

from collections.abc import Iterable

from chatd.core.user_status import V_MAX, Device, Seat
from chatd.ids import DeviceId, UserId


def attached(devices: tuple[Device, ...], id: DeviceId, now_ms: int, attached_ms: int | None) -> tuple[Device, ...]:
    """The devices with one that is attached, now or at `attached_ms`.

    Gives `devices` itself if it has the device already, and `attached_ms` is None or the same.
    """
    old = next((one for one in devices if one.id == id), None)
    if old is not None and attached_ms in (None, old.attached_ms):
        return devices
    at = now_ms if attached_ms is None else attached_ms
    return (*(one for one in devices if one is not old), Device(id, at, at if old is None else max(at, old.active_ms)))


def detached(devices: tuple[Device, ...], id: DeviceId) -> tuple[Device, ...]:
    return tuple([one for one in devices if one.id != id])


def displaced(incarnation: str, devices: Iterable[Device], seats: Iterable[Seat]) -> list[DeviceId]:
    """The devices of this node that were attached elsewhere later.

    At the same millisecond the node of the higher incarnation keeps the device.
    """
    mine = {device.id: (device.attached_ms, incarnation) for device in devices}
    theirs = ((other.id, (other.attached_ms, seat.incarnation)) for seat in seats for other in seat.devices)
    return list(dict.fromkeys(id for id, at in theirs if id in mine and at > mine[id]))


def surplus(incarnation: str, devices: Iterable[Device], seats: Iterable[Seat], devices_max: int) -> list[DeviceId]:
    """The devices of this node to close because the user has more than `devices_max`.

    The longest idle ones of all nodes are closed. A device that is on several nodes counts once,
    where it was attached last: the others are `displaced`.
    """
    stays: dict[DeviceId, tuple[int, str, int]] = {}
    for at, there in ((incarnation, devices), *((seat.incarnation, seat.devices) for seat in seats)):
        for device in there:
            stays[device.id] = max(stays.get(device.id, (-1, "", -1)), (device.attached_ms, at, device.active_ms))
    over = len(stays) - devices_max
    if over <= 0:
        return []
    longest_idle = sorted((active_ms, attached_ms, at, id) for id, (attached_ms, at, active_ms) in stays.items())[:over]
    return [id for _, _, at, id in longest_idle if at == incarnation]


class Attaching:
    """The devices whose hello is under way, with the time of their new session (steady time, ms).

    From the time a session takes its device's place, words of other nodes are compared with that
    session and not with the one before it.
    """

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[UserId, dict[DeviceId, int]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def begin(self, user: UserId, device: DeviceId, steady_ms: int, known: Iterable[Device]) -> int:
        """A session takes the device's place; gives its time, later than any `known` one's."""
        later = [min(one.attached_ms + 1, V_MAX) for one in known if one.id == device]
        at = max([steady_ms, *later])
        self._of.setdefault(user, {})[device] = at
        return at

    def end(self, user: UserId, device: DeviceId) -> int | None:
        """The hello is over; gives the time of its session, None if none was under way."""
        attaching = self._of.get(user)
        if attaching is None:
            return None
        at = attaching.pop(device, None)
        if not attaching:
            del self._of[user]
        return at

    def shift(self, by_ms: int) -> None:
        """Move all times: the steady time of this node was off by so much."""
        for attaching in self._of.values():
            for device, at in attaching.items():
                attaching[device] = max(0, at + by_ms)

    def with_newest(self, user: UserId, live: tuple[Device, ...]) -> tuple[Device, ...]:
        """The live devices and those whose hello is under way, each as its newest session."""
        attaching = self._of.get(user)
        if not attaching:
            return live
        return (
            *(one for one in live if one.id not in attaching),
            *(Device(id, at, at) for id, at in attaching.items()),
        )

    def as_active(self, user: UserId, live: tuple[Device, ...]) -> tuple[Device, ...]:
        """The live devices, of which those whose next session is under way are not idle.

        A device that is new counts once its hello is over.
        """
        attaching = self._of.get(user)
        if not attaching:
            return live
        return tuple(
            [
                one if (at := attaching.get(one.id)) is None else Device(one.id, at, max(at, one.active_ms))
                for one in live
            ]
        )
