"""When a worker or a PostgreSQL that ended is started again."""

from __future__ import annotations

import random

import pytest

from chatd.loop.backoff import STEADY_S, Backoff


@pytest.mark.parametrize("seed", range(5))
def test_the_first_restart_is_at_once_and_later_ones_double_up_to_a_bound(seed: int) -> None:
    backoff = Backoff(random.Random(seed), 1.0, 30.0)
    assert backoff.wait_s(0) == 0
    for ceiling in (1, 2, 4, 8, 16, 30, 30, 30):
        assert ceiling / 2 <= backoff.wait_s(1) <= ceiling
    for _ in range(2_000):
        assert backoff.wait_s(0) <= 30.0


def test_one_that_had_served_for_a_minute_is_started_at_once_again() -> None:
    backoff = Backoff(random.Random(1), 1.0, 30.0)
    for _ in range(5):
        backoff.wait_s(STEADY_S - 1)
    assert backoff.wait_s(STEADY_S) == 0
    assert 0.5 <= backoff.wait_s(0) <= 1


def test_workers_that_died_together_come_back_apart() -> None:
    waits = set()
    for seed in range(10):
        backoff = Backoff(random.Random(seed), 1.0, 30.0)
        backoff.wait_s(0)
        waits.add(backoff.wait_s(0))
    assert len(waits) == 10
