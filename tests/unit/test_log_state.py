"""Whether the log that a connection sees is the one in memory, and how often its epoch may be
renewed.
"""

from __future__ import annotations

import pytest

from chatd.postgres.log_state import (
    FORGET_S,
    PAUSE_MAX_S,
    PAUSE_S,
    TAGS,
    LogState,
    LogVerdict,
    Renewals,
    Sight,
    successor,
    tag,
    tags,
)

HERE, THERE = "system/00000001/db/table", "system/00000002/db/table"


@pytest.fixture
def state() -> LogState:
    state = LogState()
    state.adopt("one", HERE)
    return state


def test_an_epoch_tells_of_those_before_it_and_of_no_more() -> None:
    epochs = ["one"]
    for _ in range(TAGS + 2):
        epochs.append(successor(epochs[-1], "0123456789abcdef" * 2))
    assert tags("one") == []
    assert tags(epochs[-1]) == [tag(epoch) for epoch in epochs[-2 : -2 - TAGS : -1]]
    assert len(epochs[-1]) == 43


@pytest.mark.parametrize(
    ("sight", "verdict"),
    [
        (Sight("one", HERE, HERE), LogVerdict.SAME),
        (Sight("one", HERE, None), LogVerdict.STANDBY),
        (Sight("one", HERE, THERE), LogVerdict.MOVED),  # promoted or restored, and nobody has renewed the epoch
        (Sight("one", THERE, THERE), LogVerdict.MOVED),
        (Sight("two", HERE, HERE), LogVerdict.MOVED),
    ],
)
def test_what_a_look_shows(state: LogState, sight: Sight, verdict: LogVerdict) -> None:
    assert state.look(sight) is verdict


def test_an_epoch_that_was_left_is_not_gone_back_to(state: LogState) -> None:
    two = successor("one", "x" * 16)
    state.adopt(two, THERE)
    assert state.look(Sight("one", HERE, HERE)) is LogVerdict.LEFT
    assert state.look(Sight(two, THERE, THERE)) is LogVerdict.SAME
    started_since = LogState()
    started_since.adopt(two, THERE)
    assert started_since.look(Sight("one", HERE, HERE)) is LogVerdict.LEFT, "the epoch of now tells of it"


def test_a_log_that_lacks_what_was_acked_is_another_one_until_it_is_adopted(state: LogState) -> None:
    generation = state.generation
    state.suspect(is_behind=True)
    state.suspect()
    assert state.suspected.is_set()
    assert state.look(Sight("one", HERE, HERE)) is LogVerdict.MOVED
    state.adopt("two", HERE)
    assert (state.is_behind, state.suspected.is_set(), state.generation) == (False, False, generation + 1)
    assert state.fence == "two 00000001/table"


def test_renewals_pause_longer_each_time_up_to_a_bound_and_are_forgotten() -> None:
    renewals, now = Renewals(), 1_000.0
    assert renewals.may(now)
    pauses, pause_s = [], PAUSE_S
    while pause_s < PAUSE_MAX_S:
        assert not renewals.may(now + pause_s - 0.1)
        now += pause_s
        assert renewals.may(now)
        pause_s = min(pause_s * 2, PAUSE_MAX_S)
        pauses.append(pause_s)
    assert pauses[0] == 2 * PAUSE_S
    assert not renewals.may(now + PAUSE_MAX_S - 0.1)
    now += PAUSE_MAX_S + FORGET_S
    assert renewals.may(now)
    assert renewals.may(now + PAUSE_S), "from the beginning"
