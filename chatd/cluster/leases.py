"""Which other nodes are alive, judged by whether their leases move. Pure.

    beat's answer ──► Leases.judge ──► joined, stale (their hash is to be read), dead
    batches heard ──► Leases.heard ──► the batches of a node are numbered; a hole makes it stale

A lease is a score in a sorted set, which its node raises on every beat. Its value is Redis's clock,
which can be stepped, and a failover can bring an older one. So the value is compared with nothing
but the value seen before: a node lives while its score changes. Time without a change is counted by
this node's own monotonic clock, and only as far as Redis was reachable: each beat that went through
adds the time since the one before it, but no more than one and a half intervals. So while Redis is
away nobody ages, and a failed beat now and then delays a death by little more than itself.

Turned down: to compare ages by Redis's clock with the lease (a step back kept a dead node's users
online for as long as the step), and to begin the count again after each failed beat (one failure in
each lease kept them online for ever).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from chatd.core.remote_presence import NODES_MAX
from chatd.core.steady_time import SteadyReading
from chatd.wire.presence_codec import Info

BEATS: Final = 10  # a lease
# No more is added to the time that a node told: Redis's clock, which says how long ago that was,
# may have been stepped
FRESH_BEATS: Final = 2


class Lease(NamedTuple):
    """A row of a beat's answer. `age_ms` by Redis's clock, `score` as it stands there."""

    boot: str
    age_ms: int
    score: int
    info: Info


@dataclass(slots=True)
class RemoteNode:
    """Another node, as this one knows it."""

    n: int  # the last batch that was applied, or that its hash is to be read for
    moved_at: float  # when its lease was last seen to move, or a batch arrived
    stale: bool = True  # its hash is to be read
    name: str = ""
    score: int | None = None  # None: its lease has not been seen yet
    silent_s: float = 0.0  # for so long Redis was reachable and its lease did not move
    grace_s: float = 0.0  # it has left, and its users stay for so much longer than a lease
    left: bool = False  # it has drained, and its lease is to lapse
    namesake: bool = False  # it has our own name, and that was logged
    shards: bool | None = None  # whether it can use sharded pub/sub; None: it does not say
    n_at_beat: int = -1


class Dead(NamedTuple):
    boot: str
    node: RemoteNode


class Verdict(NamedTuple):
    """What a beat has found: nodes that are new, others that bear our own name, those that have
    died, and how late it is by those just renewed.
    """

    joined: list[tuple[str, RemoteNode]]
    namesakes: list[str]
    dead: list[Dead]
    steady: list[SteadyReading]


class Leases:
    """The other nodes by boot id. `now` in seconds, monotonic."""

    def __init__(self, own: str, name: str, lease_s: float) -> None:
        self.nodes: dict[str, RemoteNode] = {}
        self._own, self._name, self._lease_s = own, name, lease_s
        self._beat_s = lease_s / BEATS
        self._judged_at: float | None = None
        self._buried: dict[str, int | None] = {}  # the score that a dead node left, while it stands in Redis

    def heard(self, boot: str, n: int, now: float) -> bool | None:
        """A batch of a node arrived.

        Gives whether to apply it; None: it is new, or batches before this one were missed.
        """
        node = self.nodes.get(boot)
        if node is None:
            if len(self.nodes) >= NODES_MAX:
                return False
            self.nodes[boot] = RemoteNode(n, now)
            return None
        if n <= node.n:
            return False  # late: what it says has been read from the hash, or is being read
        missed = n > node.n + 1
        node.n, node.moved_at, node.silent_s = n, now, 0.0
        if missed:
            node.stale = True
            return None
        return True

    def all_stale(self) -> None:
        for node in self.nodes.values():
            node.stale = True

    def doubt(self) -> None:
        """Redis may have lost everybody's lease: each node gets the time of a whole one."""
        for node in self.nodes.values():
            node.silent_s = 0.0

    def judge(self, leases: Iterable[Lease], now: float) -> Verdict:
        """A beat went through: all leases as it found them."""
        reachable_s = 0.0 if self._judged_at is None else min(now - self._judged_at, 1.5 * self._beat_s)
        self._judged_at = now
        verdict = Verdict([], [], [], [])
        listed: dict[str, int] = {}
        for lease in leases:
            if lease.boot != self._own:
                listed[lease.boot] = lease.score
                self._see(lease, now, verdict)
        self._buried = {boot: score for boot, score in self._buried.items() if listed.get(boot) == score}
        for boot, node in list(self.nodes.items()):
            if node.moved_at < now:
                node.silent_s += reachable_s
            node.n_at_beat = node.n
            if node.silent_s > self._lease_s + node.grace_s:
                del self.nodes[boot]
                self._buried[boot] = node.score
                verdict.dead.append(Dead(boot, node))
        return verdict

    def _see(self, lease: Lease, now: float, verdict: Verdict) -> None:
        boot, info = lease.boot, lease.info
        node = self.nodes.get(boot)
        if node is None:
            if (
                lease.age_ms > self._lease_s * 1000
                or self._buried.get(boot, ...) == lease.score
                or len(self.nodes) >= NODES_MAX
            ):
                return
            node = self.nodes[boot] = RemoteNode(info.n, now, name=info.name)
            verdict.joined.append((boot, node))
        if (
            info.steady is not None
            and 0 <= lease.age_ms <= FRESH_BEATS * self._beat_s * 1000
            and lease.score > (node.score or 0)
        ):
            verdict.steady.append(
                info.steady._replace(ms=info.steady.ms + lease.age_ms, up_ms=info.steady.up_ms + lease.age_ms)
            )
        if node.score != lease.score:
            # It renews while we are here; our own last life does not
            if node.score is not None and info.name == self._name and not node.namesake:
                node.namesake = True
                verdict.namesakes.append(boot)
            if node.score is not None and lease.score > node.score and info.n < node.n == node.n_at_beat:
                # It says so itself, later than whatever was heard: that was not its own batch
                node.n, node.stale = info.n, True
            # How long ago it was renewed is known roughly: no more is made of Redis's clock than
            # the time between two beats.
            node.silent_s = min(max(lease.age_ms, 0) / 1000, self._beat_s)
            node.score, node.moved_at = lease.score, now
        if info.n > node.n:
            node.n, node.stale = info.n, True
        node.name, node.left, node.grace_s, node.shards = info.name, info.left, info.grace_ms / 1000, info.shards
