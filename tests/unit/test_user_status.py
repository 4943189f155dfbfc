"""A user's status over devices and nodes, and versions that only rise."""

from __future__ import annotations

import pytest

from chatd.core.user_status import Change, Seat, Status, StatusTable, merged
from chatd.ids import DeviceId, UserId

ANN, BOB = UserId("ann"), UserId("bob")
PHONE, LAPTOP = DeviceId("phone"), DeviceId("laptop")


@pytest.mark.parametrize(
    ("aways", "status"),
    [
        ([], Status.OFFLINE),
        ([True], Status.AWAY),
        ([True, True], Status.AWAY),
        ([True, False], Status.ONLINE),
    ],
)
def test_online_if_any_is_and_away_if_all_are(aways: list[bool], status: Status) -> None:
    assert merged(aways) is status


def test_devices_in_their_grace_time_and_seats_elsewhere_count() -> None:
    table = StatusTable()
    ann = table.add(ANN)
    assert ann.arrive(PHONE, False)
    assert not ann.arrive(LAPTOP, True)
    assert table.update(ANN, ann, 10) == Change(ANN, Status.ONLINE, 10, None)
    ann.leave(PHONE, 5.0)
    assert table.update(ANN, ann, 11) is None, "the phone counts as it did"
    del ann.leaving[PHONE]
    assert table.update(ANN, ann, 12) == Change(ANN, Status.AWAY, 12, None)
    ann.seats = (Seat("aa", Status.ONLINE, ()),)
    assert table.update(ANN, ann, 12) == Change(ANN, Status.ONLINE, 13, None), "one more than the last"


def test_entries_share_no_devices() -> None:
    table = StatusTable()
    table.add(ANN).arrive(PHONE, False)
    bob = table.add(BOB)
    assert not bob.here
    bob.arrive(PHONE, False)
    bob.leave(PHONE, 1.0)
    assert not table.add(ANN).here


def test_versions_rise_above_those_of_users_who_were_forgotten() -> None:
    table = StatusTable()
    ann = table.add(ANN)
    ann.arrive(PHONE, False)
    table.update(ANN, ann, 1_000)
    table.forget(ANN, ann)
    assert table.get(ANN) is None
    bob = table.add(BOB)
    bob.arrive(PHONE, False)
    assert table.update(BOB, bob, 900) == Change(BOB, Status.ONLINE, 1_001, None)


def test_after_a_step_of_the_clock_versions_run_ahead_and_nobody_was_seen_in_the_future() -> None:
    table = StatusTable()
    ann = table.add(ANN)
    ann.seen_ms = 5_000
    table.clock_stepped(4_000, 1_000)
    assert ann.seen_ms == 1_000
    assert table.next_v(ann, 1_000) == 5_000
