"""The presence map against a model that keeps, for each user, what every device said and when it left."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatd.ids import DeviceId, UserId
from chatd.presence import Change, Presence, Status

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
        """Changes must be exactly those of the model, each with a version above all that this user had."""
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
    assert list(presence._watchers) == [BOB]
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
