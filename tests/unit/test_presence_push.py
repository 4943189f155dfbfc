"""Who is told whose presence, and how often.

With a store that nobody asks: what is read from it is in tests/integration/test_chat.py.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from chatd.chat.presence_push import PresencePush, may_see
from chatd.core.coalescing import PRESENCE_BURST, PRESENCE_S
from chatd.core.conversations import Registry
from chatd.core.frame_rate import FrameRate
from chatd.core.rate_limit import Penalty, SlidingWindow
from chatd.core.session import Session, State, User
from chatd.ids import ConvId, DeviceId, UserId
from chatd.loop.alarm import Alarm
from chatd.metrics import Metrics
from chatd.presence import Presence, Remote, Status

ALICE, BOB, CAROL = (UserId(name) for name in ("alice", "bob", "carol"))
PHONE = DeviceId("phone")

GRACE_S = 0.25  # less than the pace
WAIT_S = 10.0


class Told:
    """A sink that keeps what it is told: (user, state)."""

    address = "test"
    is_paused = False

    def __init__(self) -> None:
        self.states: list[tuple[str, str]] = []
        self.pushes: list[dict[str, Any]] = []

    def send(self, frame: bytes) -> None:
        facts = json.loads(frame[frame.index(b"{") :])
        assert facts["t"] == "presence"
        self.states.append((facts["user"], facts["state"]))
        self.pushes.append(facts)

    def close(self, code: int, reason: str) -> None: ...
    async def drained(self) -> None: ...


class Place:
    """Alice and bob have a conversation, alice and carol none; alice watches both."""

    def __init__(self, incarnation: str | None = None) -> None:
        self.now = 0.0
        self.registry, self.presence = Registry(), Presence(0.0, incarnation)
        for id in (ALICE, BOB, CAROL):
            self.registry.add_user(User(id, SlidingWindow(10, 5.0), Penalty(8), SlidingWindow(100, 3_600.0)), 0.0)
        self.conv = self.registry.hold(ConvId(1), ALICE, BOB)
        self.told, self.alarm = Told(), Alarm(lambda: self.now)
        self.alice = Session(self.told, FrameRate(1.0, 1), 0.0)
        self.alice.state, self.alice.user = State.LIVE, self.registry.users[ALICE]
        self.registry.attach(self.registry.users[ALICE], PHONE, self.alice)
        self.alice.watch((BOB, CAROL))
        self.presence.watch(self.alice, (), (BOB, CAROL))
        self.push = PresencePush(
            self.presence,
            self.registry,
            cast("Any", None),
            Metrics(),
            now=lambda: self.now,
            now_ms=lambda: int(self.now * 1000),
            spawn=lambda work: pytest.fail("nothing is to be read"),
            alarm=self.alarm,
        )

    def known(self, snapshot: list[dict[str, object]], user: UserId = BOB) -> object:
        """What alice's client knows: a push with a higher version replaces a lower one."""
        now: dict[str, Any] = next(facts for facts in snapshot if facts["user"] == user)
        for facts in self.told.pushes:
            if facts["user"] == user and facts["v"] > now["v"]:
                now = facts
        return now["state"]

    def remote(self, status: Status, v: int) -> None:
        """A word of another node about bob."""
        change = self.presence.remote("there", BOB, Remote(status, v, None, ()), int(self.now * 1000))
        self.push.announce(change)

    def open(self) -> None:
        self.conv.head = self.conv.na = self.conv.nb = 1

    def comes(self, user: UserId, *, away: bool = False) -> None:
        self.presence.attach(user, PHONE, 0)
        self.push.announce(self.presence.connect(user, PHONE, away, int(self.now * 1000)))


def test_presence_flows_once_both_have_sent_and_to_oneself_always() -> None:
    place = Place()
    assert [may_see(place.alice, user) for user in (ALICE, BOB, CAROL)] == [True, False, False]
    place.comes(BOB)
    place.comes(CAROL)
    assert place.told.states == []
    assert [facts["state"] for facts in place.push.statuses(place.alice, (BOB, CAROL), {})] == ["hidden", "hidden"]
    place.open()
    assert [may_see(place.alice, user) for user in (BOB, CAROL)] == [True, False]
    place.push.conversation_opened(ALICE, BOB)
    assert place.told.states == [("bob", "online")], "whoever watched in vain until now"


def test_a_session_in_its_hello_is_told_by_its_welcome_and_not_by_a_push() -> None:
    place = Place()
    place.open()
    place.alice.state = State.OPENING
    place.comes(BOB)
    assert place.told.states == []
    place.alice.state = State.LIVE
    place.push.push_changed(place.alice, [{"user": BOB, "state": "offline"}, {"user": CAROL, "state": "hidden"}], {})
    assert place.told.states == [("bob", "online")], "what changed between the snapshot and going live"


def test_a_user_who_flaps_is_told_at_most_so_often_and_the_last_state_always() -> None:
    place = Place()
    place.open()
    for n in range(PRESENCE_BURST + 7):
        place.comes(BOB, away=n % 2 == 1)
    assert len(place.told.states) == PRESENCE_BURST
    last = "away" if (PRESENCE_BURST + 6) % 2 == 1 else "online"
    place.now += PRESENCE_S * PRESENCE_BURST
    place.push.tick(lambda user: False)
    assert place.told.states[PRESENCE_BURST:] == [("bob", last)]


async def test_the_alarm_is_set_for_what_is_held_back() -> None:
    place = Place()
    place.open()
    for n in range(PRESENCE_BURST + 1):
        place.comes(BOB, away=n % 2 == 1)
    place.now = PRESENCE_S
    async with asyncio.timeout(WAIT_S):
        await place.alarm.rings(0.0)
    place.push.tick(lambda user: False)
    assert place.told.states[PRESENCE_BURST:] == [("bob", "online")]


def test_next_due_is_the_earlier_one_of_a_grace_time_and_the_pace() -> None:
    place = Place()
    assert place.push.next_due() is None
    place.open()
    place.comes(BOB)
    assert place.push.next_due() == PRESENCE_S
    place.presence.disconnect(BOB, PHONE, 0.0, 0, GRACE_S)
    assert place.push.next_due() == GRACE_S
    place.now = GRACE_S
    place.push.tick(lambda user: False)
    assert place.told.states == [("bob", "online"), ("bob", "offline")]
    assert place.push.next_due() == PRESENCE_S
    place.now = PRESENCE_S * 4
    place.push.tick(lambda user: False)
    assert place.push.next_due() is None, "nobody is to be told of, and the node sleeps"


AHEAD_MS = 5_000  # so much is the clock of the other node ahead of this one's


def test_who_left_during_a_hello_is_seen_offline_where_another_nodes_clock_is_ahead() -> None:
    place = Place("here")
    place.open()
    place.alice.state = State.OPENING
    place.remote(Status.ONLINE, AHEAD_MS)
    shown = place.push.statuses(place.alice, (BOB, CAROL), {})
    assert place.known(shown) == "online"
    place.remote(Status.OFFLINE, AHEAD_MS + 1)
    place.alice.state = State.LIVE
    place.push.push_changed(place.alice, shown, {})
    assert place.known(shown) == "offline"


def test_who_left_in_the_millisecond_of_the_snapshot_is_seen_offline() -> None:
    place = Place()
    place.open()
    place.comes(BOB)
    place.now = 1.0
    place.alice.state = State.OPENING
    shown = place.push.statuses(place.alice, (BOB, CAROL), {})
    place.presence.disconnect(BOB, PHONE, place.now, 1_000)
    place.push.tick(lambda user: False)
    place.alice.state = State.LIVE
    place.push.push_changed(place.alice, shown, {})
    assert place.known(shown) == "offline"


def test_what_was_held_back_is_not_told_after_a_change_that_nobody_watched() -> None:
    place = Place("here")
    place.open()
    for n in range(PRESENCE_BURST + 1):
        place.remote(Status.ONLINE if n % 2 == 0 else Status.AWAY, AHEAD_MS + n)
    assert len(place.told.pushes) == PRESENCE_BURST
    place.presence.watch(place.alice, (BOB, CAROL), ())
    place.remote(Status.OFFLINE, AHEAD_MS + PRESENCE_BURST + 1)
    place.told.pushes.clear()
    place.presence.watch(place.alice, (), (BOB, CAROL))
    shown = place.push.statuses(place.alice, (BOB, CAROL), {})
    assert place.known(shown) == "offline"
    place.now = PRESENCE_S * (PRESENCE_BURST + 1)
    place.push.tick(lambda user: False)
    assert place.known(shown) == "offline"
    assert place.told.pushes == []
