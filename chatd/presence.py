"""Who is online, by the sessions of this node and by what other nodes say; and who watches whom.

Pure: `now` (seconds) and `now_ms` are arguments.

    user ── sessions here (device -> away or not) ──┬──► one status ──change──► watchers here
         └─ seats: how other nodes have them ───────┘
              └─ what this node says of them ──► `take_dirty` ──► other nodes (`cluster/presence_sync.py`)

A user is online if any device is, away if all are, offline without one. A device whose session
ended counts as it did for a grace time, so that a quick reconnect does not flap (not to away
either, where another device is idle; nor to offline, where it comes back to another node); `due`
ends it. Each change gets a version that rises (milliseconds, at least one more than the last, and
above all that other nodes said of the user), also over a restart of the node and where the wall
clock is set back: newer replaces older at every watcher.

A single node (no `boot`) is told nothing and says nothing: it pays one empty slot a user. A node
among others keeps what they say of those users alone who are watched or held here; all of one boot
goes at once when its lease has ended. How news and answers that cross are put right:
`core/remote_presence.py`.

What is not here: who *may* watch whom (services; it needs conversations), and last-seen times of
users who are not in memory (store).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Set
from typing import Final, NamedTuple

from chatd.core import remote_presence
from chatd.core.remote_presence import Device, Node, Own, Question, Remote, Roster, Seat, Status, merged
from chatd.ids import DeviceId, UserId

__all__ = ["Change", "Device", "Presence", "Question", "Remote", "Status"]

OPENING_AGAIN_S: Final = 0.25  # a grace time that is over is put off by so much while a session of the user opens
PASSING_AGAIN_S: Final = 0.03  # or while a device that came and left is still to be said
# No node's clock is so far ahead: a version beyond is garbage, and must not lift those of everybody
# here
AHEAD_MS_MAX: Final = 60_000


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


_NO_DEVICES: Final[dict[DeviceId, bool]] = {}  # never written to: of most users who are elsewhere nothing is here
_NO_LEAVING: Final[dict[DeviceId, tuple[float, bool]]] = {}


class _User:
    """A user who is not offline. `status` is over all nodes; `seats` are those of the others."""

    __slots__ = ("devices", "leaving", "seats", "seen_ms", "status", "v")

    def __init__(self, v: int) -> None:
        self.devices = _NO_DEVICES  # device -> away
        self.leaving = _NO_LEAVING  # device whose session ended -> end of its grace time, away
        self.seats: tuple[Seat, ...] = ()
        self.status = Status.OFFLINE
        self.v = v
        self.seen_ms: int | None = None

    @property
    def here(self) -> bool:
        return bool(self.devices or self.leaving)

    def aways(self) -> list[bool]:
        """Of each device here whether it is away."""
        aways = list(self.devices.values())
        if self.leaving:
            aways += [away for _, away in self.leaving.values()]
        return aways


class Presence:
    """The map.

    Methods that can change a status give the Change, or None; the caller tells it to the watchers.

    `boot`: what this node is called among others, another one each time it starts; None: there are
    no others.
    """

    def __init__(self, grace_s: float, boot: str | None = None) -> None:
        self.grace_s = grace_s
        self.boot = boot or ""
        self.mirrored = boot is not None
        self._users: dict[UserId, _User] = {}
        self._watchers: dict[UserId, set[Hashable]] = {}
        self._due: list[tuple[float, UserId, DeviceId]] = []
        self._v = 0  # highest version of the users that are forgotten
        self.ahead_ms = 0  # versions are `now_ms` plus this: it rises where the wall clock goes back (clock.py)
        self._here = 0  # users with a session here, or in its grace time
        self._others = Roster(self.boot)
        self._own = Own()
        self._held: set[UserId] = set()
        self._attaching: dict[UserId, dict[DeviceId, int]] = {}  # sessions whose hello is under way: since when

    def __len__(self) -> int:
        """Users who are here."""
        return self._here

    # ---- sessions --------------------------------------------------------------------------------

    def attach(self, user: UserId, device: DeviceId, steady_ms: int) -> int:
        """A session takes the device's place; its hello is under way.

        Gives since when: later than any session of the device that is known.

        What other nodes say from now on is compared with this time, and not with that of the
        session before it. `connect` or `disconnect` follows.
        """
        if not self.mirrored:
            return steady_ms
        entry = self._users.get(user)
        known = [one.attached_ms for one in (*self._mine(user), *self._own[user].devices) if one.id == device]
        known += [
            one.attached_ms
            for seat in (entry.seats if entry is not None else ())
            for one in seat.devices
            if one.id == device
        ]
        at = max([steady_ms, *(min(one + 1, remote_presence.V_MAX) for one in known)])
        self._attaching.setdefault(user, {})[device] = at
        return at

    def _attached(self, user: UserId, device: DeviceId) -> int | None:
        """Its hello is over."""
        attaching = self._attaching.get(user)
        if attaching is None:
            return None
        at = attaching.pop(device, None)
        if not attaching:
            del self._attaching[user]
        return at

    def connect(self, user: UserId, device: DeviceId, away: bool, now_ms: int) -> Change | None:
        """A session has said hello, or tells that its device is idle or not.

        Once the change is told, ask for `displaced` and `surplus`: the same device may have come to
        another node meanwhile.
        """
        entry = self._users.get(user)
        if entry is None:
            entry = self._users[user] = _User(self._v)
        if not entry.devices:
            if not entry.leaving:
                self._here += 1
            if entry.devices is _NO_DEVICES:
                entry.devices = {}
        entry.devices[device] = away
        if entry.leaving:
            entry.leaving.pop(device, None)
        change = self._update(user, entry, now_ms)
        if self.mirrored:
            devices = self._own.came(user, device, now_ms, self._attached(user, device))
            self._say(user, entry, devices, now_ms, change is not None)
        return change

    def disconnect(self, user: UserId, device: DeviceId, now: float, now_ms: int, grace_s: float | None = None) -> None:
        """A session ended. The status stays as it is until the grace time is over."""
        self._attached(user, device)
        entry = self._users.get(user)
        if entry is None or device not in entry.devices:
            return
        entry.seen_ms = now_ms
        until = now + (self.grace_s if grace_s is None else grace_s)
        if entry.leaving is _NO_LEAVING:
            entry.leaving = {}
        entry.leaving[device] = (until, entry.devices.pop(device))
        heapq.heappush(self._due, (until, user, device))
        if self.mirrored:
            self._say(user, entry, self._own.left(user, device, now), now_ms, False)

    def due(self, now: float, now_ms: int, is_opening: Callable[[UserId], bool] = lambda user: False) -> list[Change]:
        """What the grace times that are over change. Call it by `next_due`.

        None ends while a session of the user `is_opening`, which may take long, or while a device
        that came and left is still to be said.
        """
        changes = []
        while self._due and self._due[0][0] <= now:
            at, user, device = heapq.heappop(self._due)
            entry = self._users.get(user)
            if entry is None or entry.leaving.get(device, (None,))[0] != at:
                continue  # back again, or gone anew with a later time
            if (
                again_s := OPENING_AGAIN_S
                if is_opening(user)
                else PASSING_AGAIN_S
                if self._own.is_passing(user, now)
                else 0.0
            ):
                entry.leaving[device] = (now + again_s, entry.leaving[device][1])
                heapq.heappush(self._due, (now + again_s, user, device))
                continue
            del entry.leaving[device]
            if (change := self._update(user, entry, now_ms)) is not None:
                changes.append(change)
            if not entry.here:
                self._here -= 1
            if self.mirrored:
                self._say(user, entry, self._own[user].devices if entry.here else (), now_ms, change is not None)
                self._release(user)
            if not entry.here and not entry.seats:
                self._forget(user, entry)
        return changes

    def clock_stepped(self, ahead_ms: int, now_ms: int) -> None:
        """The wall clock was set.

        Versions run `ahead_ms` before it from now on; nobody was last seen in the future.
        """
        self.ahead_ms = ahead_ms
        for entry in self._users.values():
            if entry.seen_ms is not None and entry.seen_ms > now_ms:
                entry.seen_ms = now_ms

    def shift(self, by_ms: int, now_ms: int) -> None:
        """The steady time of this node was off by so much: what was stamped with it is moved."""
        for attaching in self._attaching.values():
            for device, at in attaching.items():
                attaching[device] = max(0, at + by_ms)
        for user in list(self._own.keys()):
            if (entry := self._users.get(user)) is not None and (devices := self._own[user].devices):
                moved = [
                    Device(one.id, max(0, one.attached_ms + by_ms), max(0, one.active_ms + by_ms)) for one in devices
                ]
                self._say(user, entry, tuple(moved), now_ms, False)

    def told_v(self, now_ms: int) -> int:
        """The version of a status that is told without a change: above all that was told before,
        below whatever happens next.
        """
        return now_ms + self.ahead_ms - 1

    def next_due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def _update(self, user: UserId, entry: _User, now_ms: int) -> Change | None:
        aways = entry.aways()
        if entry.seats:
            aways += [seat.status is Status.AWAY for seat in entry.seats]
        status = merged(aways)
        if status is entry.status:
            return None
        entry.status = status
        entry.v = max(entry.v + 1, now_ms + self.ahead_ms)
        return self._change(user, entry)

    @staticmethod
    def _change(user: UserId, entry: _User) -> Change:
        return Change(user, entry.status, entry.v, entry.seen_ms if entry.status is Status.OFFLINE else None)

    def _forget(self, user: UserId, entry: _User) -> None:
        # Last-seen is in PostgreSQL. Versions run ahead of the clock where changes come faster than
        # milliseconds; so the next one of this user rises above all that were forgotten.
        self._v = max(self._v, entry.v)
        self._users.pop(user, None)

    # ---- watching --------------------------------------------------------------------------------

    def watch(self, watcher: Hashable, old: Iterable[UserId], new: Iterable[UserId]) -> list[UserId]:
        """Replace what a session watches.

        Gives those of whom nothing was kept until now: other nodes are to be asked about them.
        """
        names = dict.fromkeys(new)
        unknown: list[UserId] = []
        for user in names:
            watchers = self._watchers.get(user)
            if watchers is None:
                if self.mirrored and not self.keeps(user):
                    unknown.append(user)
                watchers = self._watchers[user] = set()
            watchers.add(watcher)
        for user in old:
            watchers = None if user in names else self._watchers.get(user)
            if watchers is not None:
                watchers.discard(watcher)
                if not watchers:
                    del self._watchers[user]
                    if self.mirrored:
                        self._release(user)
        return unknown

    def watchers(self, user: UserId) -> Iterable[Hashable]:
        return self._watchers.get(user, ())

    def status(self, user: UserId) -> Change | None:
        """The user's status, or None if nothing is known here: offline, and last-seen is in
        PostgreSQL.
        """
        entry = self._users.get(user)
        return None if entry is None else self._change(user, entry)

    # ---- whom to keep ----------------------------------------------------------------------------

    def hold(self, user: UserId) -> bool:
        """The services hold the user: where else they are, and with which devices, is wanted.

        True if other nodes are to be asked. Idempotent.
        """
        if not self.mirrored or user in self._held:
            return False
        self._held.add(user)
        return True

    def unhold(self, user: UserId) -> None:
        """The services let go of the user. Idempotent."""
        if self.mirrored:
            self._held.discard(user)
            self._release(user)

    def keeps(self, user: UserId) -> bool:
        """Whether what other nodes say of the user is kept: watched, held, or here."""
        return (
            user in self._watchers
            or user in self._held
            or ((entry := self._users.get(user)) is not None and entry.here)
        )

    def wanted(self) -> Set[UserId]:
        """All users who are kept, as it is now: whom to ask a boot about."""
        return self._watchers.keys() | self._held | self._own.keys()

    def _release(self, user: UserId) -> None:
        """Drop what others said of a user whom nobody wants any more."""
        if self.keeps(user):
            return
        self._others.drop(user)
        if (entry := self._users.get(user)) is not None:
            entry.seats = ()
            self._forget(user, entry)

    # ---- other nodes -----------------------------------------------------------------------------

    def remote(self, boot: str, user: UserId, said: Remote, now_ms: int) -> Change | None:
        """A node says how a user is there: one word of its stream.

        Older ones than known, and those of a dead boot, are passed over.
        """
        kept = self.keeps(user)
        # Nothing is kept of most users that are spoken of; a boot without kept users and questions
        # is not worth a node.
        node = self._others.believed(boot) if kept else self._others.get(boot)
        if node is None or (kept and said.v <= node.told.get(user, -1)):
            return None
        node.spoke(user, said.v)
        return self._hear(node, user, said, now_ms) if kept else None

    def asked(self, boot: str) -> Question:
        """Call it before a boot's hash is read, and give it to `resync` with the answer.

        A boot thought dead is believed again from now on.
        """
        return self._others.ask(boot)

    def resync(self, boot: str, answer: Mapping[UserId, Remote | None], asked: Question, now_ms: int) -> list[Change]:
        """What a boot's hash has of the users asked about, None for those who are not in it.

        Users whose field could not be read are left out.

        A word of the stream that came after the question may be older or newer than the answer: the
        higher version wins. A user who is not in the hash is offline there, unless the stream spoke
        of them since, or a later question was answered first. If the answer was the newer one, that
        will be heard from the stream; `core/remote_presence.py` says why nothing can be missed.
        """
        node = self._others.get(boot)
        if node is None or not node.answered(asked, answer):
            return []  # it died meanwhile
        changes = []
        for user, said in answer.items():
            if not self.keeps(user):
                continue
            since = asked.told.get(user, -1)
            change = None
            if said is None:
                if since < 0:
                    change = self._silent(node, user, now_ms)
            elif said.v > since and said.v >= node.told.get(user, -1):
                change = self._hear(node, user, said, now_ms)
            if change is not None:
                changes.append(change)
        return changes

    def forget_boot(self, boot: str, now_ms: int, seen_ms: int | None) -> list[Change]:
        """The node is dead: its users are not there any more, last seen at `seen_ms`.

        Costs by the users kept of it.
        """
        node = self._others.bury(boot)
        changes = []
        for user in () if node is None else node.told:
            entry = self._users.get(user)
            if node is not None and entry is not None and entry.seats:
                if seen_ms is not None:
                    entry.seen_ms = max(entry.seen_ms or 0, seen_ms)
                if (change := self._vacate(node, user, entry, now_ms)) is not None:
                    changes.append(change)
        return changes

    def _hear(self, node: Node, user: UserId, said: Remote, now_ms: int) -> Change | None:
        node.told[user] = said.v
        v = min(said.v, now_ms + self.ahead_ms + AHEAD_MS_MAX)
        entry = self._users.get(user)
        if entry is None:
            if not said.here:
                self._v = max(self._v, v)
                return None
            entry = self._users[user] = _User(self._v)
        if said.here:
            # Devices are compared with those that are here: of users who are only watched they
            # would be dead weight.
            entry.seats = node.seat(entry.seats, said, said.devices if user in self._held or entry.here else ())
            change = self._update(user, entry, max(now_ms, v - self.ahead_ms))
        else:
            if said.seen_ms is not None:
                entry.seen_ms = max(entry.seen_ms or 0, min(said.seen_ms, now_ms))
            change = self._vacate(node, user, entry, max(now_ms, v - self.ahead_ms))
        entry.v = max(entry.v, v)
        return change

    def _silent(self, node: Node, user: UserId, now_ms: int) -> Change | None:
        """The node does not have the user; the word that they left was lost, and with it when that
        was.
        """
        entry = self._users.get(user)
        if entry is None:
            return None
        if not entry.here:
            entry.seen_ms = None
        return self._vacate(node, user, entry, now_ms)

    def _vacate(self, node: Node, user: UserId, entry: _User, now_ms: int) -> Change | None:
        entry.seats = node.unseat(entry.seats)
        change = self._update(user, entry, now_ms)
        if not entry.seats and not entry.here:
            self._forget(user, entry)
        return change

    def boots(self) -> list[str]:
        """All boots of which something is kept or asked: one that has no lease is to be forgotten."""
        return self._others.boots()

    def known(self, boot: str) -> list[UserId]:
        """The users kept here that this boot has."""
        node = self._others.get(boot)
        seated = (
            (user, entry.seats)
            for user in (() if node is None else node.told)
            if (entry := self._users.get(user)) is not None
        )
        return [user for user, seats in seated if any(seat.boot == boot for seat in seats)]

    # ---- devices over nodes ----------------------------------------------------------------------

    def elsewhere(self, user: UserId) -> bool:
        """Whether another node has this user not offline, as far as is known: right for kept users
        once the nodes were asked.
        """
        return (entry := self._users.get(user)) is not None and entry.seats != ()

    def displaced(self, user: UserId) -> list[DeviceId]:
        """The user's devices here that were attached elsewhere later: to be closed as replaced."""
        entry = self._users.get(user)
        return (
            []
            if entry is None or not entry.seats
            else remote_presence.displaced(self.boot, self._mine(user), entry.seats)
        )

    def surplus(self, user: UserId, devices_max: int) -> list[DeviceId]:
        """The user's devices here to be closed because there are too many over all nodes, and they
        are the longest idle.
        """
        entry = self._users.get(user)
        if entry is None or not entry.seats:
            return []
        live = self._own.live(user)
        attaching = self._attaching.get(user)
        # A device whose next session is under way is not idle; one that is new counts once its
        # hello is over
        if attaching:
            live = tuple(
                [
                    one if (at := attaching.get(one.id)) is None else Device(one.id, at, max(at, one.active_ms))
                    for one in live
                ]
            )
        return remote_presence.surplus(self.boot, live, entry.seats, devices_max)

    def _mine(self, user: UserId) -> tuple[Device, ...]:
        """The user's devices here, those whose hello is under way included: each as its newest
        session.
        """
        live = self._own.live(user)
        attaching = self._attaching.get(user)
        if not attaching:
            return live
        return (
            *(one for one in live if one.id not in attaching),
            *(Device(id, at, at) for id, at in attaching.items()),
        )

    # ---- what this node says ---------------------------------------------------------------------

    def on_dirty(self, call: Callable[[], None]) -> None:
        """Call this whenever there is something to say after all was taken."""
        self._own.on_dirty = call

    def take_dirty(self, limit: int) -> list[tuple[UserId, Remote]]:
        """What is to be said, those waiting longest first.

        If it cannot be sent, say all anew (`local_entries`): it is not dirty any more.
        """
        taken = self._own.take(limit)
        for user, devices in self._own.passed(user for user, _ in taken):
            if (entry := self._users.get(user)) is not None:
                self._say(user, entry, devices, 0, False)
        return taken

    def local_entries(self) -> Iterator[tuple[UserId, Remote]]:
        """All users who are here, each as it stands when its turn comes; the map may change
        meanwhile, and who comes meanwhile is dirty.
        """
        return self._own.entries()

    def touch(self, user: UserId, device: DeviceId, active_ms: int) -> None:
        """A device here did something, at `active_ms` of steady time: to be said where `surplus`
        may compare it.
        """
        if (entry := self._users.get(user)) is not None and self.mirrored:
            devices = self._own[user].devices
            moved = [
                one._replace(active_ms=max(active_ms, one.active_ms)) if one.id == device else one for one in devices
            ]
            self._say(user, entry, tuple(moved), 0, False)

    def bump(self, now_ms: int) -> None:
        """This node was thought dead: all its users are to be said anew, above what was told of
        them meanwhile.
        """
        for user in list(self._own.keys()):
            said, entry = self._own[user], self._users.get(user)
            v = max(now_ms + self.ahead_ms, 1 + (said.v if entry is None else entry.v))
            if entry is None:
                self._v = max(self._v, v)
            else:
                entry.v = v
            self._own[user] = said._replace(v=v)

    def _say(self, user: UserId, entry: _User, devices: tuple[Device, ...], now_ms: int, raised: bool) -> None:
        """Note what other nodes are to hear of the user, if it is news.

        `raised`: its version was, for the same news; so all are told the same.
        """
        status = merged(entry.aways())
        old = self._own[user]
        if status is old.status and devices == old.devices:
            return
        if not raised:
            entry.v = max(entry.v + 1, now_ms + self.ahead_ms)
        self._own[user] = Remote(status, entry.v, entry.seen_ms if status is Status.OFFLINE else None, devices)
