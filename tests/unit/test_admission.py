"""Who goes through the gate and in which order: against a model of Redis (tests/limits_model.py) in
a time of the test's.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatd.core.admission import CALL_MAX, REPORTS_MAX, AdmissionQueue, Grant
from chatd.core.rate_limit import NO_GRANT_S, PENALTY_MIN_S, SharedPenalty, SharedWindow
from chatd.ids import UserId

if TYPE_CHECKING:
    from collections.abc import Callable

    from chatd.core.admission import Call

ALICE, BOB = UserId("alice"), UserId("bob")
GRANTED = Grant(1, 0.0, 0.0, 0, 0.0)


class Wakes:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> None:
        self.n += 1


def make(queue_max: int = 1_000) -> tuple[AdmissionQueue, Wakes]:
    wakes = Wakes()
    return AdmissionQueue(queue_max, wakes), wakes


def window(gate: AdmissionQueue, user: UserId = ALICE, most: int = 3, period_s: float = 5.0) -> SharedWindow:
    return SharedWindow(most, period_s, 1, user, gate, SharedPenalty(8))


def taker(window: SharedWindow, results: list[float]) -> Callable[[float], None]:
    return lambda came: results.append(window.take(came))


def granted(call: Call, n: int, wait_s: float = 0.0) -> list[Grant]:
    return [Grant(n, wait_s, 0.0, 0, 0.0) for _ in call.asks]


def test_what_waits_goes_through_in_the_order_it_came_and_after_the_answer() -> None:
    gate, wakes = make()
    windows = [window(gate, UserId(f"u{n % 3}")) for n in range(3)]
    passed: list[int] = []
    for n in range(7):
        assert gate.put(windows[n % 3], 1.0, lambda _, n=n: passed.append(n))  # type: ignore[misc]
    assert wakes.n == 1, "once, for all that waits"
    call = gate.gather()
    assert [(ask.window, ask.want) for ask in call.asks] == [(windows[0], 3), (windows[1], 2), (windows[2], 2)]
    gate.put(windows[0], 1.0, lambda _: passed.append(7))
    assert len(gate) == 8
    assert passed == []
    gate.decide(call, 99, granted(call, 3), 1.0)
    assert passed == list(range(7))
    assert len(gate) == 1
    call = gate.gather()
    gate.decide(call, 99, granted(call, 1), 1.0)
    assert passed == list(range(8))
    assert len(gate) == 0


def test_as_many_as_were_granted_take_and_the_first_ones() -> None:
    gate, _ = make()
    alice, results = window(gate), list[float]()
    for _ in range(3):
        gate.put(alice, 10.0, taker(alice, results))
    call = gate.gather()
    gate.decide(call, 7, granted(call, 2, 4.0), 10.5)
    assert results[:2] == [0.0, 0.0]
    assert results[2] == 4.5  # as of 10.0: Redis has room 4 s after its answer
    assert alice.wait(12.0) == 2.5


def test_no_more_is_asked_for_than_this_nodes_own_count_allows() -> None:
    gate, _ = make()
    alice, results = window(gate), list[float]()
    for _ in range(50):
        gate.put(alice, 10.0, taker(alice, results))
    call = gate.gather()
    assert [ask.want for ask in call.asks] == [3]
    gate.decide(call, 7, granted(call, 3), 10.0)
    assert [wait == 0.0 for wait in results] == [True] * 3 + [False] * 47
    gate.put(alice, 11.0, taker(alice, results))
    call = gate.gather()
    assert call.asks == []
    gate.decide(call, 0, [], 11.0)
    assert results[-1] == 4.0
    gate.put(alice, 15.0, taker(alice, results))
    assert [ask.want for ask in gate.gather().asks] == [1]


def test_who_was_told_to_wait_is_not_asked_for_before_that_unless_a_slot_comes_back() -> None:
    gate, _ = make()
    alice, results = window(gate), list[float]()
    # The second time, other nodes have taken all the rest
    for now, mark, most, wait_s in ((19.0, 7, 1, 0.0), (20.0, 8, 0, 2.0)):
        gate.put(alice, now, taker(alice, results))
        call = gate.gather()
        assert [ask.want for ask in call.asks] == [1]
        gate.decide(call, mark, granted(call, most, wait_s), now)
    gate.put(alice, 21.9, taker(alice, results))
    call = gate.gather()
    assert call.asks == []
    gate.decide(call, 0, [], 21.9)
    assert [alice.room(at) for at in (21.9, 22.0)] == [0, 2]
    alice.give_back(19.0)
    assert alice.room(21.9) == 3


def test_grants_that_nobody_used_and_takes_that_made_nothing_go_back_to_redis() -> None:
    gate, wakes = make()
    alice, results = window(gate), list[float]()
    gate.put(alice, 10.0, taker(alice, results))
    gate.put(alice, 10.0, lambda _: None)  # blocked: it takes nothing
    call = gate.gather()
    gate.decide(call, 7, granted(call, 2), 10.0)
    assert wakes.n == 2
    alice.give_back(10.0)
    alice.give_back(10.0)  # it is back already
    call = gate.gather()
    assert [(ask.want, ask.returned) for ask in call.asks] == [(0, [7, 7])]
    gate.decide(call, 8, granted(call, 0), 10.1)
    assert gate.idle


def test_a_slot_goes_back_by_the_mark_of_its_own_call() -> None:
    gate, _ = make()
    alice, results = window(gate, most=2), list[float]()
    for now, mark in ((10.0, 100), (11.0, 111), (15.0, 150), (16.0, 161)):
        gate.put(alice, now, taker(alice, results))
        call = gate.gather()
        gate.decide(call, mark, granted(call, 1), now)
    assert results == [0.0] * 4
    alice.give_back(10.0)  # long out of the window
    alice.give_back(16.0)
    alice.give_back(15.0)
    assert gate.gather().asks[0].returned == [161, 150]


def test_strikes_are_told_and_the_worse_opinion_stands() -> None:
    gate, wakes = make()
    alice = window(gate)
    assert alice.penalty is not None
    alice.penalty.refused(10.0, 1.0, False)
    assert wakes.n == 0
    told = alice.penalty.refused(10.0, 1.0, True)
    assert told.wait_s == 2 * PENALTY_MIN_S
    call = gate.gather()
    assert [(ask.want, ask.struck) for ask in call.asks] == [(0, [2.0])]
    gate.decide(call, 7, [Grant(0, 0.0, 7.0, 5, 8.0)], 10.5)
    assert alice.penalty.until == 17.5
    assert alice.room(17.4) == 0
    assert alice.penalty.refused(17.0, 0.5, True).wait_s == 16.0
    gate.gather()
    alice.penalty.learn(18.0, 19.0, 1, 2.0)
    assert alice.penalty.until == 33.0
    for strikes, closes in ((7, False), (8, True)):
        alice.penalty.learn(18.0, 19.0, strikes, 2.0)
        assert alice.penalty.refused(18.0, 0.5, True).close is closes


def test_a_penalty_that_is_forgotten_here_does_not_come_back() -> None:
    gate, _ = make()
    penalty = window(gate).penalty
    assert penalty is not None
    penalty.learn(10.0, 12.0, 8, 30.0)
    penalty.learn(12.0 + 60.0, 12.0 + 61.0, 1, 2.0)
    assert penalty.refused(73.5, 0.0, True) == (False, 4.0)


# ---- Redis away ----------------------------------------------------------------------------------


def test_without_an_answer_this_nodes_count_decides_and_then_nobody_waits() -> None:
    gate, wakes = make()
    alice, results = window(gate), list[float]()
    passed: list[int] = []
    for n in range(CALL_MAX + 2):
        gate.put(window(gate, UserId(f"u{n}")), 10.0, lambda _, n=n: passed.append(n))  # type: ignore[misc]
    call = gate.gather()
    gate.put(alice, 10.0, taker(alice, results))
    gate.returned(alice, 5)
    gate.alone(call)
    assert passed == list(range(CALL_MAX + 2))
    assert gate.alone_n == CALL_MAX + 3
    assert len(gate) == 0
    woken = wakes.n
    for _ in range(3):
        assert gate.put(alice, 11.0, taker(alice, results))
    assert [wait == 0.0 for wait in results] == [True, True, True, False]
    alice.give_back(11.0)  # Redis knows nothing of it
    assert alice.penalty is not None
    alice.penalty.refused(11.0, 1.0, True)
    assert gate.idle
    assert wakes.n == woken
    gate.back()
    gate.put(alice, 20.0, taker(alice, results))
    assert len(results) == 4
    assert [ask.want for ask in gate.gather().asks] == [1]


def test_what_other_nodes_took_does_not_count_while_this_one_is_alone() -> None:
    gate, _ = make()
    alice, results = window(gate), list[float]()
    gate.put(alice, 10.0, taker(alice, results))
    call = gate.gather()
    gate.decide(call, 7, granted(call, 0, 4.0), 10.0)
    gate.away = True
    gate.put(alice, 10.1, taker(alice, results))
    assert results == [4.0, 0.0]


# ---- bounds --------------------------------------------------------------------------------------


def test_the_queue_is_bounded() -> None:
    gate, _ = make(queue_max=5)
    results: list[float] = []
    alice = window(gate)
    assert [gate.put(alice, 1.0, taker(alice, results)) for _ in range(6)] == [True] * 5 + [False]
    gate.gather()
    assert gate.put(alice, 1.0, taker(alice, results))


def test_calls_are_bounded_and_what_there_is_to_tell_too() -> None:
    gate, _ = make(queue_max=CALL_MAX * 3)
    for n in range(REPORTS_MAX + 10):
        gate.returned(window(gate, UserId(f"u{n}")), 1)
    for _ in range(CALL_MAX + 10):
        gate.put(window(gate), 1.0, lambda _: None)
    calls = 0
    while not gate.idle:
        call = gate.gather()
        assert len(call.waiting) <= CALL_MAX
        assert len(call.asks) <= CALL_MAX
        told = sum(bool(ask.returned) for ask in call.asks)
        calls += told
        gate.decide(call, 0, granted(call, 0, 1.0), 1.0)
    assert calls == REPORTS_MAX


def test_a_window_without_a_grant_takes_nothing() -> None:
    gate, _ = make()
    alice = window(gate)
    assert alice.take(1.0) == NO_GRANT_S
    assert alice.empty_at == 0.0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 3), st.booleans()), max_size=40))
# Two of three takes of one time are gone
@example([(0.0, 1, False), (0.0, 2, False), (2.0, 0, False), (3.0, 1, True), (0.0, 0, True)])
def test_marks_stay_beside_their_takes(steps: list[tuple[float, int, bool]]) -> None:
    """Whatever is taken and given back, each slot goes back by the mark under which it was granted."""
    gate, _ = make()
    alice = window(gate, most=4)
    now, mark, marks = 100.0, 0, dict[float, list[int]]()
    for gap, takes, back in steps:
        now, mark = now + gap, mark + 1
        alice.grant(takes, mark, 0.0)
        for _ in range(takes + 1):
            if alice.take(now) == 0.0:
                marks.setdefault(now, []).append(mark)
        alice.settle()
        assert alice._marks is None or len(alice._marks) == len(alice._takes or ())
        if back and marks:
            at = max(marks)
            inside = (alice._takes or array("d")).count(at)
            marks[at] = marks[at][len(marks[at]) - inside :]  # the window lets go of the oldest ones once they are past
            alice.give_back(at)
            told = [m for ask in gate.gather().asks for m in ask.returned]
            gate._under_way = 0
            assert told == ([marks[at].pop(0)] if inside else [])
            if not marks[at]:
                del marks[at]


@pytest.mark.parametrize("most", [1, 3])
def test_room_is_what_a_window_would_take(most: int) -> None:
    gate, _ = make()
    alice = window(gate, most=most)
    for n in range(most):
        assert alice.room(10.0 + n) == most - n
        alice.grant(1, 1, 0.0)
        alice.take(10.0 + n)
    assert alice.room(14.9) == 0
    assert alice.room(15.0) == 1
    assert alice.room(10.0 + most - 1 + 5.0) == most


def test_a_no_for_an_hour_is_asked_about_again_each_second_for_another_node_may_give_back() -> None:
    gate, _ = make()
    bob, results = window(gate, most=1, period_s=3_600.0), list[float]()
    for now, wants in ((10.0, [1]), (10.5, []), (11.0, [1]), (11.5, []), (12.0, [1])):
        assert (bob.refused(now) == 0.0) == bool(wants)
        gate.put(bob, now, taker(bob, results))
        call = gate.gather()
        assert [ask.want for ask in call.asks] == wants
        gate.decide(call, 7, granted(call, 0, 3_600.0 - (now - 10.0)) if now < 12.0 else granted(call, 1), now)
    assert results == [3_600.0, 3_599.5, 3_599.0, 3_598.5, 0.0]
    assert bob.refused(12.0) > 0
