"""Who lives, by whether leases move:

Redis's clock is stepped, beats fail, and what stands in Redis is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.cluster.leases import BEATS, Lease, Leases
from chatd.core.remote_presence import NODES_MAX
from chatd.core.steady_time import SteadyReading
from chatd.wire.presence_codec import Info

OWN, OTHER, THIRD = "0" * 16, "1" * 16, "2" * 16
LEASE_S = 5.0
BEAT_S = LEASE_S / BEATS
INFO = Info("other", 1, False, 0, None)


class Sim:
    """One node's view:

    `redis_ms` can be stepped, `alive` are those that renew; `beat` is one of ours.
    """

    def __init__(self) -> None:
        self.now, self.redis_ms = 100.0, 1_790_000_000_000
        self.leases = Leases(OWN, "own", LEASE_S)
        self.scores: dict[str, int] = {}
        self.infos: dict[str, Info] = {}
        self.dead: dict[str, float] = {}

    def pass_s(self, seconds: float, alive: Sequence[str] = ()) -> None:
        self.now += seconds
        self.redis_ms += int(seconds * 1000)
        for boot in alive:
            self.scores[boot] = self.redis_ms

    def beat(self) -> None:
        rows = [
            Lease(boot, self.redis_ms - score, score, self.infos.get(boot, INFO)) for boot, score in self.scores.items()
        ]
        for boot, _ in self.leases.judge(rows, self.now).dead:
            self.dead[boot] = self.now

    def run(self, seconds: float, alive: Sequence[str] = (), fails: Callable[[int], bool] = lambda n: False) -> None:
        """`fails(n)`: our n-th beat does not go through."""
        for n in range(round(seconds / BEAT_S)):
            self.pass_s(BEAT_S, alive)
            if not fails(n):
                self.beat()


@pytest.fixture
def sim() -> Sim:
    sim = Sim()
    sim.run(LEASE_S, [OTHER])
    assert list(sim.leases.nodes) == [OTHER]
    return sim


def test_how_late_it_is_is_taken_from_a_lease_just_renewed_and_brought_up_to_now() -> None:
    sim = Sim()
    told = INFO._replace(steady=SteadyReading(1_000, -7, 60_000))
    later = [SteadyReading(1_200, -7, 60_200)]
    for age_ms, renewed, heard in (
        (200, True, later),
        (200, False, []),
        (-1, True, []),
        (2_000, True, []),
        (200, True, later),
    ):
        sim.pass_s(BEAT_S)
        if renewed:
            sim.scores[OTHER] = sim.redis_ms - age_ms
        lease = Lease(OTHER, age_ms, sim.scores[OTHER], told)
        assert sim.leases.judge([lease], sim.now).steady == heard, (age_ms, renewed)


def test_a_node_that_stops_is_dead_within_a_lease_and_a_beat(sim: Sim) -> None:
    died = sim.now
    sim.run(2 * LEASE_S)
    assert LEASE_S < sim.dead[OTHER] - died <= LEASE_S + BEAT_S + 0.01


@pytest.mark.parametrize("step_s", [-86_400, -30, -3, 3, 30, 86_400])
def test_no_step_of_redis_clock_keeps_the_dead_or_kills_the_living(sim: Sim, step_s: int) -> None:
    sim.run(1, [OTHER, THIRD])
    died = sim.now
    sim.redis_ms += step_s * 1000
    sim.run(3 * LEASE_S, [OTHER])
    assert list(sim.dead) == [THIRD]
    assert sim.dead[THIRD] - died <= LEASE_S + 2 * BEAT_S
    assert list(sim.leases.nodes) == [OTHER]


def test_a_dead_node_whose_row_still_stands_does_not_join_again(sim: Sim) -> None:
    sim.redis_ms -= 3_600_000
    sim.run(4 * LEASE_S)
    assert list(sim.dead) == [OTHER]
    assert not sim.leases.nodes
    sim.run(1, [OTHER])
    assert list(sim.leases.nodes) == [OTHER], "one that moves again does"


def test_one_failed_beat_in_each_lease_keeps_nobody(sim: Sim) -> None:
    died = sim.now
    sim.run(4 * LEASE_S, fails=lambda n: n % BEATS == 3)
    assert sim.dead[OTHER] - died <= LEASE_S + 3 * BEAT_S


def test_every_other_beat_failed_keeps_nobody_for_two_leases(sim: Sim) -> None:
    died = sim.now
    sim.run(4 * LEASE_S, fails=lambda n: n % 2 == 0)
    assert sim.dead[OTHER] - died <= 2 * LEASE_S


def test_while_redis_is_away_and_just_after_nobody_is_dead(sim: Sim) -> None:
    sim.run(20 * LEASE_S, fails=lambda n: True)
    sim.run(LEASE_S - BEAT_S)
    assert not sim.dead
    sim.run(3 * BEAT_S)
    assert list(sim.dead) == [OTHER]


def test_a_failover_to_older_leases_kills_nobody_who_renews(sim: Sim) -> None:
    sim.scores[OTHER] -= 3_000
    sim.beat()
    sim.run(2 * LEASE_S, [OTHER])
    assert not sim.dead


def test_a_batch_is_a_sign_of_life_and_a_hole_makes_stale(sim: Sim) -> None:
    node = sim.leases.nodes[OTHER]
    node.stale = False
    sim.run(LEASE_S - BEAT_S)
    assert sim.leases.heard(OTHER, 2, sim.now) is True
    assert not node.stale
    sim.run(LEASE_S - BEAT_S)
    assert not sim.dead
    assert sim.leases.heard(OTHER, 2, sim.now) is False
    assert sim.leases.heard(OTHER, 4, sim.now) is None
    assert node.stale


def test_a_made_up_batch_number_is_believed_until_the_node_says_otherwise(sim: Sim) -> None:
    node = sim.leases.nodes[OTHER]
    sim.leases.heard(OTHER, 2**52, sim.now)
    sim.infos[OTHER] = INFO._replace(n=5)
    sim.run(2 * BEAT_S, [OTHER])
    assert (node.n, node.stale) == (5, True)


def test_a_node_that_left_stays_for_its_grace(sim: Sim) -> None:
    sim.infos[OTHER] = INFO._replace(left=True, grace_ms=3_000)
    sim.pass_s(0.1, [OTHER])
    left = sim.now
    sim.run(3 * LEASE_S)
    assert LEASE_S + 3 - 0.1 <= sim.dead[OTHER] - left <= LEASE_S + 3 + 2 * BEAT_S


def test_made_up_nodes_are_bounded_and_go_after_a_lease(sim: Sim) -> None:
    for n in range(NODES_MAX + 100):
        sim.leases.heard(f"{n + 5:016x}", 1, sim.now)
    assert len(sim.leases.nodes) <= NODES_MAX
    sim.run(2 * LEASE_S, [OTHER])
    assert list(sim.leases.nodes) == [OTHER]


@given(
    st.lists(
        st.tuples(st.sampled_from([OTHER, THIRD, "f" * 16]), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**53)),
        max_size=30,
    )
)
def test_any_rows_are_judged(rows: list[tuple[str, int, int]]) -> None:
    leases = Leases(OWN, "own", LEASE_S)
    for n, (boot, age_ms, batch) in enumerate(rows):
        leases.judge([Lease(boot, age_ms, 1_000 - age_ms, INFO._replace(n=batch))], 100.0 + n)
