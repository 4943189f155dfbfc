"""What a client keeps between connections: the newest of each event, who waits for which send, and
all of it in a state.
"""

from __future__ import annotations

import json

import pytest

from chatd.client import desk as desk_module
from chatd.client.desk import Desk, Events
from chatd.client.errors import Closed, RequestError
from chatd.client.frames import (
    ConversationItem,
    Entry,
    Event,
    Limits,
    Notice,
    Presence,
    Receipt,
    Reset,
    Sent,
    Typing,
    Unsent,
    Welcome,
)
from chatd.client.outbox import Then
from chatd.client.values import PresenceState


def bob(state: PresenceState, v: int) -> Presence:
    return Presence("bob", state, v)


def drained(events: Events) -> list[Event]:
    out = []
    while (event := events.take()) is not None:
        out.append(event)
    return out


def welcome(*presence: Presence, items: tuple[ConversationItem, ...] = ()) -> Welcome:
    return Welcome("me", "e1", 0, None, Limits(), items, presence, "s")


def test_a_newer_event_replaces_the_older_one_about_the_same_thing() -> None:
    events = Events()
    other: list[Event] = [
        Typing("1", "bob"),
        Notice("drain", 5),
        Reset("1", "bob"),
        Unsent("bob", "x", "message", "hi", None, "refused", ""),
    ]
    for event in (
        Receipt("1", "bob", "bob", 1, 1),
        *other,
        Receipt("1", "bob", "me", 4, 4),
        bob("online", 1),
        Receipt("1", "bob", "bob", 2, 1),
    ):
        events.add(event)
    assert drained(events) == [
        *other,
        Receipt("1", "bob", "me", 4, 4),
        bob("online", 1),
        Receipt("1", "bob", "bob", 2, 1),
    ]


def test_events_nobody_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "EVENTS_MAX", 3)
    events = Events()
    for n in range(5):
        events.add(Typing(f"{n}", "bob"))
    assert drained(events) == [Typing(f"{n}", "bob") for n in (2, 3, 4)]


def test_a_push_of_presence_needs_a_higher_version_and_a_snapshot_does_not() -> None:
    desk = Desk(10, 10)
    desk.presence(bob("online", 17))
    desk.presence(bob("offline", 16))
    desk.presence(bob("away", 17))
    assert drained(desk.events) == [bob("online", 17)]
    desk.seen([bob("online", 17)])
    assert drained(desk.events) == [], "no news"
    desk.seen([bob("offline", 3)])
    assert drained(desk.events) == [bob("offline", 3)], (
        "another node counts otherwise; its snapshot is how things stand"
    )


def test_who_is_not_watched_any_more_is_forgotten() -> None:
    desk = Desk(10, 10)
    desk.watch(("bob",))
    desk.seen([bob("online", 17)])
    desk.watch(("carol",))
    desk.watch(("bob",))
    desk.seen([bob("online", 17)])
    assert drained(desk.events) == [bob("online", 17)]


async def test_every_one_who_waits_for_a_cid_gets_the_answer() -> None:
    desk = Desk(10, 10)
    _, first = desk.add("bob", "cid", "message", "hi", None, outcome_unknown=True)
    item, second = desk.add("bob", "cid", "message", "hi", None, outcome_unknown=True)
    assert not desk.emptied.is_set()
    assert desk.leave(item, first) is Then.AGAIN
    desk.settle_by(Entry("1", "bob", 7, 5, True, "message", "hi", cid="cid"))
    assert await second == Sent("1", 7, 5, True)
    assert desk.emptied.is_set()
    desk.stored("bob", "cid", Sent("1", 8, 5))  # the ok that comes late


async def test_a_failure_is_raised_where_somebody_waits_and_an_event_where_not() -> None:
    desk = Desk(10, 10)
    item, future = desk.add("bob", "cid", "message", "hi", None, outcome_unknown=False)
    desk.outbox.next(0.0)
    desk.outbox.refuse(item, "refused", None, None, 0.0)
    desk.failed(item, RequestError("refused"))
    with pytest.raises(RequestError):
        await future
    assert drained(desk.events) == []
    desk.failed(item, RequestError("refused", "no"))
    assert drained(desk.events) == [Unsent("bob", "cid", "message", "hi", None, "refused", "no")]


async def test_the_end_is_heard_by_all_and_empties_nothing() -> None:
    desk = Desk(10, 10)
    _, future = desk.add("bob", "cid", "message", "hi", None, outcome_unknown=False)
    desk.end(Closed())
    with pytest.raises(Closed):
        await future
    assert len(desk.save()["outbox"]) == 1
    assert all(event.is_set() for event in (desk.arrived, desk.events.news, desk.emptied))


def test_a_state_is_json_and_goes_on_from_there() -> None:
    desk = Desk(10, 10)
    desk.enter(welcome(items=(ConversationItem("1", "bob", 3, 1, 9, 0, 0, 0, 0, 0, True),)))
    desk.inbox.push(Entry("1", "bob", 4, 10, False, "message", "hi"))
    desk.inbox.take()
    desk.cursors.read("1", 4)
    desk.outbox.add("bob", "cid", "message", "hi", None)
    again = Desk(10, 10)
    again.restore(json.loads(json.dumps(desk.save())))
    assert again.save() == desk.save()
    assert not again.emptied.is_set()
    assert again.inbox.hello(1_000)["cursors"] == {"1": 4}
