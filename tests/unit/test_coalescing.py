"""News at most once a second, the last of it always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd.core.coalescing import Pace


def test_the_first_is_told_at_once_and_the_last_when_the_second_is_over() -> None:
    pace: Pace[str, int] = Pace(1.0)
    assert pace.offer("a", 1, 10.0)
    assert not pace.offer("a", 2, 10.1)
    assert not pace.offer("a", 3, 10.2)
    assert pace.offer("b", 9, 10.5), "another's is told without a wait"
    assert pace.due(10.9) == []
    assert pace.due(11.0) == [("a", 3)]
    assert pace.merged == 1
    assert not pace.offer("a", 4, 11.5), "a second from the last that was told"
    assert pace.due(12.0) == [("a", 4)]
    assert pace.due(20.0) == []
    assert len(pace) == 0, "nothing is kept of what was told long ago"
    assert pace.offer("a", 5, 20.0)


def test_it_says_when_something_is_due_and_nothing_is_due_while_it_keeps_nothing() -> None:
    pace: Pace[str, int] = Pace(1.0)
    assert pace.next_due() is None
    pace.offer("a", 1, 10.0)
    pace.offer("b", 1, 10.5)
    assert pace.next_due() == 11.0
    pace.offer("a", 2, 10.6)
    assert pace.due(11.0) == [("a", 2)]
    assert pace.next_due() == 11.5
    assert pace.due(11.5) == []
    assert pace.next_due() == 12.0
    assert pace.due(12.0) == []
    assert pace.next_due() is None


def test_news_that_no_longer_stands_is_dropped_and_the_next_is_told_at_once() -> None:
    pace: Pace[str, int] = Pace(1.0)
    assert pace.offer("a", 1, 10.0)
    assert not pace.offer("a", 2, 10.1)
    assert pace.due(11.0, lambda news: news != 2) == []
    assert pace.offer("a", 3, 11.0)


@pytest.mark.parametrize("burst", [1, 2, 3])
@given(st.lists(st.tuples(st.integers(0, 51).map(lambda n: n / 128), st.sampled_from("ab")), min_size=1, max_size=80))
def test_never_more_than_the_rate_and_the_last_is_always_told(burst: int, steps: list[tuple[float, str]]) -> None:
    pace: Pace[str, int] = Pace(1.0, burst)
    told: dict[str, list[tuple[float, int]]] = {"a": [], "b": []}
    last: dict[str, int] = {}
    now = 0.0
    for n, (step, key) in enumerate(steps):
        now += step
        for one, news in pace.due(now):
            told[one].append((now, news))
        last[key] = n
        if pace.offer(key, n, now):
            told[key].append((now, n))
    for later in (now + 1.0, now + 2.0):
        for one, news in pace.due(later):
            told[one].append((later, news))
    for key, times in told.items():
        for i, (began, _) in enumerate(times):
            assert all(at - began >= n - burst for n, (at, _) in enumerate(times[i:], 1)), (
                "so many in a second, and a burst besides"
            )
        if key in last:
            assert times[-1][1] == last[key]
    assert sum(map(len, told.values())) + pace.merged == len(steps)
    assert not pace.due(now + 20.0) + pace.due(now + 21.0) + pace.due(now + 40.0)
    assert len(pace) == 0


def test_a_burst_is_told_at_once_and_what_follows_at_the_rate() -> None:
    pace: Pace[str, int] = Pace(1.0, 2)
    assert [pace.offer("a", n, 10.0 + n / 10) for n in range(4)] == [True, True, False, False]
    assert pace.due(11.0) == [("a", 3)]
    assert not pace.offer("a", 4, 11.1)
    assert pace.due(12.0) == [("a", 4)]
