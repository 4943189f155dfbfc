"""What a session has not got yet."""

from __future__ import annotations

from chatd.core.missed import Missed
from chatd.ids import ConvId

A, B = ConvId(1), ConvId(2)


def test_the_first_entry_that_was_missed_counts() -> None:
    missed = Missed()
    missed.miss(A, 7)
    missed.miss(A, 9)
    missed.miss(B, 3)
    missed.miss(B, 2)
    assert missed.behind == {A: 7, B: 2}


def test_who_has_caught_up_with_all_holds_no_map() -> None:
    missed = Missed()
    missed.caught_up(A)  # it was never behind
    missed.miss(A, 7)
    missed.miss(B, 3)
    missed.filled(A, 9)
    assert missed.behind == {A: 9, B: 3}
    missed.caught_up(A)
    assert missed.behind == {B: 3}
    missed.caught_up(B)
    assert missed.behind is None


def test_an_ok_is_given_once_in_place_of_its_entry() -> None:
    missed = Missed()
    assert missed.take_held(A, 7) is None
    missed.hold(A, 7, b"ok")
    assert missed.take_held(A, 6) is None
    assert missed.take_held(B, 7) is None
    assert missed.take_held(A, 7) == b"ok"
    assert missed.take_held(A, 7) is None


def test_a_cursor_that_moved_twice_is_pushed_once() -> None:
    missed = Missed()
    assert missed.take_moved() == set()
    for side in (0, 1, 1):
        missed.cursor_moved(A, side)
    assert missed.take_moved() == {(A, 0), (A, 1)}
    assert missed.take_moved() == set()
