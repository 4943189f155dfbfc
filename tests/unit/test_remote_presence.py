"""Nodes that tell each other of their users: which devices stay; and three of them under everything
that can go wrong, held to the truth.

`Cluster` plays Redis and what `cluster/presence_sync.py` does, in steps that a seed orders (many),
or hypothesis (which then finds the shortest way to a fault): words are written to a hash and sent
in a batch; batches wait, get lost, come twice; hashes are read and the answers wait, too; nodes
die, are paused past their lease and come back, Redis comes back empty. In the end all is delivered
and all answers are given: then every node must show of every user it keeps what is true over all
sessions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatd.core.remote_presence import DEAD_MAX, NODES_MAX, HashRead, Roster
from chatd.core.user_status import Remote, Status
from chatd.ids import DeviceId, UserId
from chatd.presence import PASSING_AGAIN_S, Change, Presence
from chatd.wire import presence_codec

GRACE_S = 0.5
DEVICES_MAX = 2
STORMS = 150
STEPS = 400
USERS = [UserId(name) for name in ("alice", "bob", "carol")]
DEVICES = [DeviceId(name) for name in ("phone", "laptop", "tablet", "watch", "car")]

# ---- what is heard and asked ---------------------------------------------------------------------


def test_dead_incarnations_and_nodes_are_bounded() -> None:
    nodes = Roster("own")
    assert sum(nodes.believed(f"{n:016x}") is not None for n in range(NODES_MAX + 5)) == NODES_MAX
    nodes = Roster("own")
    for n in range(DEAD_MAX + 5):
        nodes.bury(f"{n:016x}")
    assert nodes.believed(f"{DEAD_MAX + 4:016x}") is None
    assert len(nodes._dead) == DEAD_MAX
    assert nodes.believed("own") is None


def test_a_read_that_is_dropped_is_over() -> None:
    nodes = Roster("own")
    kept, let_go = nodes.read("aa"), nodes.read("aa")
    node = nodes.get("aa")
    assert node is not None
    node.mentioned(USERS[0], 7)
    assert (kept.heard, let_go.heard) == ({USERS[0]: 7}, {USERS[0]: 7})
    del let_go
    assert len(node.reads) == 1
    assert node.answered(kept, USERS)
    assert not node.answered(kept, USERS)
    assert node.reads == []


# ---- three nodes ---------------------------------------------------------------------------------


@dataclass
class Session:
    away: bool
    attached_ms: int
    active_ms: int


@dataclass(eq=False)
class Asking:
    """A read of a boot's hash: what it gave, once it was made."""

    boot: str
    users: list[UserId]
    question: HashRead | None  # until it is answered, or the read failed
    read: bool = False
    answer: dict[UserId, Remote | None] | None = None


@dataclass(eq=False)
class Node:
    boot: str
    skew_ms: int
    presence: Presence = field(init=False)
    n: int = 0
    outbox: list[bytes] = field(default_factory=list)  # written to the hash, not sent yet
    inbox: list[bytes] = field(default_factory=list)
    asking: list[Asking] = field(default_factory=list)
    peers: dict[str, int] = field(default_factory=dict)  # boot -> number of its last batch
    stale: set[str] = field(default_factory=set)
    written: bool = True  # its hash is whole
    paused: bool = False
    sessions: dict[tuple[UserId, DeviceId], Session] = field(default_factory=dict)
    left: dict[tuple[UserId, DeviceId], tuple[float, bool]] = field(default_factory=dict)
    watched: dict[str, tuple[UserId, ...]] = field(default_factory=dict)
    shown: dict[UserId, Status] = field(default_factory=dict)  # to those who watch
    v: dict[UserId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.presence = Presence(GRACE_S, self.boot)

    def told(self, changes: list[Change]) -> None:
        for change in changes:
            assert change.v > self.v.get(change.user, -1), "a watcher would pass over it"
            assert change.status is not self.shown.get(change.user), "no change"
            assert change.status is Status.OFFLINE or change.seen_ms is None
            self.v[change.user] = change.v
            if change.user in self.shown:
                self.shown[change.user] = change.status


class Cluster:
    """`nodes` live; of the dead ones only lease and hash are left, until they lapse.

    Each action takes a Random for what it picks.
    """

    def __init__(self, r: Random) -> None:
        self.now = 1_000.0
        self.boots = (f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in itertools.count(1))
        self.nodes: list[Node] = []
        self.dead: set[str] = set()
        self.hashes: dict[str, dict[UserId, bytes]] = {}
        self.leases: dict[str, int] = {}  # boot -> number of its last batch
        self.lapsed: set[str] = set()
        for _ in range(3):
            self.restart(r)

    def now_ms(self, node: Node) -> int:
        return int(self.now * 1000) + node.skew_ms

    def awake(self, fit: Callable[[Node], object] = bool) -> list[Node]:
        return [node for node in self.nodes if not node.paused and fit(node)]

    # ---- sessions ----

    def connect(self, r: Random) -> None:
        node, user, device, away = r.choice(self.awake()), r.choice(USERS), r.choice(DEVICES), r.random() < 0.5
        if node.presence.hold(user):
            self.ask_all(node, [user])
        now_ms = self.now_ms(node)
        old = node.sessions.get((user, device))
        attached_ms = r.choice([None, now_ms, now_ms - 40])
        at = now_ms if attached_ms is None else node.presence.attach(user, device, attached_ms)
        if old is None:
            node.sessions[user, device] = Session(away, at, at)
        else:
            old.away = away
            if attached_ms is not None:
                old.attached_ms, old.active_ms = at, max(old.active_ms, at)
        node.left.pop((user, device), None)
        change = node.presence.connect(user, device, away, now_ms)
        node.told([] if change is None else [change])

    def disconnect(self, r: Random) -> None:
        if nodes := self.awake(lambda node: node.sessions):
            node = r.choice(nodes)
            self.leave(node, *r.choice(sorted(node.sessions)), r.choice([None, None, 0.0]))

    def leave(self, node: Node, user: UserId, device: DeviceId, grace: float | None) -> None:
        session = node.sessions.pop((user, device))
        node.left[user, device] = (self.now + (GRACE_S if grace is None else grace), session.away)
        node.presence.disconnect(user, device, self.now, self.now_ms(node), grace)
        self.due(node)

    def due(self, node: Node) -> None:
        for (user, device), (until, away) in list(node.left.items()):
            if until <= self.now:
                del node.left[user, device]
                if node.presence._own.is_passing(user, self.now):  # not yet said that it came
                    node.left[user, device] = (self.now + PASSING_AGAIN_S, away)
        node.told(node.presence.due(self.now, self.now_ms(node)))

    def let_go(self, r: Random) -> None:
        node, user = r.choice(self.awake()), r.choice(USERS)
        if not any(one == user for one, _ in node.sessions):
            node.presence.unhold(user)

    def touch(self, r: Random) -> None:
        if nodes := self.awake(lambda node: node.sessions):
            node = r.choice(nodes)
            user, device = r.choice(sorted(node.sessions))
            session, active_ms = node.sessions[user, device], self.now_ms(node) - r.choice([0, 500])
            session.active_ms = max(session.active_ms, active_ms)
            node.presence.touch(user, device, active_ms)

    def close_what_must_go(self, r: Random) -> None:
        node, user = r.choice(self.awake()), r.choice(USERS)
        for device in sorted({*node.presence.displaced(user), *node.presence.surplus(user, DEVICES_MAX)}):
            self.leave(node, user, device, 0.0)

    def later(self, r: Random) -> None:
        self.now += r.choice([0.001, 0.125, 0.25, 1.0])
        for node in self.awake():
            self.due(node)

    # ---- watching ----

    def watch(self, r: Random) -> None:
        node, watcher = r.choice(self.awake()), r.choice(["w1", "w2"])
        users = tuple(user for user in USERS if r.random() < 0.4)
        unknown = node.presence.watch(watcher, node.watched.get(watcher, ()), users)
        node.watched[watcher] = users
        watched = {user for users in node.watched.values() for user in users}
        node.shown = {user: node.shown.get(user) or self.snapshot(node, user) for user in watched}
        if unknown:
            self.ask_all(node, unknown)

    def snapshot(self, node: Node, user: UserId) -> Status:
        known = node.presence.status(user)
        node.v[user] = max(node.v.get(user, -1), self.now_ms(node) - 1 if known is None else known.v)
        return Status.OFFLINE if known is None else known.status

    # ---- what nodes tell each other ----

    def write(self, r: Random) -> None:
        if nodes := self.awake(lambda node: node.written):
            self.write_one(r.choice(nodes), r.choice([1, 2, 100]))

    def write_one(self, node: Node, limit: int) -> None:
        if words := node.presence.take_dirty(limit):
            for user, said in words:
                if said.here:
                    self.hashes[node.boot][user] = presence_codec.encode_entry(said)
                else:
                    self.hashes[node.boot].pop(user, None)
            node.n += 1
            self.leases[node.boot] = node.n
            node.outbox.append(presence_codec.encode_batch(node.boot, node.n, words))

    def send(self, r: Random) -> None:
        if nodes := self.awake(lambda node: node.outbox):
            self.send_one(r.choice(nodes), r if r.random() < 0.3 else None)

    def send_one(self, node: Node, losing: Random | None) -> None:
        data = node.outbox.pop(0)
        for other in self.nodes:
            if other is not node and (losing is None or losing.random() < 0.5):
                other.inbox.append(data)

    def deliver(self, r: Random) -> None:
        if nodes := self.awake(lambda node: node.inbox):
            node = r.choice(nodes)
            self.hear(node, node.inbox[0] if r.random() < 0.1 else node.inbox.pop(0))

    def hear(self, node: Node, data: bytes) -> None:
        batch = presence_codec.decode_batch(data)
        assert batch is not None
        last = node.peers.get(batch.incarnation)
        if last is not None and batch.n <= last:
            return
        if last is None or batch.n != last + 1:
            node.stale.add(batch.incarnation)
        node.peers[batch.incarnation] = batch.n
        for user, said in batch.users:
            change = node.presence.remote(batch.incarnation, user, said, self.now_ms(node))
            node.told([] if change is None else [change])

    def ask_all(self, node: Node, users: list[UserId]) -> None:
        for boot in node.peers:
            self.ask(node, boot, users)

    def ask(self, node: Node, boot: str, users: list[UserId]) -> None:
        node.asking.append(Asking(boot, users, node.presence.begin_read(boot)))

    def read(self, r: Random) -> None:
        if unread := [asking for node in self.nodes for asking in node.asking if not asking.read]:
            self.read_one(r.choice(unread))

    def read_one(self, asking: Asking) -> None:
        asking.read = True
        found = self.hashes.get(asking.boot)
        if found is not None:
            asking.answer = {
                user: presence_codec.decode_entry(found[user]) if user in found else None for user in asking.users
            }

    def answer(self, r: Random) -> None:
        if nodes := self.awake(lambda node: any(one.read for one in node.asking)):
            node = r.choice(nodes)
            self.answer_one(node, r.choice([one for one in node.asking if one.read]), failed=r.random() < 0.1)

    def answer_one(self, node: Node, asking: Asking, *, failed: bool) -> None:
        node.asking.remove(asking)
        question, asking.question = asking.question, None
        assert question is not None
        if not failed and asking.answer is not None:
            node.told(node.presence.resync(asking.boot, asking.answer, question, self.now_ms(node)))
        elif asking.boot in node.peers:
            node.stale.add(asking.boot)

    def beat(self, r: Random) -> None:
        self.beat_one(r.choice(self.awake()))

    def beat_one(self, node: Node) -> None:
        """A look at the leases: who is new, dead, or has said more than came."""
        if not node.written:
            self.rewrite(node)
        for boot, n in self.leases.items():
            if boot != node.boot and n > node.peers.get(boot, -1):
                node.stale.add(boot)
                node.peers.setdefault(boot, n)
        for boot in [boot for boot in node.peers if boot in self.lapsed]:
            del node.peers[boot]
            node.stale.discard(boot)
            node.told(node.presence.forget_node(boot, self.now_ms(node), self.now_ms(node) - 5_000))
        for boot in sorted(node.stale):
            self.ask(node, boot, sorted(node.presence.kept_users()))
            # The answer has all that was said up to there
            node.peers[boot] = max(node.peers[boot], self.leases.get(boot, -1))
        node.stale = set()

    # ---- faults ----

    def rewrite(self, node: Node) -> None:
        """Its hash anew, all of it, for a node that starts, that had lapsed, or whose Redis came
        back empty.
        """
        node.presence.republish(self.now_ms(node))
        self.hashes[node.boot] = {
            user: presence_codec.encode_entry(said) for user, said in node.presence.local_entries()
        }
        node.n += 1
        self.leases[node.boot] = node.n
        self.lapsed.discard(node.boot)
        node.written = True

    def kill(self, r: Random) -> None:
        if len(self.awake()) > 1:
            node = r.choice(self.awake())
            self.nodes.remove(node)
            self.dead.add(node.boot)

    def restart(self, r: Random) -> None:
        if len(self.nodes) < 3:
            node = Node(next(self.boots), r.randint(-3, 3))
            self.nodes.append(node)
            self.rewrite(node)

    def pause(self, r: Random) -> None:
        if len(self.awake()) > 1:
            r.choice(self.awake()).paused = True

    def lapse(self, r: Random) -> None:
        """The leases of the dead and the paused end; their hashes may last a while longer."""
        self.let_lapse(expire=r.random() < 0.5)

    def let_lapse(self, *, expire: bool) -> None:
        for boot in [*self.dead, *(node.boot for node in self.nodes if node.paused)]:
            self.leases.pop(boot, None)
            self.lapsed.add(boot)
            if expire:
                self.hashes.pop(boot, None)

    def resume(self, _: Random | None = None) -> None:
        for node in self.nodes:
            if node.paused:
                node.paused = False
                if node.boot in self.lapsed:
                    self.rewrite(node)
                    node.stale |= node.peers.keys()
                self.due(node)

    def redis_comes_back_empty(self, _: Random) -> None:
        self.hashes.clear()
        self.leases.clear()
        for node in self.nodes:
            node.inbox.clear()
            node.outbox.clear()
            node.written = False
            node.stale |= node.peers.keys()

    # ---- what must hold ----

    def in_the_end(self, _: Random | None = None) -> None:
        """All is told: what every node shows is true, and every device is somewhere once."""
        self.resume()
        self.let_lapse(expire=True)
        self.settle()
        self.check()
        for user in USERS:
            for device, node in self.must_go(user):
                self.leave(node, user, device, 0.0)
        self.settle()
        self.check()
        for user in USERS:
            spread = [device for node in self.nodes for one, device in node.sessions if one == user]
            assert len(spread) == len(set(spread))
            assert self.must_go(user) == set()
        for node in self.nodes:
            assert all(not other.reads for other in node.presence._others)

    def settle(self) -> None:
        """All that can still come comes, until nobody has anything to say."""
        for _ in range(30):
            for node in self.nodes:
                self.due(node)
                self.beat_one(node)
                self.write_one(node, 100)
                while node.outbox:
                    self.send_one(node, None)
            if not any(node.inbox or node.asking for node in self.nodes):
                return
            for node in self.nodes:
                while node.inbox:
                    self.hear(node, node.inbox.pop(0))
                for asking in node.asking[:]:
                    if not asking.read:
                        self.read_one(asking)
                    self.answer_one(node, asking, failed=False)
        raise AssertionError("they never stop")

    def truth(self, user: UserId) -> Status:
        aways = [session.away for node in self.nodes for (one, _), session in node.sessions.items() if one == user]
        aways += [away for node in self.nodes for (one, _), (_, away) in node.left.items() if one == user]
        return Status.OFFLINE if not aways else Status.AWAY if all(aways) else Status.ONLINE

    def check(self) -> None:
        for node in self.nodes:
            there = {user for other in self.nodes if other is not node for user, _ in [*other.sessions, *other.left]}
            for user in USERS:
                known = node.presence.status(user)
                kept = node.presence.keeps(user)
                assert (Status.OFFLINE if known is None else known.status) is (
                    self.truth(user) if kept else Status.OFFLINE
                )
                assert node.presence.elsewhere(user) is (kept and user in there)

    def must_go(self, user: UserId) -> set[tuple[DeviceId, Node]]:
        """The devices that the nodes want to close, which are just those that must go."""
        here = [
            (id, (s.attached_ms, node.boot), s.active_ms, node)
            for node in self.nodes
            for (one, id), s in node.sessions.items()
            if one == user
        ]
        last = {id: max(at for one, at, _, _ in here if one == id) for id, _, _, _ in here}
        displaced = {(id, node) for node in self.nodes for id in node.presence.displaced(user)}
        assert displaced == {(id, node) for id, at, _, node in here if at != last[id]}
        surplus = [(id, node) for node in self.nodes for id in node.presence.surplus(user, DEVICES_MAX)]
        if len({node.boot for _, _, _, node in here}) > 1:  # at a single node it is decided at the hello
            idle = sorted((active_ms, at, id, node.boot) for id, at, active_ms, node in here if at == last[id])
            assert sorted((id, node.boot) for id, node in surplus) == sorted(
                (id, boot) for _, _, id, boot in idle[: max(0, len(idle) - DEVICES_MAX)]
            )
        return {*displaced, *surplus}

    def check_always(self) -> None:
        """What is asked is what was told; and only of those wanted here something is kept."""
        for node in self.nodes:
            for user, shown in node.shown.items():
                known = node.presence.status(user)
                assert (Status.OFFLINE if known is None else known.status) is shown
                node.v[user] = max(node.v.get(user, -1), -1 if known is None else known.v)
            kept = {user for user in USERS if node.presence.keeps(user)}
            assert all(other.versions.keys() <= kept for other in node.presence._others)
            assert node.presence._statuses.users.keys() <= kept
            assert len(node.presence) == len({user for user, _ in [*node.sessions, *node.left]})


C = Cluster
ACTIONS: list[Callable[[Cluster, Random], None]] = [
    *[C.connect] * 6,
    *[C.disconnect] * 4,
    *[C.watch] * 3,
    *[C.let_go] * 2,
    C.touch,
    C.close_what_must_go,
    *[C.later] * 2,
    *[C.write] * 8,
    *[C.send] * 8,
    *[C.deliver] * 12,
    *[C.beat] * 4,
    *[C.read] * 8,
    *[C.answer] * 8,
    C.kill,
    *[C.restart] * 2,
    C.pause,
    C.lapse,
    *[C.resume] * 2,
]
RARE: list[Callable[[Cluster, Random], None]] = [C.redis_comes_back_empty, C.in_the_end]


@pytest.mark.parametrize("seed", range(STORMS))
def test_three_nodes_in_a_storm_agree_with_the_truth_in_the_end(seed: int) -> None:
    r = Random(seed)
    cluster = Cluster(r)
    for _ in range(STEPS):
        r.choice(RARE if r.random() < 0.02 else ACTIONS)(cluster, r)
        cluster.check_always()
    cluster.in_the_end()


def stateful(kind: Callable[[Random], Cluster], actions: list[Any]) -> type[RuleBasedStateMachine]:
    """The same, ordered by hypothesis."""

    class Steps(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.cluster = kind(Random(0))

        @rule(action=st.sampled_from(actions), r=st.randoms(use_true_random=False))
        def act(self, action: Callable[[Cluster, Random], None], r: Random) -> None:
            action(self.cluster, r)

        @invariant()
        def always(self) -> None:
            self.cluster.check_always()

        def teardown(self) -> None:
            self.cluster.in_the_end()

    Steps.TestCase.settings = settings(stateful_step_count=60, max_examples=50, deadline=None)
    return Steps


TestSteps = stateful(Cluster, ACTIONS + RARE).TestCase
