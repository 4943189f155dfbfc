"""The presence map against a model that keeps, for each user, what every device said and when it
left; and one node's side of other nodes.

Several nodes under faults, held to the truth, are in `test_remote_presence.py`.
"""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatd.core.user_status import V_MAX, Device, Remote
from chatd.ids import DeviceId, UserId
from chatd.presence import AHEAD_MS_MAX, Change, Presence, Status

GRACE_S = 0.5
ALICE, BOB = UserId("alice"), UserId("bob")
PHONE, LAPTOP = DeviceId("phone"), DeviceId("laptop")

users = st.sampled_from([ALICE, BOB])
devices = st.sampled_from([PHONE, LAPTOP, DeviceId("tab")])
watchers = st.sampled_from(["w1", "w2", "w3"])


class PresenceModel(RuleBasedStateMachine):
    """Time goes in steps of an eighth of a second; `due` runs at each, as the sweep does."""

    def __init__(self) -> None:
        super().__init__()
        self.presence = Presence(GRACE_S)
        self.now = 100.0
        self.here: dict[tuple[UserId, DeviceId], bool] = {}  # away or not
        self.left: dict[tuple[UserId, DeviceId], tuple[float, bool]] = {}  # end of the grace time, away or not
        self.seen: dict[UserId, int] = {}
        self.status: dict[UserId, Status] = {}
        self.v: dict[UserId, int] = {}
        self.watched: dict[str, set[UserId]] = {}

    @property
    def now_ms(self) -> int:
        return int(self.now * 1000)

    def expected(self, user: UserId) -> Status:
        aways = [away for (u, _), away in self.here.items() if u == user]
        aways += [away for (u, _), (until, away) in self.left.items() if u == user and until > self.now]
        return Status.OFFLINE if not aways else Status.AWAY if all(aways) else Status.ONLINE

    def told(self, changes: list[Change]) -> None:
        """Changes must be exactly those of the model, each with a version above all that this user
        had.
        """
        for change in changes:
            before = self.status.get(change.user, Status.OFFLINE)
            assert change.status is not before
            assert change.v > self.v.get(change.user, 0)
            assert change.v >= self.now_ms
            assert change.seen_ms == (self.seen[change.user] if change.status is Status.OFFLINE else None)
            self.status[change.user], self.v[change.user] = change.status, change.v
        for user in (ALICE, BOB):
            assert self.status.get(user, Status.OFFLINE) is self.expected(user)

    @rule(user=users, device=devices, away=st.booleans())
    def connect(self, user: UserId, device: DeviceId, away: bool) -> None:
        self.here[user, device] = away
        self.left.pop((user, device), None)
        change = self.presence.connect(user, device, away, self.now_ms)
        self.told([change] if change is not None else [])

    @rule(user=users, device=devices, grace=st.sampled_from([None, 0.0, 2.0]))
    def disconnect(self, user: UserId, device: DeviceId, grace: float | None) -> None:
        self.presence.disconnect(user, device, self.now, self.now_ms, grace)
        if (user, device) in self.here:
            self.left[user, device] = (self.now + (GRACE_S if grace is None else grace), self.here.pop((user, device)))
            self.seen[user] = self.now_ms
        self.told(self.presence.due(self.now, self.now_ms))

    @rule(eighths=st.integers(1, 20))
    def later(self, eighths: int) -> None:
        for _ in range(eighths):
            self.now += 0.125
            due = self.presence.next_due()
            changes = self.presence.due(self.now, self.now_ms)
            assert not changes or (due is not None and due <= self.now)
            self.told(changes)

    @rule(watcher=watchers, new=st.sets(users))
    def watch(self, watcher: str, new: set[UserId]) -> None:
        self.presence.watch(watcher, self.watched.get(watcher, set()), new)
        self.watched[watcher] = new

    @invariant()
    def what_is_asked_is_what_was_told(self) -> None:
        for user in (ALICE, BOB):
            known = self.presence.status(user)
            if known is None:
                assert self.expected(user) is Status.OFFLINE
            else:
                assert (known.status, known.v, known.seen_ms) == (self.status[user], self.v[user], None)
            assert set(self.presence.watchers(user)) == {w for w, watched in self.watched.items() if user in watched}

    @invariant()
    def nobody_who_is_offline_takes_memory(self) -> None:
        assert len(self.presence) == sum(self.expected(user) is not Status.OFFLINE for user in (ALICE, BOB))


TestPresenceModel = PresenceModel.TestCase


def test_a_quick_reconnect_does_not_flap() -> None:
    presence = Presence(GRACE_S)
    assert presence.connect(ALICE, PHONE, False, 1_000) == Change(ALICE, Status.ONLINE, 1_000, None)
    presence.disconnect(ALICE, PHONE, 2.0, 2_000)
    assert presence.due(2.25, 2_250) == []
    assert presence.connect(ALICE, PHONE, False, 2_300) is None
    assert presence.due(9.0, 9_000) == []


def test_a_quick_reconnect_does_not_flap_to_away_where_another_device_is_idle() -> None:
    presence = Presence(GRACE_S)
    presence.connect(ALICE, PHONE, True, 1_000)
    presence.connect(ALICE, LAPTOP, False, 1_001)
    presence.disconnect(ALICE, LAPTOP, 2.0, 2_000)
    assert presence.connect(ALICE, LAPTOP, False, 2_300) is None
    presence.disconnect(ALICE, LAPTOP, 3.0, 3_000)
    assert presence.due(3.5, 3_500) == [Change(ALICE, Status.AWAY, 3_500, None)]


def test_a_second_leave_has_a_grace_time_of_its_own() -> None:
    presence = Presence(GRACE_S)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.disconnect(ALICE, PHONE, 2.0, 2_000)
    presence.connect(ALICE, PHONE, False, 2_250)
    presence.disconnect(ALICE, PHONE, 2.25, 2_250)
    assert presence.due(2.5, 2_500) == []
    assert presence.next_due() == 2.75
    assert [change.status for change in presence.due(2.75, 2_750)] == [Status.OFFLINE]
    assert presence.next_due() is None


def test_whom_nobody_watches_takes_no_memory() -> None:
    presence = Presence(GRACE_S)
    presence.watch("w1", (), (ALICE, BOB))
    presence.watch("w1", (ALICE, BOB), (BOB,))
    assert list(presence._watchers.users()) == [BOB]
    presence.watch("w1", (BOB,), ())
    assert not presence._watchers


def test_offline_is_told_with_the_time_last_seen() -> None:
    presence = Presence(GRACE_S)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.disconnect(ALICE, PHONE, 2.0, 2_000)
    assert presence.due(2.5, 2_500) == [Change(ALICE, Status.OFFLINE, 2_500, 2_000)]
    assert presence.status(ALICE) is None


def test_versions_rise_also_when_they_run_ahead_of_the_clock() -> None:
    presence = Presence(0.0)
    versions = []
    for n in range(400):  # a burst of frames within one millisecond
        change = presence.connect(ALICE, PHONE, n % 2 == 0, 1_000)
        assert change is not None
        versions.append(change.v)
    presence.disconnect(ALICE, PHONE, 1.0, 1_000)
    versions += [change.v for change in presence.due(1.0, 1_000)]
    back = presence.connect(ALICE, PHONE, False, 1_001)
    assert back is not None
    versions.append(back.v)
    assert versions == sorted(set(versions))
    assert len(versions) == 402


def test_a_change_on_the_wire() -> None:
    assert Change(ALICE, Status.ONLINE, 17, None).facts() == {"user": "alice", "state": "online", "v": 17}
    assert Change(ALICE, Status.OFFLINE, 18, 5).facts() == {"user": "alice", "state": "offline", "v": 18, "seen": 5}


# ---- a node among others -------------------------------------------------------------------------

OWN, A, B = "5" * 16, "a" * 16, "b" * 16
ON, AWAY, OFF = Status.ONLINE, Status.AWAY, Status.OFFLINE


def mirrored(*watched: UserId) -> Presence:
    presence = Presence(GRACE_S, OWN)
    presence.watch("w1", (), watched)
    return presence


def said(status: Status, v: int, *devices: Device, seen: int | None = None) -> Remote:
    return Remote(status, v, seen, devices)


def device(id: DeviceId, attached_ms: int, active_ms: int | None = None) -> Device:
    return Device(id, attached_ms, attached_ms if active_ms is None else active_ms)


def test_a_single_node_has_nothing_to_say_and_keeps_nothing_of_others() -> None:
    presence = Presence(GRACE_S)
    assert not presence.hold(ALICE)
    assert presence.watch("w1", (), (BOB,)) == []
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.touch(ALICE, PHONE, 2_000)
    presence.republish(3_000)
    assert presence.take_dirty(9) == []
    assert list(presence.local_entries()) == []
    assert presence.status(ALICE) == Change(ALICE, ON, 1_000, None)
    assert not presence.elsewhere(ALICE)
    assert presence.displaced(ALICE) == presence.surplus(ALICE, 0) == []
    assert not presence._own.keys()
    assert not presence._held


def test_online_if_any_node_says_so_away_if_all_do() -> None:
    presence = mirrored(ALICE)
    assert presence.remote(A, ALICE, said(AWAY, 900), 1_000) == Change(ALICE, AWAY, 1_000, None)
    assert presence.remote(B, ALICE, said(ON, 1_100), 1_050) == Change(ALICE, ON, 1_100, None)  # B's clock is ahead
    assert presence.remote(B, ALICE, said(AWAY, 1_200), 1_201) == Change(ALICE, AWAY, 1_201, None)
    assert presence.connect(ALICE, PHONE, False, 1_201) == Change(ALICE, ON, 1_202, None)
    assert presence.remote(A, ALICE, said(OFF, 1_300, seen=1_290), 1_300) is None
    assert presence.remote(B, ALICE, said(OFF, 1_400, seen=1_390), 1_400) is None
    presence.disconnect(ALICE, PHONE, 2.0, 2_000)
    assert presence.due(2.5, 2_500) == [Change(ALICE, OFF, 2_500, 2_000)]
    assert presence.status(ALICE) is None


def test_a_user_who_moves_to_another_node_does_not_flap() -> None:
    presence = mirrored(ALICE)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.disconnect(ALICE, PHONE, 2.0, 2_000)
    assert presence.remote(A, ALICE, said(ON, 2_300), 2_310) is None
    assert presence.due(2.5, 2_500) == []
    assert presence.status(ALICE) == Change(ALICE, ON, 2_500, None)  # as this node said that she left it
    assert len(presence) == 0  # nobody is here
    assert presence.connect(ALICE, PHONE, False, 3_000) is None
    assert presence.remote(A, ALICE, said(OFF, 3_500, seen=2_900), 3_500) is None
    assert presence.remote(A, BOB, said(ON, 3_600), 3_600) is None  # nobody asked for him
    assert presence.status(BOB) is None


def test_an_older_word_of_the_same_boot_is_passed_over_also_after_offline() -> None:
    presence = mirrored(ALICE)
    presence.remote(A, ALICE, said(ON, 1_000), 1_000)
    assert presence.remote(A, ALICE, said(AWAY, 999), 1_001) is None
    assert presence.remote(A, ALICE, said(OFF, 1_002, seen=990), 1_002) == Change(ALICE, OFF, 1_002, 990)
    assert presence.remote(A, ALICE, said(ON, 1_001), 1_003) is None
    # A hash that lost its last write in a failover
    assert presence.resync(A, {ALICE: said(ON, 1_001)}, presence.begin_read(A), 1_003) == []
    assert presence.remote(OWN, ALICE, said(ON, 5_000), 1_004) is None  # an echo
    assert presence.status(ALICE) is None


def test_a_dead_nodes_users_go_at_once_and_nothing_that_trickles_in_brings_them_back() -> None:
    presence = mirrored(ALICE, BOB)
    presence.remote(A, ALICE, said(ON, 1_000), 1_000)
    presence.remote(A, BOB, said(ON, 1_000), 1_000)
    presence.remote(B, BOB, said(AWAY, 1_000), 1_000)
    assert sorted(presence.users_of(A)) == [ALICE, BOB]
    assert sorted(presence.incarnations()) == [A, B]
    open_question = presence.begin_read(A)
    assert presence.forget_node(A, 9_000, 4_000) == [Change(ALICE, OFF, 9_000, 4_000), Change(BOB, AWAY, 9_000, None)]
    assert presence.users_of(A) == []
    assert presence.incarnations() == [B]
    assert presence.remote(A, ALICE, said(ON, 9_500), 9_500) is None
    assert presence.resync(A, {ALICE: said(ON, 9_500)}, open_question, 9_500) == []
    # It was only paused: its lease is there again.
    back = presence.begin_read(A)
    assert presence.resync(A, {ALICE: said(ON, 9_600), BOB: None}, back, 9_700) == [Change(ALICE, ON, 9_700, None)]
    assert presence.forget_node("c" * 16, 9_800, None) == []


def test_a_version_far_ahead_of_every_clock_does_not_lift_those_of_others() -> None:
    presence = mirrored(ALICE, BOB)
    presence.remote(A, ALICE, said(ON, V_MAX), 1_000)
    presence.remote(A, ALICE, said(OFF, V_MAX), 1_000)
    presence.remote(A, BOB, said(OFF, V_MAX), 1_000)
    change = presence.connect(BOB, PHONE, False, 2_000)
    assert change is not None
    assert change.v <= AHEAD_MS_MAX + 2_000


def test_versions_stay_above_all_that_other_nodes_have_said() -> None:
    presence = mirrored(ALICE)
    presence.remote(A, ALICE, said(ON, 1_000), 1_000)
    assert presence.remote(B, ALICE, said(AWAY, 1_500), 1_400) is None
    assert presence.remote(A, ALICE, said(OFF, 1_401, seen=1_401), 1_401) == Change(ALICE, AWAY, 1_501, None)
    assert presence.remote(B, ALICE, said(OFF, 1_600, seen=1_402), 1_403) == Change(ALICE, OFF, 1_600, 1_402)


def test_when_a_user_left_here_is_not_when_they_were_last_seen_elsewhere() -> None:
    presence = mirrored(ALICE)
    presence.remote(A, ALICE, said(ON, 1_000), 1_000)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.take_dirty(9)
    presence.disconnect(ALICE, PHONE, 2.0, 2_000, 0.0)
    assert presence.due(2.0, 2_000) == []
    assert presence.resync(A, {ALICE: None}, presence.begin_read(A), 9_000) == [Change(ALICE, OFF, 9_000, None)]


def test_versions_stay_above_those_of_users_of_whom_only_the_end_was_heard() -> None:
    presence = mirrored(ALICE)
    assert presence.remote(A, ALICE, said(OFF, 1_500), 1_000) is None
    assert presence.connect(ALICE, PHONE, False, 1_001) == Change(ALICE, ON, 1_501, None)


# ---- answers -------------------------------------------------------------------------------------


def test_an_answer_brings_what_was_lost() -> None:
    presence = mirrored(ALICE, BOB)
    presence.remote(A, ALICE, said(ON, 1_000), 1_000)
    asked = presence.begin_read(A)
    changes = presence.resync(A, {ALICE: None, BOB: said(AWAY, 1_500)}, asked, 2_000)
    # When Alice was last seen is in PostgreSQL
    assert changes == [Change(ALICE, OFF, 2_000, None), Change(BOB, AWAY, 2_001, None)]


def test_of_users_who_were_left_out_of_an_answer_nothing_changes() -> None:
    presence = mirrored(ALICE)
    presence.remote(A, ALICE, said(ON, 1_000), 1_000)
    assert presence.resync(A, {}, presence.begin_read(A), 2_000) == []
    assert presence.users_of(A) == [ALICE]


@pytest.mark.parametrize("answer", [None, said(AWAY, 1_000)])
def test_a_word_since_the_question_is_not_undone_by_the_answer(answer: Remote | None) -> None:
    presence = mirrored(ALICE, BOB)
    # Bob's versions run ahead of everybody's: they say nothing about Alice.
    presence.remote(A, BOB, said(ON, 9_000), 1_000)
    asked = presence.begin_read(A)
    presence.remote(A, ALICE, said(ON, 1_001), 1_001)
    assert presence.resync(A, {ALICE: answer, BOB: said(ON, 9_000)}, asked, 1_002) == []
    assert presence.status(ALICE) == Change(ALICE, ON, 1_001, None)


def test_an_answer_that_is_newer_than_a_word_since_the_question_counts() -> None:
    presence = mirrored(ALICE)
    asked = presence.begin_read(A)
    presence.remote(A, ALICE, said(ON, 1_000), 1_000)
    assert presence.resync(A, {ALICE: said(AWAY, 1_001)}, asked, 1_002) == [Change(ALICE, AWAY, 1_002, None)]


def test_a_word_about_somebody_who_was_not_kept_just_then_counts_too() -> None:
    presence = mirrored(ALICE)
    asked = presence.begin_read(A)
    presence.watch("w1", (ALICE,), ())
    presence.remote(A, ALICE, said(OFF, 1_001, seen=1_000), 1_001)
    assert presence.watch("w1", (), (ALICE,)) == [ALICE]
    assert presence.resync(A, {ALICE: said(ON, 1_000)}, asked, 1_002) == []


def test_a_word_that_came_before_the_question_or_again_does_not_hold_up_the_answer() -> None:
    presence = mirrored(ALICE)
    presence.remote(A, ALICE, said(ON, 1_000), 1_000)
    asked = presence.begin_read(A)
    presence.remote(A, ALICE, said(ON, 1_000), 1_001)
    assert presence.resync(A, {ALICE: None}, asked, 1_002) == [Change(ALICE, OFF, 1_002, None)]


@pytest.mark.parametrize("stale", [None, said(ON, 1_000)])
def test_the_answer_to_an_earlier_question_gives_way_to_that_of_a_later_one(stale: Remote | None) -> None:
    presence = mirrored(ALICE)
    earlier, later = presence.begin_read(A), presence.begin_read(A)
    truth = said(ON, 1_001) if stale is None else None
    presence.resync(A, {ALICE: truth}, later, 1_002)
    assert presence.resync(A, {ALICE: stale}, earlier, 1_003) == []
    assert presence.elsewhere(ALICE) is (truth is not None)


# ---- whom to keep, and their devices -------------------------------------------------------------


def test_users_are_kept_while_watched_held_or_here() -> None:
    presence = mirrored()
    assert not presence.keeps(ALICE)
    assert presence.watch("w1", (), (ALICE,)) == [ALICE]
    assert presence.watch("w2", (), (ALICE, BOB)) == [BOB]
    presence.remote(A, ALICE, said(ON, 1_000), 1_000)
    assert presence.watch("w1", (ALICE,), (ALICE,)) == []
    presence.watch("w1", (ALICE,), ())
    assert presence.elsewhere(ALICE)
    assert presence.hold(ALICE)
    assert not presence.hold(ALICE)
    presence.watch("w2", (ALICE, BOB), ())
    assert presence.elsewhere(ALICE)
    assert presence.watch("w2", (), (ALICE,)) == []  # known, as she is held
    presence.watch("w2", (ALICE,), ())
    presence.connect(ALICE, PHONE, False, 1_100)
    presence.unhold(ALICE)
    presence.unhold(ALICE)
    assert presence.elsewhere(ALICE)
    assert presence.kept_users() == {ALICE}
    presence.disconnect(ALICE, PHONE, 2.0, 2_000)
    assert presence.due(2.5, 2_500) == []  # online elsewhere, for all that was known
    assert not presence.keeps(ALICE)
    assert not presence.elsewhere(ALICE)
    assert presence.status(ALICE) is None
    presence.take_dirty(9)
    assert presence.kept_users() == set()


def test_devices_are_kept_of_those_who_are_held_and_so_asked_for() -> None:
    presence = mirrored(ALICE)
    there = said(ON, 1_000, device(PHONE, 900))
    presence.remote(A, ALICE, there, 1_000)
    assert presence.hold(ALICE)
    presence.connect(ALICE, PHONE, False, 800)
    assert presence.displaced(ALICE) == []  # not known yet: those of the watched are dead weight
    presence.resync(A, {ALICE: there}, presence.begin_read(A), 1_001)
    assert presence.displaced(ALICE) == [PHONE]


def test_the_device_that_came_later_stays() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    presence.attach(ALICE, PHONE, 950)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.remote(A, ALICE, said(ON, 1_000, device(PHONE, 949)), 1_001)
    assert presence.displaced(ALICE) == []
    presence.remote(A, ALICE, said(ON, 1_001, device(PHONE, 950)), 1_001)  # its boot is the higher one
    assert presence.displaced(ALICE) == [PHONE]
    presence.remote(B, ALICE, said(ON, 1_001, device(PHONE, 950), device(LAPTOP, 960)), 1_001)
    assert presence.displaced(ALICE) == [PHONE]
    presence.connect(ALICE, PHONE, True, 1_100)  # it tells that it is idle: the same session
    assert presence.displaced(ALICE) == [PHONE]
    presence.attach(ALICE, PHONE, 1_100)
    presence.connect(ALICE, PHONE, False, 1_101)
    assert presence.displaced(ALICE) == []
    presence.remote("0" * 16, ALICE, said(ON, 1_200, device(PHONE, 1_100)), 1_201)  # its boot is the lower one
    assert presence.displaced(ALICE) == []


def test_the_longest_idle_device_of_all_nodes_is_closed_by_its_node() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.connect(ALICE, LAPTOP, False, 1_001)
    assert presence.surplus(ALICE, 1) == []  # here alone it is decided at the hello
    presence.remote(A, ALICE, said(ON, 1_100, device(DeviceId("tab"), 900, 1_050)), 1_101)
    assert presence.surplus(ALICE, 3) == []
    assert presence.surplus(ALICE, 2) == [PHONE]
    presence.touch(ALICE, PHONE, 1_060)
    presence.touch(ALICE, PHONE, 1_010)  # activity does not go back
    presence.touch(BOB, PHONE, 1_060)
    assert presence.surplus(ALICE, 2) == [LAPTOP]
    presence.touch(ALICE, LAPTOP, 1_070)
    assert presence.surplus(ALICE, 2) == []  # the tab is the one, and not ours
    presence.disconnect(ALICE, LAPTOP, 2.0, 2_000)
    assert presence.surplus(ALICE, 1) == []
    assert presence.surplus(ALICE, 0) == [PHONE]


# ---- what this node says -------------------------------------------------------------------------


def test_a_node_says_how_a_user_is_there_whatever_others_say() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    presence.remote(A, ALICE, said(ON, 900), 900)
    presence.connect(ALICE, PHONE, True, 1_000)
    assert presence.take_dirty(9) == [(ALICE, said(AWAY, 1_000, device(PHONE, 1_000)))]
    presence.connect(ALICE, PHONE, True, 1_001)
    presence.attach(ALICE, LAPTOP, 990)
    presence.connect(ALICE, LAPTOP, True, 1_002)
    assert presence.take_dirty(9) == [(ALICE, said(AWAY, 1_002, device(PHONE, 1_000), device(LAPTOP, 990)))]
    presence.connect(ALICE, LAPTOP, False, 1_003)
    presence.connect(ALICE, PHONE, False, 1_004)  # changes nothing: she was online
    presence.touch(ALICE, PHONE, 1_000)
    assert presence.take_dirty(9) == [(ALICE, said(ON, 1_003, device(PHONE, 1_000), device(LAPTOP, 990)))]
    presence.disconnect(ALICE, PHONE, 2.0, 2_000)
    presence.disconnect(ALICE, LAPTOP, 2.0, 2_001)
    assert presence.take_dirty(9) == [(ALICE, said(ON, 2_001))]  # in the grace time
    assert presence.due(2.5, 2_500) == []
    assert list(presence.local_entries()) == []
    assert presence.take_dirty(9) == [(ALICE, said(OFF, 2_500, seen=2_001))]
    assert presence.take_dirty(9) == []
    assert not presence._own.keys()


def test_every_word_about_a_user_has_a_higher_version() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    presence.remote(A, ALICE, said(ON, 900), 900)  # so that her status over all nodes never changes
    versions = []
    for _ in range(3):
        presence.connect(ALICE, PHONE, False, 1_000)
        versions += presence.take_dirty(9)
        presence.disconnect(ALICE, PHONE, 1.0, 1_000, 0.0)
        versions += presence.take_dirty(9)
        presence.due(1.0, 1_000)
        versions += presence.take_dirty(9)
    assert [word.v for _, word in versions] == list(range(1_000, 1_009))
    assert [word.status for _, word in versions] == [ON, ON, OFF] * 3


def test_watchers_and_nodes_are_told_the_same_version() -> None:
    presence = mirrored(ALICE)
    told = presence.connect(ALICE, PHONE, False, 1_000)
    ((_, word),) = presence.take_dirty(9)
    assert told is not None
    assert told.v == word.v == 1_000


def test_who_waits_longest_is_said_first_and_a_change_meanwhile_goes_with_it() -> None:
    presence = mirrored()
    for n, user in enumerate([ALICE, BOB]):
        presence.connect(user, PHONE, False, 1_000 + n)
    presence.connect(ALICE, PHONE, True, 1_002)
    assert presence.take_dirty(1) == [(ALICE, said(AWAY, 1_002, device(PHONE, 1_000)))]
    assert presence.take_dirty(1) == [(BOB, said(ON, 1_001, device(PHONE, 1_001)))]
    assert presence.take_dirty(1) == []
    assert dict(presence.local_entries()).keys() == {ALICE, BOB}


def test_the_map_may_change_while_its_entries_are_read() -> None:
    presence = mirrored()
    for user in (ALICE, BOB):
        presence.connect(user, PHONE, False, 1_000)
    presence.take_dirty(9)
    entries = presence.local_entries()
    assert next(entries)[0] == ALICE
    presence.disconnect(BOB, PHONE, 2.0, 2_000, 0.0)
    presence.due(2.0, 2_000)
    presence.connect(UserId("carol"), PHONE, False, 2_000)
    assert list(entries) == []
    assert [user for user, _ in presence.take_dirty(9)] == [BOB, "carol"]


def test_who_was_thought_dead_says_all_anew_and_above_what_was_told_meanwhile() -> None:
    presence = mirrored(ALICE)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.connect(BOB, PHONE, False, 1_000)
    presence.disconnect(BOB, PHONE, 1.0, 1_000, 0.0)
    presence.take_dirty(9)
    presence.due(1.0, 1_000)  # Bob has left, which is not said yet
    presence.republish(9_000)
    assert presence.take_dirty(9) == [
        (BOB, said(OFF, 9_000, seen=1_000)),
        (ALICE, said(ON, 9_000, device(PHONE, 1_000))),
    ]
    assert presence.connect(BOB, PHONE, False, 2_000) == Change(BOB, ON, 9_001, None)
    assert presence.connect(ALICE, PHONE, True, 2_000) == Change(ALICE, AWAY, 9_001, None)


# ---- attaching -----------------------------------------------------------------------------------


def test_a_session_counts_from_when_it_takes_the_devices_place_not_from_its_welcome() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    presence.attach(ALICE, PHONE, 1_000)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.attach(ALICE, PHONE, 1_200)  # its third session; the second was on A
    presence.remote(A, ALICE, said(ON, 1_100, device(PHONE, 1_100)), 1_250)
    assert presence.displaced(ALICE) == []
    presence.remote(A, ALICE, said(ON, 1_260, device(PHONE, 1_255)), 1_260)  # this one is younger
    assert presence.displaced(ALICE) == [PHONE]
    presence.connect(ALICE, PHONE, False, 1_300)
    assert not presence._attaching


def test_a_session_that_ends_before_its_welcome_leaves_nothing() -> None:
    presence = mirrored()
    presence.attach(ALICE, PHONE, 1_000)
    presence.disconnect(ALICE, PHONE, 1.0, 1_001)
    assert not presence._attaching


def test_attach_times_rise_by_one_over_all_that_are_known() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    presence.remote(A, ALICE, said(ON, 9_000, device(PHONE, 9_000)), 9_000)
    assert presence.attach(ALICE, PHONE, 1_000) == 9_001  # the clock was set back
    presence.connect(ALICE, PHONE, False, 1_000)
    assert presence.attach(ALICE, PHONE, 1_001) == 9_002
    assert presence.attach(ALICE, PHONE, 1_001) == 9_003
    assert presence.attach(ALICE, LAPTOP, 1_001) == 1_001


def test_where_the_steady_time_was_off_attach_times_move_and_their_order_stays() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    presence.attach(ALICE, PHONE, 3_600_000)
    presence.connect(ALICE, PHONE, False, 3_600_000)
    presence.attach(ALICE, LAPTOP, 3_600_002)  # its hello is under way
    presence.take_dirty(9)
    presence.shift(-3_599_000, 1_100)
    assert [said.devices for _, said in presence.take_dirty(9)] == [(device(PHONE, 1_000),)]
    presence.connect(ALICE, LAPTOP, False, 1_100)
    presence.remote(A, ALICE, said(ON, 1_200, device(PHONE, 1_001), device(LAPTOP, 1_001)), 1_300)
    assert presence.displaced(ALICE) == [PHONE]


def test_that_there_is_something_to_say_is_told_once_until_all_of_it_is_taken() -> None:
    presence = mirrored()
    told: list[int] = []
    presence.on_dirty(lambda: told.append(len(told)))
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.connect(BOB, PHONE, False, 1_001)
    presence.connect(ALICE, PHONE, True, 1_002)
    assert len(told) == 1
    presence.take_dirty(1)
    presence.connect(ALICE, PHONE, False, 1_003)
    assert len(told) == 1, "Bob's is still to be taken"
    presence.take_dirty(9)
    presence.connect(ALICE, PHONE, False, 1_004)  # no news
    assert len(told) == 1
    presence.disconnect(BOB, PHONE, 2.0, 2_000)
    assert len(told) == 2


def test_a_device_that_comes_and_leaves_before_it_was_said_is_said_once() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    presence.attach(ALICE, PHONE, 1_000)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.disconnect(ALICE, PHONE, 1.0, 1_001, 0.0)
    assert presence.due(1.0, 1_001) == [], "the word is still to be said, with the device"
    first, second = [presence.take_dirty(9) for _ in range(2)]
    assert [one.devices for _, one in (*first, *second)] == [(device(PHONE, 1_000),), ()]
    assert second[0][1].v > first[0][1].v
    assert [change.status for change in presence.due(2.0, 2_000)] == [OFF]


def test_a_device_that_is_back_before_its_leaving_was_said_stays() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    for at in (1_000, 1_005):
        presence.attach(ALICE, PHONE, at)
        presence.connect(ALICE, PHONE, False, at)
        if at == 1_000:
            presence.disconnect(ALICE, PHONE, 1.0, 1_001)
    assert [one.devices for _, one in presence.take_dirty(9)] == [(device(PHONE, 1_005, 1_005),)]
    assert presence.take_dirty(9) == []


def test_a_node_that_started_after_a_step_back_is_believed_and_its_users_versions_rise() -> None:
    presence = mirrored(ALICE)
    presence.connect(ALICE, LAPTOP, False, 3_600_000)
    presence.clock_stepped(3_599_000, 1_000)
    presence.take_dirty(9)
    presence.disconnect(ALICE, LAPTOP, 1.0, 1_001, 0.0)
    told: list[Change | None] = [*presence.due(1.0, 1_001)]
    told += [presence.remote(A, ALICE, said(status, v), v) for v, status in ((1_100, ON), (1_200, AWAY), (1_300, OFF))]
    assert [change.status for change in told if change] == [OFF, ON, AWAY, OFF]
    assert [change.v for change in told if change] == sorted({change.v for change in told if change})


def test_a_device_whose_next_session_is_under_way_is_not_the_longest_idle() -> None:
    presence = mirrored()
    presence.hold(ALICE)
    presence.attach(ALICE, PHONE, 1_000)
    presence.connect(ALICE, PHONE, False, 1_000)
    presence.attach(ALICE, LAPTOP, 1_100)
    presence.connect(ALICE, LAPTOP, False, 1_100)
    presence.remote(A, ALICE, said(ON, 1_200, device(DeviceId("tab"), 1_200)), 1_200)
    assert presence.surplus(ALICE, 2) == [PHONE]
    presence.attach(ALICE, PHONE, 1_300)
    assert presence.surplus(ALICE, 2) == [LAPTOP]
