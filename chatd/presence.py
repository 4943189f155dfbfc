"""Who is online, by the sessions of this node; and who watches whom. Pure: `now` (seconds) and `now_ms` are arguments.

    user ── sessions (device -> away or not) ──► one status ──change──► watchers

A user is online if any device is, away if all are, offline without one. A device whose session ended counts as it did for a grace time, so that a
quick reconnect does not flap (not to away either, where another device is idle); `due` ends it. Each change gets a version that rises
(milliseconds, at least one more than the last), also over a restart of the node: newer replaces older at every watcher.

What is not here: who *may* watch whom (services; it needs conversations), and last-seen times of users who are not in memory (store).
A mirror of other nodes' users joins through `set_remote` (issue 4): the map already tells local sessions and status apart.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from chatd.ids import DeviceId, UserId


class Status(enum.Enum):
    ONLINE = "online"
    AWAY = "away"
    OFFLINE = "offline"
    HIDDEN = "hidden"


class Change(NamedTuple):
    """A user's status from now on. `v`: newer is higher. `seen_ms`: only when offline, if known."""

    user: UserId
    status: Status
    v: int
    seen_ms: int | None

    def facts(self) -> dict[str, object]:
        """As the wire has it."""
        facts: dict[str, object] = {"user": self.user, "state": self.status.value, "v": self.v}
        if self.seen_ms is not None:
            facts["seen"] = self.seen_ms
        return facts


class _User:
    __slots__ = ("devices", "leaving", "seen_ms", "status", "v")

    def __init__(self, v: int) -> None:
        self.devices: dict[DeviceId, bool] = {}  # device -> away
        self.status = Status.OFFLINE
        self.v = v
        self.seen_ms: int | None = None
        self.leaving: dict[DeviceId, tuple[float, bool]] = {}  # device whose session ended -> end of its grace time, away


class Presence:
    """The map. Methods that can change a status give the Change, or None."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self._users: dict[UserId, _User] = {}
        self._watchers: dict[UserId, set[Hashable]] = {}
        self._due: list[tuple[float, UserId, DeviceId]] = []
        self._v = 0  # highest version of the users that are forgotten

    def __len__(self) -> int:
        return len(self._users)

    # ---- sessions -----------------------------------------------------------------------------------------------------------------

    def connect(self, user: UserId, device: DeviceId, away: bool, now_ms: int) -> Change | None:
        """A session has said hello, or tells that its device is idle or not."""
        entry = self._users.get(user)
        if entry is None:
            entry = self._users[user] = _User(self._v)
        entry.devices[device] = away
        entry.leaving.pop(device, None)
        return self._update(user, entry, now_ms)

    def disconnect(self, user: UserId, device: DeviceId, now: float, now_ms: int, grace_s: float | None = None) -> None:
        """A session ended. The status stays as it is until the grace time is over."""
        entry = self._users.get(user)
        if entry is None or device not in entry.devices:
            return
        entry.seen_ms = now_ms
        until = now + (self.grace_s if grace_s is None else grace_s)
        entry.leaving[device] = (until, entry.devices.pop(device))
        heapq.heappush(self._due, (until, user, device))

    def due(self, now: float, now_ms: int) -> list[Change]:
        """What the grace times that are over change. Call it by `next_due`."""
        changes = []
        while self._due and self._due[0][0] <= now:
            at, user, device = heapq.heappop(self._due)
            entry = self._users.get(user)
            if entry is None or entry.leaving.get(device, (None,))[0] != at:
                continue  # back again, or gone anew with a later time
            del entry.leaving[device]
            if (change := self._update(user, entry, now_ms)) is not None:
                changes.append(change)
            if not entry.devices and not entry.leaving:
                self._forget(user, entry)
        return changes

    def next_due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def _update(self, user: UserId, entry: _User, now_ms: int) -> Change | None:
        aways = [*entry.devices.values(), *(away for _, away in entry.leaving.values())]
        status = Status.OFFLINE if not aways else Status.AWAY if all(aways) else Status.ONLINE
        if status is entry.status:
            return None
        entry.status = status
        entry.v = max(entry.v + 1, now_ms)
        return self._change(user, entry)

    @staticmethod
    def _change(user: UserId, entry: _User) -> Change:
        return Change(user, entry.status, entry.v, entry.seen_ms if entry.status is Status.OFFLINE else None)

    def _forget(self, user: UserId, entry: _User) -> None:
        # Last-seen is in PostgreSQL. Versions run ahead of the clock where changes come faster than milliseconds; so the next one of this
        # user rises above all that were forgotten.
        self._v = max(self._v, entry.v)
        del self._users[user]

    # ---- watching -----------------------------------------------------------------------------------------------------------------

    def watch(self, watcher: Hashable, old: Iterable[UserId], new: Iterable[UserId]) -> None:
        """Replace what a session watches."""
        for user in old:
            watchers = self._watchers.get(user)
            if watchers is not None:
                watchers.discard(watcher)
                if not watchers:
                    del self._watchers[user]
        for user in new:
            self._watchers.setdefault(user, set()).add(watcher)

    def watchers(self, user: UserId) -> Iterable[Hashable]:
        return self._watchers.get(user, ())

    def status(self, user: UserId) -> Change | None:
        """The user's status, or None if nothing is known here: offline, and last-seen is in PostgreSQL."""
        entry = self._users.get(user)
        return None if entry is None else self._change(user, entry)
