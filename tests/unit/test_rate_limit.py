"""The window against a model that keeps everything; the bucket and the penalty by their promises."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatd.core.rate_limit import (
    FORGET_S,
    PENALTY_MAX_S,
    PENALTY_MIN_S,
    Penalty,
    PenaltyVerdict,
    SlidingWindow,
    TokenBucket,
)

# Times in eighths of a second are exact in binary, so that the model may count without rounding.
eighths = st.integers(0, 60).map(lambda n: n / 8)


class WindowModel(RuleBasedStateMachine):
    """`SlidingWindow` beside a list of all takes ever made."""

    @initialize(max_events=st.integers(1, 5), period=st.integers(1, 40).map(lambda n: n / 8))
    def start(self, max_events: int, period: float) -> None:
        self.window = SlidingWindow(max_events, period)
        self.max_events, self.period = max_events, period
        self.now = 0.0
        self.takes: list[float] = []

    def room(self, at: float) -> bool:
        return sum(at - self.period < t <= at for t in self.takes) < self.max_events

    def expected_wait(self) -> float:
        candidates = [self.now, *(t + self.period for t in self.takes if t + self.period > self.now)]
        return min(at for at in candidates if self.room(at)) - self.now

    @rule(by=eighths)
    def later(self, by: float) -> None:
        self.now += by

    @rule()
    def take(self) -> None:
        expected = self.expected_wait()
        assert self.window.take(self.now) == expected
        if expected == 0:
            self.takes.append(self.now)

    @rule()
    def take_as_soon_as_told(self) -> None:
        wait = self.window.wait(self.now)
        self.now += wait
        assert self.window.take(self.now) == 0.0
        self.takes.append(self.now)

    @rule()
    def wait(self) -> None:
        assert self.window.wait(self.now) == self.expected_wait()

    @precondition(lambda self: self.takes)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        # Only those that still count: what has left the window is unknown to it, and giving it back
        # must change nothing.
        taken_at = data.draw(st.sampled_from(self.takes))
        self.window.give_back(taken_at)
        if taken_at > self.now - self.period:
            self.takes.remove(taken_at)

    @rule()
    def is_it_as_good_as_new(self) -> None:
        inside = [t for t in self.takes if t > self.now - self.period]
        assert (self.window.empty_at > self.now) == bool(inside)

    @rule(at=eighths)
    def give_back_unknown(self, at: float) -> None:
        self.window.give_back(self.now + 1 + at)

    @invariant()
    def never_more_in_any_period(self) -> None:
        for start in getattr(self, "takes", ()):
            assert sum(start <= t < start + self.period for t in self.takes) <= self.max_events


TestWindowModel = WindowModel.TestCase


def test_what_is_owed_is_waited_for() -> None:
    bucket = TokenBucket(10, 5)
    assert bucket.take(0.0)
    bucket.owe(0.0, 6.0)  # two more than there are
    assert not bucket.take(0.2)
    assert bucket.take(0.3)
    assert not bucket.take(0.3)
    bucket = TokenBucket(10, 5)
    bucket.owe(100.0, 1.0)  # a full one: nothing was saved up beyond that
    assert [bucket.take(100.0) for _ in range(5)] == [True] * 4 + [False]


@given(
    st.floats(0, 1e9, allow_nan=False),
    st.floats(1e-3, 3_600, allow_nan=False),
    st.lists(st.floats(0, 10, allow_nan=False), min_size=3, max_size=12),
)
def test_the_wait_told_is_enough_whatever_the_rounding(now: float, period: float, gaps: list[float]) -> None:
    window = SlidingWindow(3, period)
    for gap in gaps:
        now += gap
        wait = window.take(now)
        assert wait <= period * 1.001 + math.ulp(now)
        if wait:
            assert window.wait(now) == wait
            now += wait
            assert window.take(now) == 0.0


def test_ten_in_five_seconds() -> None:
    window = SlidingWindow(10, 5.0)
    assert [window.take(100.0 + n / 4) for n in range(10)] == [0.0] * 10
    assert window.take(104.0) == 1.0
    assert window.take(104.9375) == 0.0625
    assert window.take(105.0) == 0.0
    assert window.take(105.0) == 0.25
    window.give_back(102.0)
    assert window.take(105.0) == 0.0


def test_a_window_holds_what_is_used_of_a_high_limit_and_no_more() -> None:
    window = SlidingWindow(1_000_000, 5.0)
    for n in range(10_000):
        assert window.take(n / 8) == 0.0
        assert window._takes is not None
        assert len(window._takes) <= 41
    for n in range(400):
        window.take(2_000.0 + n / 800)  # many at once, and then few
    sizes = []
    for n in range(420):
        window.take(2_100.0 + n / 8)
        assert window._takes is not None
        sizes.append(len(window._takes))
    assert sizes[0] == 399
    assert sizes[-1] <= 41


def test_a_window_that_nobody_uses_holds_no_times() -> None:
    window = SlidingWindow(10, 5.0)
    assert window.wait(1.0) == 0.0
    window.give_back(1.0)
    assert window._takes is None
    window.take(1.0)
    window.give_back(1.0)
    assert window._takes is None


# ---- bucket --------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.floats(0.5, 1_000), st.lists(st.tuples(st.floats(0, 2), st.integers(1, 60)), max_size=30))
def test_a_bucket_gives_the_burst_and_the_rate_and_no_more(
    burst: int, per_s: float, steps: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(per_s, burst)
    now = 1_000.0
    taken: list[float] = []
    for gap, tries in steps:
        now += gap
        taken += [now for _ in range(tries) if bucket.take(now)]
    for n, start in enumerate(taken):
        for m in range(n, len(taken)):
            assert m - n + 1 <= burst + 0.5 + per_s * (taken[m] - start) + 1e-6


@given(st.integers(1, 400), st.floats(0.1, 1e6), st.floats(0, 1e6))
def test_after_a_pause_exactly_the_burst_goes_through(burst: int, per_s: float, now: float) -> None:
    bucket = TokenBucket(per_s, burst)
    assert sum(bucket.take(now) for _ in range(burst + 5)) == burst
    now += burst / per_s + 1e-3
    assert sum(bucket.take(now) for _ in range(burst + 5)) == burst


def test_one_token_comes_back_at_a_time() -> None:
    bucket = TokenBucket(10.0, 3)
    assert [bucket.take(5.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(5.04)
    assert bucket.take(5.1)
    assert not bucket.take(5.1)


def test_buckets_are_small_and_share_their_settings() -> None:
    one, other = TokenBucket(100.0, 400), TokenBucket(100.0, 400)
    assert not hasattr(one, "__dict__")
    assert sys.getsizeof(one) <= 64
    assert one._token_s is other._token_s


# ---- penalty -------------------------------------------------------------------------------------


def test_being_refused_is_no_offence() -> None:
    penalty = Penalty(2)
    for n in range(1_000):
        assert penalty.refused(n / 100, 1.5, False) == PenaltyVerdict(False, 1.5)
    assert penalty.until == 0.0


def test_each_early_return_doubles_the_wait_up_to_its_bound_then_closes() -> None:
    penalty = Penalty(8)
    now, waits, closes = 100.0, [], []
    for _ in range(9):
        verdict = penalty.refused(now, max(3.0, penalty.until - now), True)
        waits.append(verdict.wait_s)
        closes.append(verdict.close)
        assert penalty.until == now + verdict.wait_s
        now += 0.5
    assert waits == [6.0, 12.0, 24.0, 48.0] + [PENALTY_MAX_S] * 5
    assert closes == [False] * 8 + [True]


def test_an_early_return_at_the_end_of_a_wait_costs_no_less() -> None:
    penalty = Penalty(8)
    assert penalty.refused(100.0, 0.1, True).wait_s == 2 * PENALTY_MIN_S
    assert penalty.refused(101.8, 0.2, True).wait_s == 4 * PENALTY_MIN_S


def test_a_window_of_an_hour_is_told_in_full() -> None:
    penalty = Penalty(8)
    assert penalty.refused(100.0, 3_000.0, True) == PenaltyVerdict(False, 3_000.0)
    assert penalty.until == 3_100.0


def test_strikes_are_forgotten_after_a_clean_time_counted_from_the_end_of_the_penalty() -> None:
    for clean, close in ((FORGET_S - 0.5, True), (FORGET_S, False)):
        penalty = Penalty(1)
        penalty.refused(100.0, 2.0, True)
        penalty.refused(110.0, 2.0, False)  # no offence, so it does not lengthen the memory either
        verdict = penalty.refused(penalty.until + clean, 1.0, True)
        assert verdict.close is close
        assert verdict.wait_s == (8.0 if close else 2.0)


def test_a_penalty_is_as_good_as_new_once_it_is_forgotten() -> None:
    penalty = Penalty(1)
    penalty.refused(10.0, 1.0, False)
    assert penalty.forgotten_at == 0.0
    penalty.refused(10.0, 1.0, True)
    assert penalty.forgotten_at == 10.0 + 2 * PENALTY_MIN_S + FORGET_S


@pytest.mark.parametrize("strikes_max", [1, 3, 64])
def test_it_closes_after_strikes_max_and_goes_on_closing(strikes_max: int) -> None:
    penalty = Penalty(strikes_max)
    verdicts = [penalty.refused(100.0 + n, 1.0, True).close for n in range(strikes_max + 3)]
    assert verdicts == [False] * strikes_max + [True] * 3


@given(st.lists(st.tuples(st.floats(0, 70), st.floats(0, 10), st.booleans()), max_size=40))
def test_who_waits_what_was_told_is_past_the_penalty(steps: list[tuple[float, float, bool]]) -> None:
    penalty = Penalty(100)
    now = 50.0
    for gap, window_wait, early in steps:
        now += gap
        verdict = penalty.refused(now, max(window_wait, penalty.until - now, 0.0), early)
        assert verdict.wait_s >= window_wait
        assert now + verdict.wait_s >= penalty.until - 1e-9
        assert verdict.wait_s <= max(PENALTY_MAX_S, window_wait) + 1e-9
