"""What is said about a user's presence: the status, the devices, a remote node's word. Pure data.

    Remote (one node's word about a user) ──kept as──► Seat (incarnation, status, devices)
    devices here + seats ──merged──► Status ──versioned──► Change ──► watchers

A user is online if any device is, away if all are, offline without one.

Versions rise: a change has the version `now_ms + ahead_ms`, or one more than the user's last if
that is larger. They stay above all that other nodes said of the user, and rise over a restart of
the node and where the wall clock is set back (`clock.py`). Every watcher replaces older by newer.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from chatd.ids import DeviceId, UserId

V_MAX: Final = 2**53 - 1  # the largest integer that a browser counts exactly; the wire refuses more


class Status(enum.Enum):
    ONLINE = "online"
    AWAY = "away"
    OFFLINE = "offline"
    HIDDEN = "hidden"


def merged(aways: list[bool]) -> Status:
    """The status of a user from whether each device, or each node, has them away."""
    return Status.OFFLINE if not aways else Status.AWAY if all(aways) else Status.ONLINE


class Device(NamedTuple):
    """A session of a user on some node, as that node published it.

    `attached_ms`: when it began, `active_ms`: when it last did something; both in ms of steady time
    (core/steady_time.py).
    """

    id: DeviceId
    attached_ms: int
    active_ms: int


class Remote(NamedTuple):
    """A user's presence on one node, as that node says it.

    `v` rises with each word of that node about the user. `seen_ms`: the time last seen (ms since
    1970), only when offline and if known.
    """

    status: Status
    v: int
    seen_ms: int | None
    devices: tuple[Device, ...]

    @property
    def here(self) -> bool:
        return self.status is not Status.OFFLINE


NOTHING_SAID: Final = Remote(Status.OFFLINE, -1, None, ())


class Seat(NamedTuple):
    """What this node keeps of a `Remote` that is not offline."""

    incarnation: str
    status: Status
    devices: tuple[Device, ...]


class Change(NamedTuple):
    """A user's new status. `v`: newer is higher. `seen_ms`: only when offline, if known."""

    user: UserId
    status: Status
    v: int
    seen_ms: int | None

    def facts(self) -> dict[str, object]:
        """The fields of the `presence` push."""
        facts: dict[str, object] = {"user": self.user, "state": self.status.value, "v": self.v}
        if self.seen_ms is not None:
            facts["seen"] = self.seen_ms
        return facts


_NO_DEVICES: Final[dict[DeviceId, bool]] = {}  # never written to: most users who are elsewhere have none here
_NO_LEAVING: Final[dict[DeviceId, tuple[float, bool]]] = {}


class UserStatus:
    """A user who is not offline. `status` is over all nodes; `seats` are those of the others."""

    __slots__ = ("devices", "leaving", "seats", "seen_ms", "status", "v")

    def __init__(self, v: int) -> None:
        self.devices = _NO_DEVICES  # device -> whether it is away
        self.leaving = _NO_LEAVING  # device whose session ended -> (end of its grace time, away)
        self.seats: tuple[Seat, ...] = ()
        self.status = Status.OFFLINE
        self.v = v
        self.seen_ms: int | None = None

    @property
    def here(self) -> bool:
        return bool(self.devices or self.leaving)

    def aways(self) -> list[bool]:
        """For each device here, whether it is away."""
        aways = list(self.devices.values())
        if self.leaving:
            aways += [away for _, away in self.leaving.values()]
        return aways

    def arrive(self, device: DeviceId, away: bool) -> bool:
        """A session of the device is here; True if the user was not here before."""
        is_new = not self.here
        if self.devices is _NO_DEVICES:
            self.devices = {}
        self.devices[device] = away
        if self.leaving:
            self.leaving.pop(device, None)
        return is_new

    def leave(self, device: DeviceId, until: float) -> None:
        """The session of the device ended; its grace time ends at `until`, in seconds."""
        if self.leaving is _NO_LEAVING:
            self.leaving = {}
        self.leaving[device] = (until, self.devices.pop(device))

    def change(self, user: UserId) -> Change:
        return Change(user, self.status, self.v, self.seen_ms if self.status is Status.OFFLINE else None)


class StatusTable:
    """All users who are not offline, by id, and the rule of versions."""

    __slots__ = ("ahead_ms", "forgotten_v", "users")

    def __init__(self) -> None:
        self.users: dict[UserId, UserStatus] = {}
        self.ahead_ms = 0  # versions are `now_ms` plus this; it rises when the wall clock goes back
        self.forgotten_v = 0  # the highest version of the users that were forgotten

    def get(self, user: UserId) -> UserStatus | None:
        return self.users.get(user)

    def add(self, user: UserId) -> UserStatus:
        """A new entry, whose versions rise above those of all forgotten ones."""
        entry = self.users[user] = UserStatus(self.forgotten_v)
        return entry

    def forget(self, user: UserId, entry: UserStatus) -> None:
        # Last-seen is in PostgreSQL. Versions run ahead of the clock if changes are faster than
        # milliseconds, so the user's next version must rise above all that were forgotten.
        self.raise_forgotten(entry.v)
        self.users.pop(user, None)

    def raise_forgotten(self, v: int) -> None:
        """Let the versions of users that are not in the table rise above this one."""
        self.forgotten_v = max(self.forgotten_v, v)

    def next_v(self, entry: UserStatus, now_ms: int) -> int:
        """The version of the user's next change."""
        return max(entry.v + 1, now_ms + self.ahead_ms)

    def update(self, user: UserId, entry: UserStatus, now_ms: int) -> Change | None:
        """Compute the status again from devices and seats; gives the Change if it is another."""
        aways = entry.aways()
        if entry.seats:
            aways += [seat.status is Status.AWAY for seat in entry.seats]
        status = merged(aways)
        if status is entry.status:
            return None
        entry.status, entry.v = status, self.next_v(entry, now_ms)
        return entry.change(user)

    def clock_stepped(self, ahead_ms: int, now_ms: int) -> None:
        """The wall clock was set: versions run `ahead_ms` ahead of it from now on.

        No user was last seen in the future.
        """
        self.ahead_ms = ahead_ms
        for entry in self.users.values():
            if entry.seen_ms is not None and entry.seen_ms > now_ms:
                entry.seen_ms = now_ms
