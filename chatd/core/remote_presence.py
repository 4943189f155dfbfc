"""What nodes say of users: the own words, what was heard from whom, what was asked; and which of a
user's devices stays. Pure.

    boot (a node's life) ── user ──► Remote: status, v, last seen, devices

Every node says of each user who is there how they are *there*, in two ways: a stream of batches,
and a hash that can be read at any time. The stream is in order and may lose; the hash is right but
an answer takes time, in which the stream goes on. `Roster` brings the two together: it knows for
each boot the newest version heard per kept user (offline ones too, so that an older word finds it),
and which questions are open.

The contract with the caller, on which "never back to something older" and "nothing lost for good"
rest:
1. A node writes its hash before, or in one step with, what it sends to the stream; so a read that
   was asked for after a batch came knows that batch.
2. Batches of a boot come to `Presence.remote` in order, none twice (their numbers tell). A hole, or
   a number told elsewhere that never came, is followed by a question about that boot, put after the
   hole was seen.
3. The hash is read by the primary, after the question was put.

Then an answer is at least as new as all that was heard before its question; and for a user of whom
the stream spoke after it, the stream is followed: what the answer knows beyond that word is still
to come in the stream, or its loss will show and be asked about anew. The same between two answers
about a user: that of the later question wins, however they cross. `Question` keeps just this: who
was spoken of since.

A boot whose lease ended is dead: nothing that still trickles in from it is believed until it is
asked again, which is for the lease that came back.

What is not here: statuses of all nodes as one and whom to tell (`presence.py`), bytes
(`wire/presence_codec.py`), leases and Redis (`cluster/presence_sync.py`). Turned down: settling a
silent answer ("not in the hash") by comparing with the highest version heard before the question.
Versions rise per user, not over all users of a boot, so someone who came between question and
answer could be below it, and would stay offline for good.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Iterator, KeysView
from itertools import islice
from typing import Final, NamedTuple
from weakref import ref

from chatd.ids import DeviceId, UserId

V_MAX: Final = 2**53 - 1  # what a browser can count; the wire refuses more
# Nodes of whom something is kept: far more than one Redis carries, and an end for made-up ones
NODES_MAX: Final = 1_000
PASSING_S: Final = 0.2  # what is to be said is taken every 20 ms
DEAD_MAX: Final = 1_000  # dead boots remembered, the newest: what trickles in from a dead one does so within seconds


class Status(enum.Enum):
    ONLINE = "online"
    AWAY = "away"
    OFFLINE = "offline"
    HIDDEN = "hidden"


def merged(aways: list[bool]) -> Status:
    """The status of somebody of whose devices, or nodes, each is away or not."""
    return Status.OFFLINE if not aways else Status.AWAY if all(aways) else Status.ONLINE


class Device(NamedTuple):
    """A session of a user on some node: since when, and when it last did something, as that node
    published it.
    """

    id: DeviceId
    attached_ms: int
    active_ms: int


class Remote(NamedTuple):
    """How a user is on one node.

    `v` rises with each word of that node about the user. `seen_ms`: only when offline, if known.
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
    """What is kept of a Remote that is not offline."""

    boot: str
    status: Status
    devices: tuple[Device, ...]


class Question:
    """Asked of a boot's hash, and not answered yet.

    `told`: of whom something newer than the answer may have come meanwhile, and its v.

    Whoever asks keeps it until the answer is there; a read that failed is over as soon as its
    question is let go.
    """

    __slots__ = ("__weakref__", "boot", "told")

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.told: dict[UserId, int] = {}


class Node:
    """One boot: the version last heard of each kept user, and the open questions in the order
    asked.
    """

    __slots__ = ("asked", "boot", "lone", "told")

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.told: dict[UserId, int] = {}
        self.asked: list[ref[Question]] = []
        # Most kept users are watched only, and are on one node: they share their seats.
        self.lone = {status: (Seat(boot, status, ()),) for status in (Status.ONLINE, Status.AWAY)}

    def ask(self, question: Question) -> None:
        self.asked.append(ref(question, self.asked.remove))

    def spoke(self, user: UserId, v: int) -> None:
        """For the answers that are under way."""
        for asked in self.asked:
            if (question := asked()) is not None:
                question.told[user] = max(question.told.get(user, -1), v)

    def answered(self, question: Question, users: Iterable[UserId]) -> bool:
        """The question is over, and those asked before it give way to it.

        False if it was not asked of this boot's present life.
        """
        at = next((n for n, asked in enumerate(self.asked) if asked() is question), None)
        if at is None:
            return False
        for asked in self.asked[:at]:
            if (earlier := asked()) is not None:
                earlier.told.update(dict.fromkeys(users, V_MAX))
        del self.asked[at]
        return True

    def seat(self, seats: tuple[Seat, ...], said: Remote, devices: tuple[Device, ...]) -> tuple[Seat, ...]:
        """The seats with this node's as it says now, which is not offline; `devices`: those that
        are to be kept.
        """
        if not seats or (len(seats) == 1 and seats[0].boot == self.boot):
            return (Seat(self.boot, said.status, devices),) if devices else self.lone[said.status]
        return (*self.unseat(seats), Seat(self.boot, said.status, devices))

    def unseat(self, seats: tuple[Seat, ...]) -> tuple[Seat, ...]:
        return tuple([seat for seat in seats if seat.boot != self.boot])


class Roster:
    """The other nodes, as far as something of them is kept or asked."""

    def __init__(self, own: str) -> None:
        self.own = own
        self._nodes: dict[str, Node] = {}
        self._dead: dict[str, None] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def boots(self) -> list[str]:
        return list(self._nodes)

    def get(self, boot: str) -> Node | None:
        return self._nodes.get(boot)

    def believed(self, boot: str) -> Node | None:
        """The node whose word this is, made if it is new; None if its word does not count: dead,
        this one, or one too many.
        """
        node = self._nodes.get(boot)
        if node is None and boot != self.own and boot not in self._dead and len(self._nodes) < NODES_MAX:
            node = self._nodes[boot] = Node(boot)
        return node

    def ask(self, boot: str) -> Question:
        """A question about a boot, which is not dead any more if it was thought so."""
        self._dead.pop(boot, None)
        question = Question(boot)
        if (node := self.believed(boot)) is not None:
            node.ask(question)
        return question

    def bury(self, boot: str) -> Node | None:
        """The boot is dead; its node, whose seats are to be cleared.

        Its open questions end without an answer.
        """
        self._dead.pop(boot, None)
        self._dead[boot] = None
        if len(self._dead) > DEAD_MAX:
            del self._dead[next(iter(self._dead))]
        return self._nodes.pop(boot, None)

    def drop(self, user: UserId) -> None:
        """Keep nothing of a user any more."""
        for node in self._nodes.values():
            node.told.pop(user, None)


def _not_heard() -> None:
    """The default of `Own.on_dirty`."""


class Own:
    """What this node says of the users who are here: offline ones until that is taken.

    A device that comes and leaves before it was said is said all the same, once: a session of it
    that is half-open on another node ends by that.
    """

    def __init__(self) -> None:
        self.on_dirty: Callable[[], None] = _not_heard  # there is something to say again
        self._said: dict[UserId, Remote] = {}
        self._dirty: dict[UserId, None] = {}  # of whom it is still to be said, longest waiting first
        # Devices that are not said yet; of those gone, until when it is waited for that
        self._fresh: dict[UserId, dict[DeviceId, float]] = {}

    def __getitem__(self, user: UserId) -> Remote:
        return self._said.get(user, NOTHING_SAID)

    def __setitem__(self, user: UserId, said: Remote) -> None:
        self._said[user] = said
        if not self._dirty:
            self.on_dirty()
        self._dirty[user] = None

    def came(self, user: UserId, device: DeviceId, now_ms: int, attached_ms: int | None) -> tuple[Device, ...]:
        """A device is there since then, or was there. Gives those to say."""
        old = devices = self[user].devices
        if self._fresh.get(user, {}).get(device, math.inf) < math.inf:
            devices = detached(devices, device)
        devices = attached(devices, device, now_ms, attached_ms)
        if devices is not old:
            self._fresh.setdefault(user, {})[device] = math.inf
        return devices

    def left(self, user: UserId, device: DeviceId, now: float) -> tuple[Device, ...]:
        """A device is gone. Gives those to say: with it, if it was not said yet."""
        fresh = self._fresh.get(user, {})
        if device not in fresh:
            return detached(self[user].devices, device)
        fresh[device] = now + PASSING_S
        return self[user].devices

    def is_passing(self, user: UserId, now: float) -> bool:
        """Whether a device that is gone will soon be said."""
        return any(now < until < math.inf for until in self._fresh.get(user, {}).values())

    def live(self, user: UserId) -> tuple[Device, ...]:
        """The devices to say, without those that are gone."""
        devices, fresh = self[user].devices, self._fresh.get(user)
        return tuple([one for one in devices if fresh.get(one.id, math.inf) == math.inf]) if fresh else devices

    def keys(self) -> KeysView[UserId]:
        return self._said.keys()

    def take(self, limit: int) -> list[tuple[UserId, Remote]]:
        taken = []
        for user in list(islice(self._dirty, limit)):
            del self._dirty[user]
            said = self._said[user]
            taken.append((user, said))
            if not said.here:
                del self._said[user]
        return taken

    def passed(self, users: Iterable[UserId]) -> list[tuple[UserId, tuple[Device, ...]]]:
        """These were taken.

        Gives those of whom devices that are gone were said, and what to say of them now.
        """
        live = [(user, self.live(user)) for user in users if user in self._fresh]
        for user, _ in live:
            del self._fresh[user]
        return [(user, devices) for user, devices in live if len(devices) < len(self[user].devices)]

    def entries(self) -> Iterator[tuple[UserId, Remote]]:
        for user in list(self._said):
            said = self[user]
            if said.here:
                yield user, said


def attached(devices: tuple[Device, ...], id: DeviceId, now_ms: int, attached_ms: int | None) -> tuple[Device, ...]:
    """The devices with one that is attached, now or at `attached_ms`; unchanged if it was, and if
    nothing else is said.
    """
    old = next((one for one in devices if one.id == id), None)
    if old is not None and attached_ms in (None, old.attached_ms):
        return devices
    at = now_ms if attached_ms is None else attached_ms
    return (*(one for one in devices if one is not old), Device(id, at, at if old is None else max(at, old.active_ms)))


def detached(devices: tuple[Device, ...], id: DeviceId) -> tuple[Device, ...]:
    return tuple([one for one in devices if one.id != id])


# ---- which devices stay --------------------------------------------------------------------------
# Every node decides for its own devices, from what all have published. So once all know the same, exactly one node closes each.


def displaced(boot: str, devices: Iterable[Device], seats: Iterable[Seat]) -> list[DeviceId]:
    """Those of `boot`'s devices that were attached elsewhere later; at the same millisecond the
    higher boot stays.
    """
    mine = {device.id: (device.attached_ms, boot) for device in devices}
    theirs = ((other.id, (other.attached_ms, seat.boot)) for seat in seats for other in seat.devices)
    return list(dict.fromkeys(id for id, at in theirs if id in mine and at > mine[id]))


def surplus(boot: str, devices: Iterable[Device], seats: Iterable[Seat], devices_max: int) -> list[DeviceId]:
    """Those of `boot`'s devices to close because the user has more than `devices_max` and these are
    the longest idle ones of all.

    A device that is at several nodes counts once, where it came last: the others are `displaced`.
    """
    stays: dict[DeviceId, tuple[int, str, int]] = {}
    for at, there in ((boot, devices), *((seat.boot, seat.devices) for seat in seats)):
        for device in there:
            stays[device.id] = max(stays.get(device.id, (-1, "", -1)), (device.attached_ms, at, device.active_ms))
    over = len(stays) - devices_max
    if over <= 0:
        return []
    longest_idle = sorted((active_ms, attached_ms, at, id) for id, (attached_ms, at, active_ms) in stays.items())[:over]
    return [id for _, _, at, id in longest_idle if at == boot]
