"""Steady time does not follow PostgreSQL's steps, and a node that starts after one takes over the
time of the others.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.clock import RTT_S_MAX, Clock
from chatd.core.steady_time import NEAR_MS, Steady, SteadyReading

T0 = 1_700_000_000.0
LEASE_S = 5.0
HOUR_MS = 3_600_000


class World:
    """PostgreSQL's clock is off by what it is set to; each node has a monotonic clock of its own."""

    def __init__(self) -> None:
        self.at, self.off_ms = 1_000.0, 0

    def node(self, base_s: float = 0.0) -> tuple[Clock, Steady]:
        clock = Clock(lambda: self.at - base_s, lambda: 0.0)
        self.read(clock)
        return clock, Steady(clock, LEASE_S)

    def read(self, clock: Clock, rtt_s: float = 0.0, asked: float = 0.5) -> None:
        clock.sync(int((T0 + self.at - rtt_s * (1 - asked)) * 1000) + self.off_ms, rtt_s)


def hears(one: Steady, *others: Steady, late_ms: int = 0) -> int:
    return one.adjust([told._replace(ms=told.ms + late_ms) for told in (other.reading() for other in others)])


@pytest.mark.parametrize("step_ms", [-HOUR_MS, -5_000, 5_000, HOUR_MS])
def test_it_does_not_matter_when_a_node_reads_a_step(step_ms: int) -> None:
    world = World()
    (a_clock, a), (b_clock, b) = world.node(), world.node(base_s=77.0)
    world.off_ms = step_ms
    for clock in (a_clock, b_clock):
        world.at += 0.3
        world.read(clock)
        assert abs(a.ms() - b.ms()) <= 2
    assert abs(a_clock.now_ms() - b_clock.now_ms()) <= 2
    assert [hears(a, b), hears(b, a)] == [0, 0]


@pytest.mark.parametrize("step_ms", [-HOUR_MS, -5_000, 5_000, HOUR_MS])
@pytest.mark.parametrize("seen", [True, False])
def test_a_node_that_starts_after_a_step_takes_over_the_time_of_older_ones(step_ms: int, seen: bool) -> None:
    world = World()
    clock, old = world.node()
    world.at += 60
    world.off_ms = step_ms
    if seen:
        world.read(clock)
    _, new = world.node()
    assert hears(old, new) == 0
    assert abs(hears(new, old, late_ms=NEAR_MS - 50) + step_ms) <= (2 if seen else NEAR_MS)
    world.at += 1
    world.read(clock)
    hears(new, old)
    assert abs(new.ms() - old.ms()) <= 2
    assert hears(new, old) == 0
    world.at += LEASE_S
    assert new.adjust([SteadyReading(0, 0, HOUR_MS)]) == 0, "it is not young any more"


def test_nodes_that_start_together_take_over_nothing() -> None:
    world = World()
    (_, a), (_, b) = world.node(), world.node()
    world.off_ms = HOUR_MS
    assert [hears(a, b), hears(b, a)] == [0, 0]


def test_of_two_measures_of_a_step_both_go_by_the_larger_sum() -> None:
    world = World()
    (a_clock, a), (b_clock, b) = world.node(), world.node()
    world.at += LEASE_S
    world.off_ms = -HOUR_MS
    world.read(a_clock, rtt_s=0.04, asked=0.0)
    world.read(b_clock, rtt_s=0.04, asked=1.0)
    assert a.reading().ahead_ms != b.reading().ahead_ms
    for one, other in ((a, b), (b, a)):
        assert hears(one, other) == 0
    assert a.reading().ahead_ms == b.reading().ahead_ms


@given(
    st.lists(
        st.tuples(st.sampled_from([-HOUR_MS, -5_000, 0, 5_000]), st.floats(0.0, 0.4), st.floats(0.0, 1.0)), max_size=20
    )
)
def test_a_step_that_was_read_slowly_is_known_exactly_by_a_quicker_reading(
    readings: list[tuple[int, float, float]],
) -> None:
    world = World()
    clock, steady = world.node()
    began, at, off_ms = steady.ms(), world.at, 2
    for step_ms, rtt_s, asked in readings:
        world.at += 1
        world.off_ms += step_ms
        world.read(clock, rtt_s, asked)
        off_ms += 0 if step_ms else int(min(rtt_s, RTT_S_MAX) * 500)  # it may count as drift
        assert abs(steady.ms() - began - (world.at - at) * 1000) <= off_ms
        world.at += 1
        world.read(clock)
