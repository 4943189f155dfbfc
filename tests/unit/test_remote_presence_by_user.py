"""The three nodes of test_remote_presence.py, which hear of the users that they keep and no others.

A write is published with itself, on the channel of each user. A node subscribes to a user before it
reads the user, and reads over all nodes at once. Nothing is lost on a connection that lives; one
that ends is followed by a read of all that is kept. No number says what a node has not heard.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from chatd.core.remote_presence import HashRead
from chatd.core.user_status import Remote
from chatd.ids import UserId
from chatd.wire import presence_codec
from tests.unit import test_remote_presence as by_node
from tests.unit.test_remote_presence import STEPS, STORMS, USERS, Asking, Cluster, Node


@dataclass(eq=False)
class Looking(Asking):
    """A read of some users over several boots: who is where, of the boots whose hash is whole."""

    questions: dict[str, HashRead] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    found: dict[UserId, dict[str, Remote]] = field(default_factory=dict)


class ByUser(Cluster):
    """A lease has the number of the last listing of all users, and not that of the last batch."""

    def __init__(self, r: Random) -> None:
        self.subscribed: dict[str, set[UserId]] = defaultdict(set)  # by boot
        super().__init__(r)

    def ask_all(self, node: Node, users: list[UserId]) -> None:
        self.subscribed[node.boot].update(users)
        self.look(node, list(node.peers), users)

    def ask(self, node: Node, boot: str, users: list[UserId]) -> None:
        self.look(node, [boot], users)

    def look(self, node: Node, boots: list[str], users: list[UserId]) -> None:
        node.asking.append(Looking("", users, None, questions={boot: node.presence.begin_read(boot) for boot in boots}))

    def read_one(self, asking: Asking) -> None:
        assert isinstance(asking, Looking)
        asking.read = True
        asking.whole = asking.questions.keys() & self.hashes.keys()
        for user in asking.users:
            for boot in asking.whole:
                if (value := self.hashes[boot].get(user)) is not None:
                    said = presence_codec.decode_entry(value)
                    assert said is not None
                    asking.found.setdefault(user, {})[boot] = said

    def answer_one(self, node: Node, asking: Asking, *, failed: bool) -> None:
        assert isinstance(asking, Looking)
        node.asking.remove(asking)
        questions, asking.questions = asking.questions, {}
        if failed:
            node.stale |= questions.keys() & node.peers.keys()
            return
        usable = {boot: question for boot, question in questions.items() if boot in asking.whole}
        node.told(node.presence.resync_all(asking.users, asking.found, usable, self.now_ms(node)))

    def write_one(self, node: Node, limit: int) -> None:
        words = node.presence.take_dirty(limit)
        node.n += bool(words)
        for user, said in words:
            if said.here:
                self.hashes[node.boot][user] = presence_codec.encode_entry(said)
            else:
                self.hashes[node.boot].pop(user, None)
            data = presence_codec.encode_batch(node.boot, node.n, [(user, said)])
            for other in self.nodes:
                if other is not node and user in self.subscribed[other.boot]:
                    other.inbox.append(data)

    def deliver(self, r: Random) -> None:
        if nodes := self.awake(lambda node: node.inbox):
            node = r.choice(nodes)
            self.hear(node, node.inbox.pop(0))

    def hear(self, node: Node, data: bytes) -> None:
        batch = presence_codec.decode_batch(data)
        assert batch is not None
        if batch.incarnation not in node.peers:
            node.peers[batch.incarnation] = -1  # its lease was not seen yet
            node.stale.add(batch.incarnation)
        for user, said in batch.users:
            change = node.presence.remote(batch.incarnation, user, said, self.now_ms(node))
            node.told([] if change is None else [change])

    def unsubscribe(self, r: Random) -> None:
        node = r.choice(self.awake())
        self.subscribed[node.boot] -= {user for user in USERS if not node.presence.keeps(user)}

    def cut(self, r: Random) -> None:
        """A node's connection ends and is made again: what was on its way is lost."""
        node = r.choice(self.nodes)
        node.inbox.clear()
        node.stale |= node.peers.keys()

    def check_always(self) -> None:
        super().check_always()
        for node in self.nodes:
            assert {user for user in USERS if node.presence.keeps(user)} <= self.subscribed[node.boot]


ACTIONS: list[Callable[[ByUser, Random], None]] = [
    *(action for action in by_node.ACTIONS if action not in (Cluster.send, Cluster.write, Cluster.deliver)),
    *[ByUser.write] * 12,
    *[ByUser.deliver] * 12,
    *[ByUser.unsubscribe] * 2,
    ByUser.cut,
]
RARE: list[Callable[[ByUser, Random], None]] = [ByUser.redis_comes_back_empty, ByUser.in_the_end]


@pytest.mark.parametrize("seed", range(STORMS))
def test_three_nodes_that_hear_of_their_users_alone_agree_with_the_truth_in_the_end(seed: int) -> None:
    r = Random(seed)
    cluster = ByUser(r)
    for _ in range(STEPS):
        r.choice(RARE if r.random() < 0.02 else ACTIONS)(cluster, r)
        cluster.check_always()
    cluster.in_the_end()


class Deaf(ByUser):
    """Seeded fault: a user is subscribed to only after the read."""

    def look(self, node: Node, boots: list[str], users: list[UserId]) -> None:
        super().look(node, boots, users)
        self.subscribed[node.boot] -= set(users)

    def answer_one(self, node: Node, asking: Asking, *, failed: bool) -> None:
        super().answer_one(node, asking, failed=failed)
        self.subscribed[node.boot].update(asking.users)

    def check_always(self) -> None:
        """What is kept is not heard of while it is read."""


class Forgetful(ByUser):
    """Seeded fault: after a cut nothing is read again."""

    def cut(self, r: Random) -> None:
        r.choice(self.nodes).inbox.clear()


def storms(kind: type[ByUser]) -> None:
    """All of them, by the actions of this kind of cluster."""
    for seed in range(STORMS):
        r = Random(seed)
        cluster = kind(r)
        for _ in range(STEPS):
            getattr(cluster, r.choice(ACTIONS).__name__)(r)
        cluster.in_the_end()


@pytest.mark.parametrize("fault", [Deaf, Forgetful])
def test_the_storm_finds_a_node_that_misses_something(fault: type[ByUser]) -> None:
    with pytest.raises(AssertionError):
        storms(fault)


TestSteps = by_node.stateful(ByUser, ACTIONS + RARE).TestCase
