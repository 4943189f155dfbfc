"""What a node tells of a user: numbers and names, the latest conversations, and no message."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from chatd.core.conversations import Registry
from chatd.core.frame_rate import FrameRate
from chatd.core.rate_limit import Penalty, SlidingWindow
from chatd.core.session import Session, State, User
from chatd.ids import ConvId, DeviceId, UserId
from chatd.ops.user_view import CONVERSATIONS_MAX, about_user

ALICE, BOB = UserId("alice"), UserId("bob")


def registry() -> Registry:
    registry = Registry()
    for id in (ALICE, BOB):
        registry.add_user(User(id, SlidingWindow(10, 5.0), Penalty(8), SlidingWindow(100, 3_600.0)), 0.0)
    return registry


def test_nobody_is_told_of_who_is_not_held() -> None:
    assert about_user(Registry(), ALICE, now=0.0, now_ms=0) == {"held": False, "sessions": [], "conversations": []}


def test_sessions_and_conversations_are_as_in_this_turn() -> None:
    held = registry()
    sink = SimpleNamespace(facts=lambda: {"id": "ab-1", "address": "192.0.2.1"}, since=90.0)
    session = Session(cast("Any", sink), FrameRate(1.0, 1), 0.0)
    session.state, session.user, session.active_at = State.LIVE, held.users[ALICE], 95.0
    held.attach(held.users[ALICE], DeviceId("phone"), session)
    conv = held.hold(ConvId(7), ALICE, BOB)
    held.link(held.users[ALICE], conv)
    conv.head, conv.pending, conv.ts = 5, 2, 3
    conv.advance(0, 4, 1)
    told = about_user(held, ALICE, now=100.0, now_ms=1_000_000)
    (one,) = cast("list[dict[str, Any]]", told["sessions"])
    assert (one["device"], one["state"], one["id"]) == ("phone", "live", "ab-1")
    assert (one["since_ms"], one["active_ms"]) == (990_000, 995_000)
    (item,) = cast("list[dict[str, Any]]", told["conversations"])
    assert item == {
        "c": "7", "peer": "bob", "head": 5, "delivered": 4, "read": 1, "pending": 2, "has_gap": False,
    }  # fmt: skip
    json.dumps(told)


def test_a_user_of_many_conversations_is_told_of_by_the_latest() -> None:
    held = registry()
    for n in range(CONVERSATIONS_MAX + 5):
        held.link(held.users[ALICE], conv := held.hold(ConvId(n + 1), ALICE, UserId(f"p{n:03}")))
        conv.ts = n
    items = cast("list[dict[str, Any]]", about_user(held, ALICE, now=0.0, now_ms=0)["conversations"])
    assert [int(item["c"]) for item in items] == list(range(CONVERSATIONS_MAX + 5, 5, -1))
