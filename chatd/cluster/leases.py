"""Which other nodes are alive, by whether their leases change. Pure.

    answer of a beat ──► Leases.judge ──► nodes that joined, are stale (read their hash), are dead
    batch heard      ──► Leases.heard ──► batches of a node are numbered; a hole makes it stale
    a part of one    ──► Leases.heard_part ──► it is on the channel of one user: holes are no losses

cluster/presence_sync.py acts on the verdict: it takes the users of a dead node offline.

A lease is a score in a sorted set of Redis. Its node raises it on every beat (a beat is one renewal
of the lease, every tenth of `lease_ms`). The score is Redis's clock. That clock can be stepped, and
a failover can bring an older score. So a score is compared only with the one seen before: a node is
alive while its score changes.

The time without a change is counted by this node's own monotonic clock, and only while Redis is
reachable: each successful beat adds the time since the beat before it, but at most one and a half
intervals. So no node ages while Redis is away, and a failed beat delays the removal of a dead node
by about one interval.

Rejected: comparing ages by Redis's clock with the lease (a step back kept a dead node's users
online for as long as the step). Rejected: restarting the count after each failed beat (one failure
per lease kept them online for ever).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from chatd.core.remote_presence import NODES_MAX
from chatd.core.steady_time import SteadyReading
from chatd.wire.presence_codec import Info

BEATS: Final = 10  # beats in one lease
# The steady time that a node reports is taken only if its lease is at most this old. Redis's clock
# gives that age, and may have been stepped.
FRESH_BEATS: Final = 2


class Lease(NamedTuple):
    """One row of a beat's answer. `age_ms`: by Redis's clock. `score`: as Redis holds it."""

    incarnation: str
    age_ms: int
    score: int
    info: Info


@dataclass(slots=True)
class RemoteNode:
    """Another node, as this one knows it."""

    n: int  # number of the last batch that was applied, or up to which its hash must be read
    moved_at: float  # when its lease last changed or a batch arrived, in seconds, monotonic
    stale: bool = True  # its hash must be read
    name: str = ""
    score: int | None = None  # None: its lease has not been seen yet
    silent_s: float = 0.0  # how long its lease has not changed while Redis was reachable
    grace_s: float = 0.0  # it has left, and its users stay online for this long beyond a lease
    left: bool = False  # it has drained, and lets its lease lapse
    namesake: bool = False  # it has our own name, and that was logged
    shards: bool | None = None  # whether it can use sharded pub/sub; None: it does not say
    listing: int | None = None  # number of its last listing; None: it publishes batches for all nodes
    n_at_beat: int = -1  # `n` as of the last beat


class Dead(NamedTuple):
    incarnation: str
    node: RemoteNode


class BeatOutcome(NamedTuple):
    """What a beat found.

    `joined`: new nodes. `namesakes`: nodes with our own name. `dead`: nodes whose lease lapsed.
    `steady`: the steady time that nodes with a fresh lease report (core/steady_time.py).
    """

    joined: list[tuple[str, RemoteNode]]
    namesakes: list[str]
    dead: list[Dead]
    steady: list[SteadyReading]


class Leases:
    """The other nodes by incarnation. `now` is in seconds, monotonic."""

    def __init__(self, own: str, name: str, lease_s: float) -> None:
        self.nodes: dict[str, RemoteNode] = {}
        self._own, self._name, self._lease_s = own, name, lease_s
        self._beat_s = lease_s / BEATS
        self._judged_at: float | None = None
        self._buried: dict[str, int | None] = {}  # last score of each dead node, while Redis still holds it

    def heard(self, incarnation: str, n: int, now: float) -> bool | None:
        """A batch of a node arrived. Returns whether to apply it.

        None: apply it and read the hash, because the node is new or earlier batches were missed.
        """
        node = self.nodes.get(incarnation)
        if node is None:
            if len(self.nodes) >= NODES_MAX:
                return False
            self.nodes[incarnation] = RemoteNode(n, now)
            return None
        if node.listing is not None:
            return False  # for nodes of the release before: its users' channels said the same
        if n <= node.n:
            return False  # late: its content has been read from the hash, or is being read
        missed = n > node.n + 1
        node.n, node.moved_at, node.silent_s = n, now, 0.0
        if missed:
            node.stale = True
            return None
        return True

    def heard_part(self, incarnation: str, n: int, now: float) -> bool | None:
        """A part of a node's batch arrived, on the channel of a user.

        Returns whether to apply it; None: apply it and read the hash, because the node is new.
        """
        node = self.nodes.get(incarnation)
        if node is None:
            return self.heard(incarnation, n, now)
        node.n, node.moved_at, node.silent_s = max(node.n, n), now, 0.0
        return True

    def all_stale(self) -> None:
        """Any batch may have been missed: read the hashes of all nodes."""
        for node in self.nodes.values():
            node.stale = True

    def doubt(self) -> None:
        """Redis may have lost all leases: each node gets the time of a whole lease again."""
        for node in self.nodes.values():
            node.silent_s = 0.0

    def judge(self, leases: Iterable[Lease], now: float) -> BeatOutcome:
        """Judge all leases as a successful beat found them."""
        reachable_s = 0.0 if self._judged_at is None else min(now - self._judged_at, 1.5 * self._beat_s)
        self._judged_at = now
        outcome = BeatOutcome([], [], [], [])
        listed: dict[str, int] = {}
        for lease in leases:
            if lease.incarnation != self._own:
                listed[lease.incarnation] = lease.score
                self._see(lease, now, outcome)
        self._buried = {dead: score for dead, score in self._buried.items() if listed.get(dead) == score}
        for incarnation, node in list(self.nodes.items()):
            if node.moved_at < now:
                node.silent_s += reachable_s
            node.n_at_beat = node.n
            if node.silent_s > self._lease_s + node.grace_s:
                del self.nodes[incarnation]
                self._buried[incarnation] = node.score
                outcome.dead.append(Dead(incarnation, node))
        return outcome

    def _see(self, lease: Lease, now: float, outcome: BeatOutcome) -> None:
        incarnation, info = lease.incarnation, lease.info
        node = self.nodes.get(incarnation)
        if node is None:
            if (
                lease.age_ms > self._lease_s * 1000
                or self._buried.get(incarnation, ...) == lease.score
                or len(self.nodes) >= NODES_MAX
            ):
                return
            node = self.nodes[incarnation] = RemoteNode(info.n, now, name=info.name)
            outcome.joined.append((incarnation, node))
        if (
            info.steady is not None
            and 0 <= lease.age_ms <= FRESH_BEATS * self._beat_s * 1000
            and lease.score > (node.score or 0)
        ):
            outcome.steady.append(
                info.steady._replace(ms=info.steady.ms + lease.age_ms, up_ms=info.steady.up_ms + lease.age_ms)
            )
        if node.score != lease.score:
            # It renews while we run, so it is not our own last incarnation
            if node.score is not None and info.name == self._name and not node.namesake:
                node.namesake = True
                outcome.namesakes.append(incarnation)
            if node.score is not None and lease.score > node.score and info.n < node.n == node.n_at_beat:
                # It reports a lower number itself, after the last batch: that batch was not its own
                node.n, node.stale = info.n, True
            # Redis's clock says how long ago it was renewed. At most one interval of it is
            # believed, because the clock may have been stepped.
            node.silent_s = min(max(lease.age_ms, 0) / 1000, self._beat_s)
            node.score, node.moved_at = lease.score, now
        if info.listing is None:
            if info.n > node.n:
                node.n, node.stale = info.n, True
        else:  # its batches are on the channels of their users, of which this node hears some
            node.n = max(node.n, info.n)
            if info.listing != node.listing:
                node.listing, node.stale = info.listing, True
        node.name, node.left, node.grace_s, node.shards = info.name, info.left, info.grace_ms / 1000, info.shards
