"""Who is told that somebody types, and how often."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chatd.chat.typing_push import TypingPush
from chatd.core.coalescing import TYPING_S
from chatd.core.conversations import Registry
from chatd.core.frame_rate import FrameRate
from chatd.core.rate_limit import Penalty, SlidingWindow
from chatd.core.session import Session, State, User
from chatd.ids import ConvId, DeviceId, UserId
from chatd.loop.alarm import Alarm
from chatd.metrics import Metrics

ALICE, BOB = UserId("alice"), UserId("bob")


class Told:
    """A sink that counts what it is told."""

    address = "test"
    is_paused = False

    def __init__(self) -> None:
        self.typing: list[tuple[str, str]] = []

    def send(self, frame: bytes) -> None:
        facts = json.loads(frame[frame.index(b"{") :])
        assert facts["t"] == "typing"
        self.typing.append((facts["from"], facts["to"]))

    def close(self, code: int, reason: str) -> None: ...
    async def drained(self) -> None: ...


class Place:
    """Alice types on her phone; bob has two devices, and other nodes listen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.registry, self.metrics, self.alarm = Registry(), Metrics(), Alarm(lambda: self.now)
        self.elsewhere: list[int] = []
        for id in (ALICE, BOB):
            self.registry.add_user(User(id, SlidingWindow(10, 5.0), Penalty(8), SlidingWindow(100, 3_600.0)), 0.0)
        self.conv = self.registry.hold(ConvId(1), ALICE, BOB)
        self.conv.head = self.conv.na = self.conv.nb = 1
        self.phone = self.session(ALICE, "phone")
        self.bobs = [self.session(BOB, device) for device in ("one", "two")]
        services = SimpleNamespace(
            clock=SimpleNamespace(now=lambda: self.now),
            registry=self.registry,
            metrics=self.metrics,
            others=SimpleNamespace(typing=lambda _conv, side, _payload: self.elsewhere.append(side)),
        )
        self.push = TypingPush(cast("Any", services), self.alarm)

    def session(self, user: UserId, device: str) -> Session:
        session = Session(Told(), FrameRate(1.0, 1), 0.0)
        session.state, session.user = State.LIVE, self.registry.users[user]
        self.registry.attach(session.user, DeviceId(device), session)
        return session

    def told(self, session: Session) -> list[tuple[str, str]]:
        assert isinstance(session.sink, Told)
        return session.sink.typing


@pytest.fixture
def place() -> Place:
    return Place()


def test_all_devices_of_the_peer_are_told_and_other_nodes(place: Place) -> None:
    place.push.typed(place.conv, 0, place.phone)
    assert [place.told(one) for one in place.bobs] == [[("alice", "bob")]] * 2
    assert place.told(place.phone) == []
    assert place.elsewhere == [0]


def test_a_session_in_its_hello_is_not_told(place: Place) -> None:
    place.bobs[0].state = State.OPENING
    place.push.typed(place.conv, 0, place.phone)
    assert [len(place.told(one)) for one in place.bobs] == [0, 1]


def test_however_often_they_type_it_is_told_once_a_second(place: Place) -> None:
    for _ in range(100):
        place.push.typed(place.conv, 0, place.phone)
    assert len(place.told(place.bobs[0])) == 1
    assert place.push.next_due() == TYPING_S
    place.now = TYPING_S
    place.push.tick()
    assert len(place.told(place.bobs[0])) == 2, "what was held back"
    assert place.metrics.typing_merged == 98


def test_who_has_sent_since_types_no_more(place: Place) -> None:
    for _ in range(2):
        place.push.typed(place.conv, 0, place.phone)
    place.conv.na += 1
    place.now = TYPING_S
    place.push.tick()
    assert len(place.told(place.bobs[0])) == 1


def test_what_another_node_says_is_told_here_and_to_nobody_else(place: Place) -> None:
    place.push.heard(place.conv, 1)
    assert place.told(place.phone) == [("bob", "alice")]
    assert place.elsewhere == []


def test_until_both_have_sent_another_nodes_word_is_not_told(place: Place) -> None:
    place.conv.nb = 0
    place.push.heard(place.conv, 0)
    assert place.told(place.bobs[0]) == []
