"""What a replica must have replayed before it may answer for a conversation."""

from __future__ import annotations

import pytest

from chatd.ids import ConvId
from chatd.postgres import replay_floor
from chatd.postgres.replay_floor import ReplayFloor

A, B, C = ConvId(1), ConvId(2), ConvId(3)


def looked(floor: ReplayFloor, position: int) -> None:
    floor.look_begins()
    floor.looked(position)


def test_what_was_not_shown_needs_nothing() -> None:
    floor = ReplayFloor()
    assert floor.needed(A) == 0
    looked(floor, 100)
    assert floor.needed(A) == 0
    assert floor.primary == 100


def test_what_was_shown_is_covered_by_the_look_that_begins_after_it() -> None:
    floor = ReplayFloor()
    floor.look_begins()
    floor.shown(A)  # perhaps after the position was taken
    assert floor.needed(A) is None
    floor.looked(100)
    assert floor.needed(A) is None
    floor.look_begins()
    assert floor.needed(A) is None
    floor.looked(200)
    assert floor.needed(A) == 200
    assert floor.needed(B) == 0


def test_a_look_that_fails_covers_nothing_and_the_next_one_does() -> None:
    floor = ReplayFloor()
    floor.shown(A)
    floor.look_begins()
    floor.shown(B)
    assert (floor.needed(A), floor.needed(B)) == (None, None)
    looked(floor, 100)
    assert (floor.needed(A), floor.needed(B)) == (100, 100)


def test_the_latest_look_counts() -> None:
    floor = ReplayFloor()
    for position in (100, 200):
        floor.shown(A)
        looked(floor, position)
    assert floor.needed(A) == 200


def test_looks_that_are_long_past_count_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_floor, "LOOKS_MAX", 2)
    floor = ReplayFloor()
    for position, conv in ((100, A), (200, B), (300, C)):
        floor.shown(conv)
        looked(floor, position)
    assert [floor.needed(conv) for conv in (A, B, C, ConvId(4))] == [100, 200, 300, 100]
    for position in range(400, 900, 100):
        looked(floor, position)  # nothing was shown: nothing to remember
    assert [floor.needed(conv) for conv in (A, B, C)] == [100, 200, 300]


def test_more_than_are_remembered_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_floor, "CONVS_MAX", 3)
    floor = ReplayFloor()
    for conv in range(1, 5):
        floor.shown(ConvId(conv))
    assert floor.needed(ConvId(99)) is None
    floor.look_begins()
    assert floor.needed(ConvId(99)) is None
    floor.looked(100)
    assert floor.needed(ConvId(99)) == 100
    for conv in range(1, 4):
        floor.shown(ConvId(conv))
    floor.look_begins()  # this look fails
    floor.shown(ConvId(4))
    looked(floor, 200)
    assert floor.needed(ConvId(99)) == 200


def test_another_log_has_other_positions() -> None:
    floor = ReplayFloor()
    floor.shown(A)
    looked(floor, 100)
    floor.shown(B)
    floor.forget()
    assert (floor.needed(A), floor.needed(B)) == (0, 0)
