"""Who is online, by the sessions of this node and by what remote nodes say; and who watches whom.

Pure: `now` (seconds) and `now_ms` (since 1970) are arguments.

    user ── sessions here (device -> away or not) ──┬──► one status ──change──► watchers here
         └─ seats: what remote nodes say of them ───┘
              └─ what this node publishes ──► `take_dirty` ──► remote nodes

A device whose session ended counts as it did for a grace time, so that a quick reconnect does not
flap: not to away where another device is idle, nor to offline where the device reconnects to
another node. `due` ends the grace time. Statuses and their versions: `core/user_status.py`.

A single node (no `incarnation`) neither publishes nor hears anything: that costs one empty slot a
user. A node among others keeps what they say only of users who are watched or held here, and drops
all of one incarnation at once when its lease has ended. `core/remote_presence.py` puts news and
answers in order where they cross; `cluster/presence_sync.py` carries them.

Not here: who *may* watch whom (chat; it needs conversations), and last-seen times of users who are
not in memory (store).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Set
from typing import Final

from chatd.core import devices
from chatd.core.devices import Attaching
from chatd.core.remote_presence import HashRead, NodePresence, Published, Roster
from chatd.core.user_status import Change, Device, Remote, Status, StatusTable, UserStatus, merged
from chatd.core.watchers import Watchers
from chatd.ids import DeviceId, UserId

__all__ = ["Change", "Device", "HashRead", "Presence", "Remote", "Status"]

OPENING_AGAIN_S: Final = 0.25  # by this much a grace time is extended while a session of the user opens
PASSING_AGAIN_S: Final = 0.03  # or while a device that arrived and left is still to be published
# No node's clock is this far ahead: a version beyond it is garbage and must not lift other users'.
AHEAD_MS_MAX: Final = 60_000


class Presence:
    """The map of users, their sessions here and their watchers.

    Methods that can change a status give the Change, or None; the caller sends it to the watchers.
    `incarnation`: the name of this life of the node among others, a new one at each start; None:
    there are no other nodes.
    """

    def __init__(self, grace_s: float, incarnation: str | None = None) -> None:
        self.grace_s = grace_s
        self.incarnation = incarnation or ""
        self.mirrored = incarnation is not None
        self._statuses = StatusTable()
        self._watchers = Watchers()
        self._due: list[tuple[float, UserId, DeviceId]] = []
        self._here = 0  # users with a session here, or in its grace time
        self._others = Roster(self.incarnation)
        self._own = Published()
        self._held: set[UserId] = set()
        self._released: set[UserId] = set()  # since `take_released`
        self._attaching = Attaching()

    def __len__(self) -> int:
        """How many users are here."""
        return self._here

    # ---- sessions --------------------------------------------------------------------------------

    def attach(self, user: UserId, device: DeviceId, steady_ms: int) -> int:
        """A session takes the device's place; its hello is under way.

        Gives the session's time, which is later than that of any known session of the device. Call
        `connect` or `disconnect` next.
        """
        if not self.mirrored:
            return steady_ms
        entry = self._statuses.get(user)
        known = [*self._mine(user), *self._own[user].devices]
        for seat in () if entry is None else entry.seats:
            known += seat.devices
        return self._attaching.begin(user, device, steady_ms, known)

    def connect(self, user: UserId, device: DeviceId, away: bool, now_ms: int) -> Change | None:
        """A session has said hello, or says whether its device is idle.

        Once the change is sent, ask for `displaced` and `surplus`: the same device may be on
        another node by now.
        """
        entry = self._statuses.get(user) or self._statuses.add(user)
        if entry.arrive(device, away):
            self._here += 1
        change = self._statuses.update(user, entry, now_ms)
        if self.mirrored:
            mine = self._own.arrived(user, device, now_ms, self._attaching.end(user, device))
            self._publish(user, entry, mine, now_ms, change is not None)
        return change

    def disconnect(self, user: UserId, device: DeviceId, now: float, now_ms: int, grace_s: float | None = None) -> None:
        """A session ended. The status stays as it is until the grace time is over."""
        self._attaching.end(user, device)
        entry = self._statuses.get(user)
        if entry is None or device not in entry.devices:
            return
        entry.seen_ms = now_ms
        until = now + (self.grace_s if grace_s is None else grace_s)
        entry.leave(device, until)
        heapq.heappush(self._due, (until, user, device))
        if self.mirrored:
            self._publish(user, entry, self._own.left(user, device, now), now_ms, False)

    def due(self, now: float, now_ms: int, is_opening: Callable[[UserId], bool] = lambda user: False) -> list[Change]:
        """End the grace times that are over; gives what that changes. Call it at `next_due`.

        A grace time is extended while a session of the user `is_opening`, which may take long, and
        while a device that arrived and left is still to be published.
        """
        changes = []
        while self._due and self._due[0][0] <= now:
            at, user, device = heapq.heappop(self._due)
            entry = self._statuses.get(user)
            if entry is None or entry.leaving.get(device, (None,))[0] != at:
                continue  # the device is back, or has left again with a later time
            if is_opening(user):
                self._extend_grace(user, entry, device, now + OPENING_AGAIN_S)
                continue
            if self._own.is_passing(user, now):
                self._extend_grace(user, entry, device, now + PASSING_AGAIN_S)
                continue
            del entry.leaving[device]
            if (change := self._statuses.update(user, entry, now_ms)) is not None:
                changes.append(change)
            if not entry.here:
                self._here -= 1
            if self.mirrored:
                mine = self._own[user].devices if entry.here else ()
                self._publish(user, entry, mine, now_ms, change is not None)
                self._release(user)
            if not entry.here and not entry.seats:
                self._statuses.forget(user, entry)
        return changes

    def _extend_grace(self, user: UserId, entry: UserStatus, device: DeviceId, until: float) -> None:
        entry.leaving[device] = (until, entry.leaving[device][1])
        heapq.heappush(self._due, (until, user, device))

    def next_due(self) -> float | None:
        """When to call `due` next, in seconds; None if no grace time runs."""
        return self._due[0][0] if self._due else None

    # ---- clocks ----------------------------------------------------------------------------------

    def clock_stepped(self, ahead_ms: int, now_ms: int) -> None:
        """The wall clock was set: versions run `ahead_ms` ahead of it from now on."""
        self._statuses.clock_stepped(ahead_ms, now_ms)

    def shift(self, by_ms: int, now_ms: int) -> None:
        """The steady time of this node was off by so much: move the times made from it."""
        self._attaching.shift(by_ms)
        for user in list(self._own.keys()):
            if (entry := self._statuses.get(user)) is not None and (mine := self._own[user].devices):
                moved = [Device(one.id, max(0, one.attached_ms + by_ms), max(0, one.active_ms + by_ms)) for one in mine]
                self._publish(user, entry, tuple(moved), now_ms, False)

    def unchanged_v(self, now_ms: int) -> int:
        """The version of a status that is sent without a change.

        With the user's last one, if that is larger, it is above all that was sent before, and below
        that of the next change.
        """
        return now_ms + self._statuses.ahead_ms - 1

    def unknown_v(self, now_ms: int) -> int:
        """The version of a user of whom nothing is known here: the same promise.

        The user may have been known until now, with a version that ran ahead of this clock.
        """
        return max(self.unchanged_v(now_ms), self._statuses.forgotten_v)

    # ---- watching --------------------------------------------------------------------------------

    def watch(self, watcher: Hashable, old: Iterable[UserId], new: Iterable[UserId]) -> list[UserId]:
        """Replace what a session watches.

        Gives the users of whom nothing was kept until now: the caller asks remote nodes about them.
        """
        changed = self._watchers.replace(watcher, old, new)
        if not self.mirrored:
            return []
        for user in changed.last:
            self._release(user)
        return [user for user in changed.first if not self._is_held_or_here(user)]

    def watchers(self, user: UserId) -> Iterable[Hashable]:
        return self._watchers.of(user)

    def status(self, user: UserId) -> Change | None:
        """The user's status.

        None if nothing is known here: the user is offline, and last-seen is in PostgreSQL.
        """
        entry = self._statuses.get(user)
        return None if entry is None else entry.change(user)

    # ---- which users are kept --------------------------------------------------------------------

    def hold(self, user: UserId) -> bool:
        """The registry holds the user: keep where else they are, and with which devices.

        True if the caller must ask remote nodes about the user. Idempotent.
        """
        if not self.mirrored or user in self._held:
            return False
        self._held.add(user)
        return True

    def unhold(self, user: UserId) -> None:
        """The registry released the user. Idempotent."""
        if self.mirrored:
            self._held.discard(user)
            self._release(user)

    def keeps(self, user: UserId) -> bool:
        """True if words of remote nodes about the user are kept: watched, held, or here."""
        return user in self._watchers or self._is_held_or_here(user)

    def _is_held_or_here(self, user: UserId) -> bool:
        return user in self._held or ((entry := self._statuses.get(user)) is not None and entry.here)

    def kept_users(self) -> Set[UserId]:
        """All users who are kept now: those to ask a remote node about."""
        return self._watchers.users() | self._held | self._own.keys()

    def take_released(self) -> set[UserId]:
        """The users who were let go since the last call; some may be kept again."""
        released, self._released = self._released, set()
        return released

    def _release(self, user: UserId) -> None:
        """Drop the words of remote nodes about a user who is not kept any more."""
        if self.keeps(user):
            return
        self._released.add(user)
        self._others.drop(user)
        if (entry := self._statuses.get(user)) is not None:
            entry.seats = ()
            self._statuses.forget(user, entry)

    # ---- remote nodes ----------------------------------------------------------------------------

    def remote(self, incarnation: str, user: UserId, said: Remote, now_ms: int) -> Change | None:
        """A word of a remote node's stream: how a user is there.

        Words older than what is known, and those of a dead incarnation, are ignored.
        """
        kept = self.keeps(user)
        # Nothing is kept of most users who are mentioned. An incarnation without kept users and
        # reads needs no object.
        node = self._others.believed(incarnation) if kept else self._others.get(incarnation)
        if node is None or (kept and said.v <= node.versions.get(user, -1)):
            return None
        node.mentioned(user, said.v)
        return self._hear(node, user, said, now_ms) if kept else None

    def begin_read(self, incarnation: str) -> HashRead:
        """Call it before an incarnation's hash is read; `resync` takes the result and the answer.

        A dead incarnation counts as alive again from now on.
        """
        return self._others.read(incarnation)

    def resync(
        self, incarnation: str, answer: Mapping[UserId, Remote | None], read: HashRead, now_ms: int
    ) -> list[Change]:
        """As `resync_all` of one hash: None for users whom it lacks, without unreadable ones."""
        found = {user: {incarnation: said} for user, said in answer.items() if said is not None}
        return self.resync_all(answer, found, {incarnation: read}, now_ms)

    def resync_all(
        self, users: Collection[UserId], found: Mapping[UserId, Mapping[str, Remote]], reads: Mapping[str, HashRead],
        now_ms: int,
    ) -> list[Change]:  # fmt: skip
        """The answer of a read of the hashes in `reads`: who of the users asked about is where.

        Of a word that the stream brought during the read the higher version wins. A user who is
        not in a hash is offline there, unless the stream mentioned them since, or a later read was
        answered first; if the answer was newer, the stream will say so (core/remote_presence.py).
        """
        nodes = self._others.answered(reads, users)
        changes: list[Change | None] = []
        for user in filter(self.keeps, users):
            there, entry = found.get(user, {}), self._statuses.get(user)
            for seat in () if entry is None else entry.seats:
                node = nodes.get(seat.incarnation)
                if node is not None and seat.incarnation not in there and user not in reads[node.incarnation].heard:
                    changes.append(self._missing(node, user, now_ms))
            for incarnation, said in there.items():
                node = nodes.get(incarnation)
                if node is not None and said.v > reads[incarnation].heard.get(user, -1):
                    changes.append(self._hear(node, user, said, now_ms) if node.is_news(user, said) else None)
        return [change for change in changes if change is not None]

    def forget_node(self, incarnation: str, now_ms: int, seen_ms: int | None) -> list[Change]:
        """The incarnation is dead: its users are no longer there, last seen at `seen_ms`.

        The cost depends on the number of its kept users.
        """
        node = self._others.bury(incarnation)
        changes = []
        for user in () if node is None else node.versions:
            entry = self._statuses.get(user)
            if node is not None and entry is not None and entry.seats:
                if seen_ms is not None:
                    entry.seen_ms = max(entry.seen_ms or 0, seen_ms)
                if (change := self._vacate(node, user, entry, now_ms)) is not None:
                    changes.append(change)
        return changes

    def _hear(self, node: NodePresence, user: UserId, said: Remote, now_ms: int) -> Change | None:
        node.versions[user] = said.v
        ahead_ms = self._statuses.ahead_ms
        v = min(said.v, now_ms + ahead_ms + AHEAD_MS_MAX)
        entry = self._statuses.get(user)
        if entry is None:
            if not said.here:
                self._statuses.raise_forgotten(v)
                return None
            entry = self._statuses.add(user)
        if said.here:
            # Devices are compared with those that are here: those of users who are only watched
            # need not be kept.
            entry.seats = node.seat(entry.seats, said, said.devices if user in self._held or entry.here else ())
            change = self._statuses.update(user, entry, max(now_ms, v - ahead_ms))
        else:
            if said.seen_ms is not None:
                entry.seen_ms = max(entry.seen_ms or 0, min(said.seen_ms, now_ms))
            change = self._vacate(node, user, entry, max(now_ms, v - ahead_ms))
        entry.v = max(entry.v, v)
        return change

    def _missing(self, node: NodePresence, user: UserId, now_ms: int) -> Change | None:
        """The node does not have the user: its word that they left, and when, was lost."""
        entry = self._statuses.get(user)
        if entry is None:
            return None
        if not entry.here:
            entry.seen_ms = None
        return self._vacate(node, user, entry, now_ms)

    def _vacate(self, node: NodePresence, user: UserId, entry: UserStatus, now_ms: int) -> Change | None:
        entry.seats = node.unseat(entry.seats)
        change = self._statuses.update(user, entry, now_ms)
        if not entry.seats and not entry.here:
            self._statuses.forget(user, entry)
        return change

    def incarnations(self) -> list[str]:
        """All incarnations of which something is kept or read; forget those without a lease."""
        return self._others.incarnations()

    def users_of(self, incarnation: str) -> list[UserId]:
        """The users kept here who are on this remote node."""
        node = self._others.get(incarnation)
        seated = (
            (user, entry.seats)
            for user in (() if node is None else node.versions)
            if (entry := self._statuses.get(user)) is not None
        )
        return [user for user, seats in seated if any(seat.incarnation == incarnation for seat in seats)]

    # ---- devices over nodes ----------------------------------------------------------------------

    def elsewhere(self, user: UserId) -> bool:
        """True if a remote node has the user; known of kept users once the nodes were asked."""
        return (entry := self._statuses.get(user)) is not None and entry.seats != ()

    def displaced(self, user: UserId) -> list[DeviceId]:
        """The user's devices here that were attached elsewhere later: close them as replaced."""
        entry = self._statuses.get(user)
        if entry is None or not entry.seats:
            return []
        return devices.displaced(self.incarnation, self._mine(user), entry.seats)

    def surplus(self, user: UserId, devices_max: int) -> list[DeviceId]:
        """The user's devices here to close: the longest idle of too many over all nodes."""
        entry = self._statuses.get(user)
        if entry is None or not entry.seats:
            return []
        live = self._attaching.as_active(user, self._own.live(user))
        return devices.surplus(self.incarnation, live, entry.seats, devices_max)

    def _mine(self, user: UserId) -> tuple[Device, ...]:
        """The user's devices here, each as its newest session, which may still be opening."""
        return self._attaching.with_newest(user, self._own.live(user))

    # ---- what this node publishes ----------------------------------------------------------------

    def on_dirty(self, call: Callable[[], None]) -> None:
        """Call this whenever there is something to publish after all was taken."""
        self._own.on_dirty = call

    def take_dirty(self, limit: int) -> list[tuple[UserId, Remote]]:
        """What is to be published, at most `limit` users, longest waiting first.

        If it cannot be sent, publish all again (`local_entries`): it is not dirty any more.
        """
        taken = self._own.take(limit)
        for user, mine in self._own.passed(user for user, _ in taken):
            if (entry := self._statuses.get(user)) is not None:
                self._publish(user, entry, mine, 0, False)
        return taken

    def local_entries(self) -> Iterator[tuple[UserId, Remote]]:
        """All users who are here, each as it is when its turn comes.

        The map may change between two of them; a user who arrives during the walk is dirty.
        """
        return self._own.entries()

    def touch(self, user: UserId, device: DeviceId, active_ms: int) -> None:
        """A device here was active, at `active_ms` of steady time: publish it for `surplus`."""
        if (entry := self._statuses.get(user)) is not None and self.mirrored:
            mine = self._own[user].devices
            moved = [one._replace(active_ms=max(active_ms, one.active_ms)) if one.id == device else one for one in mine]
            self._publish(user, entry, tuple(moved), 0, False)

    def republish(self, now_ms: int) -> None:
        """Publish all users again, in higher versions: this node was thought dead."""
        for user in list(self._own.keys()):
            said, entry = self._own[user], self._statuses.get(user)
            v = max(now_ms + self._statuses.ahead_ms, 1 + (said.v if entry is None else entry.v))
            if entry is None:
                self._statuses.raise_forgotten(v)
            else:
                entry.v = v
            self._own[user] = said._replace(v=v)

    def _publish(self, user: UserId, entry: UserStatus, mine: tuple[Device, ...], now_ms: int, raised: bool) -> None:
        """Note what remote nodes must hear of the user, if it differs from what they heard last.

        `raised`: the version has risen for this change already, so all get the same version.
        """
        status = merged(entry.aways())
        old = self._own[user]
        if status is old.status and mine == old.devices:
            return
        if not raised:
            entry.v = self._statuses.next_v(entry, now_ms)
        self._own[user] = Remote(status, entry.v, entry.seen_ms if status is Status.OFFLINE else None, mine)
