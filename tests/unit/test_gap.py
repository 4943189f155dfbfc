"""A gap: what it keeps runs once it is the next, in the order of the log."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from chatd.core.gap import EARLY_MAX, Gap


def taken(gap: Gap, head: int) -> list[int]:
    """Run all whose turn it is; `head` moves by one with each. Gives their seqs."""
    ran: list[int] = []
    while (run := gap.take(head + len(ran))) is not None:
        run()
        ran.append(head + len(ran) + 1)
    return ran


@given(st.permutations(range(2, 12)), st.sets(st.integers(2, 11)))
def test_whatever_the_order_of_arrival_each_runs_once_and_in_order(order: list[int], early: set[int]) -> None:
    gap = Gap()
    ran: list[int] = []
    for seq in order:
        (gap.hold if seq in early else gap.wait)(seq, partial(ran.append, seq))
    assert gap.early == len(early)
    assert gap.take(0) is None
    assert taken(gap, 1) == list(range(2, 12)) == ran
    assert (gap.early, gap.waiting) == (0, [])


def test_it_is_closed_when_all_that_the_log_has_and_others_announced_is_delivered() -> None:
    gap = Gap(3)
    gap.heard = 5
    assert [gap.is_closed(head) for head in (2, 3, 4, 5)] == [False, False, False, True]


def test_an_entry_that_was_delivered_meanwhile_is_dropped_and_a_result_runs() -> None:
    gap, ran = Gap(), []
    gap.hold(3, lambda: ran.append("entry"))
    gap.wait(4, lambda: ran.append("result"))
    while (run := gap.take(5)) is not None:
        run()
    assert ran == ["result"], "its items may not be answered yet"
    assert gap.early == 0


def test_an_entry_that_comes_twice_is_kept_once() -> None:
    gap, ran = Gap(), []
    for _ in range(2):
        assert gap.hold(3, lambda: ran.append(3))
    assert taken(gap, 2) == ran == [3]


def test_entries_of_other_nodes_are_bounded_and_results_are_not() -> None:
    gap = Gap()
    kept = [gap.hold(seq, lambda: None) for seq in range(2, EARLY_MAX + 4)]
    assert kept == [True] * EARLY_MAX + [False, False]
    gap.wait(1_000, lambda: None)
    assert len(gap.waiting) == EARLY_MAX + 1


def test_what_is_not_in_the_log_is_forgotten() -> None:
    gap, ran = Gap(), []
    gap.heard = 9
    gap.hold(9, lambda: ran.append("entry"))
    gap.wait(3, lambda: ran.append("result"))
    gap.forget_heard()
    assert (gap.heard, gap.early) == (0, 0)
    assert taken(gap, 2) == [3]
    assert ran == ["result"]
