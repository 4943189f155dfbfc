"""Who waits for hello, and who goes for whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatd.core.unauthenticated import Unauthenticated


def test_of_one_address_the_oldest_goes_and_others_stay() -> None:
    strangers: Unauthenticated[int] = Unauthenticated(100, 3)
    gone = []
    for n in range(10):
        assert strangers.enter(n) is None
        gone.append(strangers.locate(n, "192.0.2.1"))
    assert gone == [None, None, None, 0, 1, 2, 3, 4, 5, 6]
    assert strangers.enter(10) is None
    assert strangers.locate(10, "192.0.2.2") is None
    assert (len(strangers), strangers.of("192.0.2.1"), strangers.of("192.0.2.2")) == (4, 3, 1)


def test_of_all_the_oldest_goes_where_the_node_is_full() -> None:
    strangers: Unauthenticated[int] = Unauthenticated(3, 3)
    for n in range(3):
        strangers.enter(n)
        strangers.locate(n, str(n))
    strangers.leave(0)  # it said hello
    assert [strangers.enter(n) for n in range(3, 6)] == [None, 1, 2]


def test_one_whose_address_comes_late_or_never_counts_all_the_same() -> None:
    strangers: Unauthenticated[int] = Unauthenticated(2, 1)
    strangers.enter(1)
    strangers.enter(2)
    assert strangers.enter(3) == 1
    assert strangers.locate(1, "a") is None, "it is gone"
    assert strangers.locate(2, "a") is None
    assert strangers.locate(3, "a") == 2
    strangers.leave(3)
    strangers.leave(3)
    assert (len(strangers), strangers.of("a")) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("el"), st.integers(0, 8), st.sampled_from("ab")), max_size=60))
def test_no_bound_is_ever_passed_and_nothing_is_forgotten(steps: list[tuple[str, int, str]]) -> None:
    strangers: Unauthenticated[int] = Unauthenticated(5, 3)
    inside: set[int] = set()
    for what, guest, address in steps:
        if what == "l":
            strangers.leave(guest)
            inside.discard(guest)
        elif guest not in inside:
            inside.add(guest)
            inside -= {strangers.enter(guest)}
            inside -= {strangers.locate(guest, address)}
        assert len(strangers) == len(inside) <= 5
        assert strangers.of("a") + strangers.of("b") == len(inside)
        assert max(strangers.of("a"), strangers.of("b")) <= 3
