"""Presence over several nodes: what this node publishes, and what remote nodes have said. Pure.

    incarnation (one life of a node) ── user ──► Remote: status, v, last seen, devices

Each node publishes how every user who is there is *there*, in two ways: as a stream of batches, and
as a hash that can be read at any time. The stream is in order and may lose batches. The hash is
right, but a read takes time, during which the stream goes on. `Roster` combines the two: for each
incarnation it knows the newest version heard per kept user (offline ones too, so that an older word
is recognised), and the reads of its hash that are under way.

"Never back to something older" and "nothing lost for good" rest on this contract with the caller:
1. A node writes its hash before it sends a batch to the stream, or in one step with it. So a read
   that begins after a batch arrived includes that batch.
2. Batches of an incarnation reach `Presence.remote` in order, none twice (they are numbered). If a
   batch is missing, or a number announced elsewhere never arrives, a read of that incarnation's
   hash begins after the hole was seen.
3. The hash is read from the primary, after `Presence.begin_read` was called for it.

So an answer is at least as new as all that was heard before its read began. If the stream mentions
a user during the read, the stream wins for that user: whatever the answer has beyond that word is
still to arrive in the stream, or its loss will show and cause another read. Of two answers about a
user, that of the later read wins, in whatever order they arrive. `HashRead` keeps just this: which
users were mentioned since the read began.

An incarnation whose lease ended is dead: late batches of it are ignored until its hash is read
again, which happens when its lease is renewed.

Not here: the status over all nodes and the watchers (`presence.py`), bytes
(`wire/presence_codec.py`), leases and Redis (`cluster/presence_sync.py`). Rejected: deciding a
missing user ("not in the hash") by the highest version heard before the read. Versions rise per
user and not over all users of an incarnation, so a user who arrived during the read could be below
it and would stay offline for good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, KeysView, Mapping
from itertools import islice
from typing import Final
from weakref import ref

from chatd.core.devices import attached, detached
from chatd.core.user_status import NOTHING_SAID, V_MAX, Device, Remote, Seat, Status
from chatd.ids import DeviceId, UserId

# Remote nodes of which something is kept: far more than one Redis carries, and a bound on forged
# ones.
NODES_MAX: Final = 1_000
PASSING_S: Final = 0.2  # news is taken for publishing every 20 ms
DEAD_MAX: Final = 1_000  # newest dead incarnations remembered: late batches of one arrive within seconds


class HashRead:
    """A read of an incarnation's hash that is under way.

    `heard`: users whom the stream mentioned since the read began, with the version. The caller
    keeps the object until the answer is there. If the read fails, dropping the object ends it.
    """

    __slots__ = ("__weakref__", "heard", "incarnation")

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.heard: dict[UserId, int] = {}


class NodePresence:
    """One incarnation of a remote node: the version last heard of each kept user, and its reads.

    `reads`: the reads of its hash that are under way, in the order begun.
    """

    __slots__ = ("incarnation", "lone", "reads", "versions")

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.versions: dict[UserId, int] = {}
        self.reads: list[ref[HashRead]] = []
        # Most kept users are only watched and are on one node: they share these seats.
        self.lone = {status: (Seat(incarnation, status, ()),) for status in (Status.ONLINE, Status.AWAY)}

    def begin(self, read: HashRead) -> None:
        self.reads.append(ref(read, self.reads.remove))

    def mentioned(self, user: UserId, v: int) -> None:
        """The stream mentioned a user: note it in the reads under way."""
        for one in self.reads:
            if (read := one()) is not None:
                read.heard[user] = max(read.heard.get(user, -1), v)

    def answered(self, read: HashRead, users: Iterable[UserId]) -> bool:
        """End a read; answers to earlier reads no longer count for these users.

        False if the read is not one of this incarnation's since it was last buried.
        """
        at = next((n for n, one in enumerate(self.reads) if one() is read), None)
        if at is None:
            return False
        for one in self.reads[:at]:
            if (earlier := one()) is not None:
                earlier.heard.update(dict.fromkeys(users, V_MAX))
        del self.reads[at]
        return True

    def is_news(self, user: UserId, said: Remote) -> bool:
        """Whether an answer is at least as new as what was heard of the user."""
        return said.v >= self.versions.get(user, -1)

    def seat(self, seats: tuple[Seat, ...], said: Remote, devices: tuple[Device, ...]) -> tuple[Seat, ...]:
        """The seats with this node's replaced by what it says now, which is not offline.

        `devices`: those to keep in the seat.
        """
        if not seats or (len(seats) == 1 and seats[0].incarnation == self.incarnation):
            return (Seat(self.incarnation, said.status, devices),) if devices else self.lone[said.status]
        return (*self.unseat(seats), Seat(self.incarnation, said.status, devices))

    def unseat(self, seats: tuple[Seat, ...]) -> tuple[Seat, ...]:
        return tuple([seat for seat in seats if seat.incarnation != self.incarnation])


class Roster:
    """The remote nodes of which something is kept, or whose hash is being read."""

    def __init__(self, own: str) -> None:
        self.own = own
        self._nodes: dict[str, NodePresence] = {}
        self._dead: dict[str, None] = {}

    def __iter__(self) -> Iterator[NodePresence]:
        return iter(self._nodes.values())

    def incarnations(self) -> list[str]:
        return list(self._nodes)

    def get(self, incarnation: str) -> NodePresence | None:
        return self._nodes.get(incarnation)

    def believed(self, incarnation: str) -> NodePresence | None:
        """The node whose word this is, made if it is new.

        None if its word does not count: it is dead, it is this node, or there are `NODES_MAX`.
        """
        node = self._nodes.get(incarnation)
        if node is None and incarnation != self.own and incarnation not in self._dead and len(self._nodes) < NODES_MAX:
            node = self._nodes[incarnation] = NodePresence(incarnation)
        return node

    def read(self, incarnation: str) -> HashRead:
        """Begin a read of an incarnation's hash; if it was buried, it counts as alive again."""
        self._dead.pop(incarnation, None)
        read = HashRead(incarnation)
        if (node := self.believed(incarnation)) is not None:
            node.begin(read)
        return read

    def answered(self, reads: Mapping[str, HashRead], users: Collection[UserId]) -> dict[str, NodePresence]:
        """End reads of users, by incarnation; gives the nodes that did not die during them."""
        return {
            incarnation: node
            for incarnation, read in reads.items()
            if (node := self._nodes.get(incarnation)) is not None and node.answered(read, users)
        }

    def bury(self, incarnation: str) -> NodePresence | None:
        """Mark an incarnation as dead; gives its node, whose seats the caller clears.

        Its reads end without an answer.
        """
        self._dead.pop(incarnation, None)
        self._dead[incarnation] = None
        if len(self._dead) > DEAD_MAX:
            del self._dead[next(iter(self._dead))]
        return self._nodes.pop(incarnation, None)

    def drop(self, user: UserId) -> None:
        """Keep nothing of a user any more."""
        for node in self._nodes.values():
            node.versions.pop(user, None)


def _nobody_listens() -> None:
    """The default of `Published.on_dirty`."""


class Published:
    """What this node publishes of its users. Offline ones stay until that was taken.

    A device that arrives and leaves before its arrival was taken is published all the same, once:
    that ends a half-open session of it on another node.
    """

    def __init__(self) -> None:
        self.on_dirty: Callable[[], None] = _nobody_listens  # called when there is something to publish again
        self._said: dict[UserId, Remote] = {}
        self._dirty: dict[UserId, None] = {}  # users to publish, longest waiting first
        # Devices that are not published yet. If one is gone: until when its publishing is awaited;
        # else infinity.
        self._fresh: dict[UserId, dict[DeviceId, float]] = {}

    def __getitem__(self, user: UserId) -> Remote:
        return self._said.get(user, NOTHING_SAID)

    def __setitem__(self, user: UserId, said: Remote) -> None:
        self._said[user] = said
        if not self._dirty:
            self.on_dirty()
        self._dirty[user] = None

    def arrived(self, user: UserId, device: DeviceId, now_ms: int, attached_ms: int | None) -> tuple[Device, ...]:
        """A device is here since `attached_ms`, or was here before. Gives those to publish."""
        old = devices = self[user].devices
        if self._fresh.get(user, {}).get(device, math.inf) < math.inf:
            devices = detached(devices, device)
        devices = attached(devices, device, now_ms, attached_ms)
        if devices is not old:
            self._fresh.setdefault(user, {})[device] = math.inf
        return devices

    def left(self, user: UserId, device: DeviceId, now: float) -> tuple[Device, ...]:
        """A device is gone. Gives the devices to publish, with it if it was not published yet."""
        fresh = self._fresh.get(user, {})
        if device not in fresh:
            return detached(self[user].devices, device)
        fresh[device] = now + PASSING_S
        return self[user].devices

    def is_passing(self, user: UserId, now: float) -> bool:
        """True if a device that is gone will soon be published."""
        return any(now < until < math.inf for until in self._fresh.get(user, {}).values())

    def live(self, user: UserId) -> tuple[Device, ...]:
        """The published devices without those that are gone."""
        devices, fresh = self[user].devices, self._fresh.get(user)
        return tuple([one for one in devices if fresh.get(one.id, math.inf) == math.inf]) if fresh else devices

    def keys(self) -> KeysView[UserId]:
        return self._said.keys()

    def take(self, limit: int) -> list[tuple[UserId, Remote]]:
        """What is to be published, at most `limit` users, longest waiting first."""
        taken = []
        for user in list(islice(self._dirty, limit)):
            del self._dirty[user]
            said = self._said[user]
            taken.append((user, said))
            if not said.here:
                del self._said[user]
        return taken

    def passed(self, users: Iterable[UserId]) -> list[tuple[UserId, tuple[Device, ...]]]:
        """These users were taken.

        Gives those whose published devices include some that are gone, and their live devices.
        """
        live = [(user, self.live(user)) for user in users if user in self._fresh]
        for user, _ in live:
            del self._fresh[user]
        return [(user, devices) for user, devices in live if len(devices) < len(self[user].devices)]

    def entries(self) -> Iterator[tuple[UserId, Remote]]:
        """All users who are here, each as it is at its turn; the map may change in between."""
        for user in list(self._said):
            said = self[user]
            if said.here:
                yield user, said
