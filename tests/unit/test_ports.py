"""The single-node side of the ports: nothing waits, and nobody else is told."""

from __future__ import annotations

from chatd.chat.ports import NEW_PERIOD_S, Admission, Alone, OtherNodes, OwnCount, Rates
from chatd.ids import UserId

ALICE, BOB = UserId("alice"), UserId("bob")


class Clock:
    now = 100.0


async def test_own_count_runs_what_it_is_given_at_once_by_its_own_clock() -> None:
    clock = Clock()
    admission: Admission = OwnCount(Rates(2, 5.0, 8, 1), lambda: clock.now)
    assert admission.decides_at_once
    window = admission.windows(ALICE).window
    arrived: list[float] = []
    assert admission.put(window, arrived.append)
    assert arrived == [100.0]
    assert [(await admission.take(window))[0] for _ in range(3)] == [0.0, 0.0, 5.0]
    clock.now = 105.0
    assert await admission.take(window) == (0.0, 105.0)
    await admission.idle()


def test_a_users_windows_are_as_the_settings_say_and_their_own() -> None:
    admission = OwnCount(Rates(2, 5.0, 3, 1), lambda: 0.0)
    one, other = admission.windows(ALICE), admission.windows(BOB)
    assert (one.window.max_events, one.window.period_s) == (2, 5.0)
    assert (one.new_convs.max_events, one.new_convs.period_s) == (1, NEW_PERIOD_S)
    assert one.new_convs.take(0.0) == 0.0
    assert other.new_convs.take(0.0) == 0.0
    assert [one.penalty.refused(0.0, 1.0, early=True).close for _ in range(4)] == [False, False, False, True]


async def test_a_node_alone_has_nobody_to_tell_and_nothing_to_wait_for() -> None:
    others: OtherNodes = Alone()
    assert not others.share_log
    assert others.channels(None, BOB, None) == ()
    assert others.pages() == others.pages() == 0
    await others.arrive(ALICE, (BOB,))
    await others.look((BOB,))
