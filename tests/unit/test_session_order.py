"""Order and rate under delays, losses and crowds: outboxes and the pipeline of sends in
simulated time (`tests/order_model.py`).

What must hold at the end, whatever happened on the way:

- every entry is in the log once, and the entries of a device in a conversation stand in the order
  in which it wrote them (invariants 3 and 10);
- nobody honest was punished, no more than 10 entries were made in any 5 s, and every outbox is
  empty: nothing waits for ever.
"""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatd.errors import CloseCode
from chatd.ids import Cid, UserId
from tests.limits_model import US, Model, most_in_any
from tests.order_model import ALICE, PER_PERIOD, PERIOD_S, Eager, Error, Node, Outbox, Sdk, Trouble, World


def check(node: Node, outboxes: list[Outbox], *, exact_rate: bool = True) -> None:
    """The claims at the top of this file."""
    assert [outbox.waiting for outbox in outboxes] == [0] * len(outboxes)
    assert not node.ended
    assert node.user.penalty.until == 0.0
    assert len(set(node.log)) == len(node.log)
    assert len(node.log) == sum(len(cids) for outbox in outboxes for cids in outbox.wrote.values())
    for outbox in outboxes:
        for peer, cids in outbox.wrote.items():
            assert [cid for p, cid in node.log if p == peer and cid in set(cids)] == cids
        assert not outbox.session.order.probing
    if exact_rate:
        times = sorted(node.written_at)
        for first, after in zip(times, times[PER_PERIOD:], strict=False):
            assert after - first >= PERIOD_S


KINDS = [Eager, Sdk]


# ---- claims --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("peers", [1, 3, 50])
def test_an_outbox_of_50_drains_at_the_allowed_rate_without_a_penalty(peers: int, kind: type[Outbox]) -> None:
    world = World(peers)
    node = Node(world, Trouble())
    outbox = kind(world, node, "phone")
    for n in range(50):
        outbox.write(UserId(f"peer{n % peers}"))
    start = world.now
    world.run(60)
    check(node, [outbox])
    assert len(node.log) == 50
    # 10 at once and 10 more at the end of each period; what a period loses is the way there and
    # back.
    assert 20.0 <= max(node.written_at) - start < 21.0
    assert "rate_limited" in outbox.codes


def test_a_resend_of_50_that_are_all_known_costs_nothing() -> None:
    world = World(1)
    node = Node(world, Trouble())
    outbox = Eager(world, node, "phone")
    for _ in range(50):
        outbox.write(UserId("bob"))
    # All of them were done before the reconnect
    for cid in outbox.wrote[UserId("bob")]:
        node.database.write(UserId("bob"), cid)
    start = world.now
    world.run(1)
    assert outbox.waiting == 0
    assert not outbox.codes
    assert world.now - start < 0.5
    assert node.user.window.wait(world.now) == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_two_devices_that_do_not_know_of_each_other_are_not_punished(seed: int, kind: type[Outbox]) -> None:
    world = World(seed)
    node = Node(world, Trouble(delay_s=0.2))
    outboxes = [kind(world, node, name) for name in ("phone", "laptop")]
    for outbox in outboxes:
        for n in range(25):
            world.at(world.now + world.random.uniform(0, 8), partial(outbox.write, UserId(f"peer{n % 2}")))
    world.run(120)
    check(node, outboxes)


troubles = st.builds(
    Trouble,
    gate_s=st.sampled_from([0.0, 0.005, 0.04]),
    gate_max=st.sampled_from([2, 10, 10_000]),
    silences=st.sampled_from([0.0, 0.0, 0.05, 0.5]),
    outages=st.sampled_from([0.0, 0.1, 0.5]),
    halves=st.sampled_from([0.0, 0.5]),
    queue_max=st.sampled_from([3, 20, 10_000]),
    rows_max=st.sampled_from([1, 2, 5, 256]),
    frames_per_s=st.sampled_from([20.0, 1e6]),
    frames_burst=st.sampled_from([5, 40, 10_000]),
    delay_s=st.sampled_from([0.001, 0.02, 0.3]),
    commit_s=st.sampled_from([0.002, 0.05, 0.5]),
    make_s=st.sampled_from([0.0, 0.02, 0.5]),
)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    troubles,
    st.sampled_from(KINDS),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0.0, 2.0]),
)
def test_whatever_goes_wrong_the_order_holds_and_everything_gets_through(
    seed: int, trouble: Trouble, kind: type[Outbox], devices: int, peers: int, spread_s: float
) -> None:
    world = World(seed)
    node = Node(world, trouble)
    outboxes = [kind(world, node, f"device{n}") for n in range(devices)]
    for outbox in outboxes:
        for _ in range(20):
            world.at(
                world.now + world.random.uniform(0, spread_s),
                lambda outbox=outbox: outbox.write(UserId(f"peer{world.random.randrange(peers)}")),  # type: ignore[misc]
            )
    world.run(600)
    check(node, outboxes)


# Its frames are counted, and few are let in: who sends all of a queue again at each answer is
# closed for that.
FEW_FRAMES = Trouble(
    outages=0.5,
    halves=0.5,
    queue_max=3,
    rows_max=1,
    frames_per_s=20.0,
    frames_burst=5,
    delay_s=0.001,
    commit_s=0.5,
    gate_max=10,
    silences=0.5,
)
# A full gate refuses at once, and what came before has its ok later: by then more is on its way.
LATE_OKS = Trouble(
    queue_max=3, rows_max=1, frames_per_s=20.0, frames_burst=5, delay_s=0.3, commit_s=0.002, gate_s=0.0, gate_max=2
)


@settings(max_examples=250, deadline=None)
@example(1, LATE_OKS, Sdk, 1, 2, 1, 2.0)
@example(1, LATE_OKS._replace(outages=0.1), Sdk, 1, 2, 1, 2.0)
@example(2300466123, FEW_FRAMES, Eager, 2, 3, 1, 0.0)
@example(2300466123, FEW_FRAMES, Sdk, 2, 3, 1, 0.0)
@given(
    st.integers(0, 2**32),
    troubles,
    st.sampled_from(KINDS),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0.0, 2.0]),
)
def test_over_nodes_that_share_their_limits_too(
    seed: int, trouble: Trouble, kind: type[Outbox], nodes: int, devices: int, peers: int, spread_s: float
) -> None:
    """With a gate before the lane, and blocks that arise while entries wait there."""
    world = World(seed)
    redis = Model()
    first = Node(world, trouble, redis)
    all_nodes = [first, *(Node(world, trouble, redis, first) for _ in range(nodes - 1))]
    outboxes = [kind(world, node, f"device{n}") for node in all_nodes for n in range(devices)]
    for outbox in outboxes:
        for _ in range(20):
            world.at(
                world.now + world.random.uniform(0, spread_s),
                lambda outbox=outbox: outbox.write(UserId(f"peer{world.random.randrange(peers)}")),  # type: ignore[misc]
            )
    world.run(900)
    for node in all_nodes:
        assert node.redis is not None
        assert not len(node.redis.queue)
        check(node, outboxes, exact_rate=False)
    if not trouble.silences:
        # By Redis's clock; what an outage left in the log though it was said to have failed was
        # given back.
        takes = redis.states[ALICE].takes
        assert most_in_any(takes, PERIOD_S * US) <= PER_PERIOD
        if not trouble.outages:
            assert len(takes) == len(first.log), "each entry has its slot, and no slot was lost"


def test_a_client_that_does_not_wait_gets_longer_waits_and_is_closed() -> None:
    world = World(1)
    node = Node(world, Trouble(delay_s=0.001))

    class Hasty(Eager):
        def refused(self, peer: UserId, cid: Cid, error: Error) -> None:
            world.at(world.now + 0.2, lambda: self.push(peer, cid, retry=True))

    outbox = Hasty(world, node, "phone")
    for _ in range(12):
        outbox.write(UserId("bob"))
    world.run(30)
    assert node.ended == [CloseCode.RATE_LIMITED]
    assert len(node.log) == 10
