"""The pipeline of sends by itself: what comes into the lane, and who is answered what.

Its neighbours are stand-ins here. The rules of order and rate are in test_send_order.py; how all of it
works together under delays, losses and crowds is in test_session_order.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatd import errors
from chatd.chat.ports import Admission, FirstSend, FirstSends, OwnCount, Rates, Windows
from chatd.chat.send import SendPipeline
from chatd.core.batch import PROBE, Batch, Item
from chatd.core.conversation import Conversation
from chatd.core.conversations import Registry
from chatd.core.effects import Throttled
from chatd.core.frame_rate import FrameRate
from chatd.core.rate_limit import SlidingWindow
from chatd.core.session import Session, State, User
from chatd.errors import CloseCode
from chatd.ids import Cid, ConvId, DeviceId, Seq, UserId
from chatd.metrics import Metrics
from chatd.postgres.append_answer import Answer, First, Result, What
from chatd.protocol import Delete, Edit, Send

ALICE, BOB, CAROL, DAVE = (UserId(name) for name in ("alice", "bob", "carol", "dave"))
A, B, C = (Cid(c) for c in "abc")
RATES = Rates(10, 5.0, 8, 100)
AWAY = errors.Unavailable("away", retry_ms=1_000)


class Wire:
    """Implements `sink.Sink`."""

    address = "test"
    is_paused = False

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.closed: list[int] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(orjson.loads(frame[2 if frame[1] < 126 else 4 :]))

    def close(self, code: int, reason: str) -> None:
        self.closed.append(code)

    async def drained(self) -> None: ...


class Neighbours:
    """Implements `EntryLanes`, `EntryLane`, `CommittedEntries`, `UnknownOutcomes`,
    `ConversationMaker` and `SendLog`.
    """

    def __init__(self) -> None:
        self.room = True
        self.queued: list[Item] = []
        self.delivered: list[tuple[ConvId, int, int, list[Cid]]] = []
        self.repeated: list[tuple[Cid, int]] = []
        self.unknown: list[set[ConvId]] = []
        self.firsts: list[FirstSend] = []
        self.refusal: errors.Retryable | None = None
        self.bugs: list[Exception] = []

    def choose(self, item: Item) -> Neighbours:
        return self

    def submit(self, item: Item) -> bool:
        if self.room:
            self.queued.append(item)
        return self.room

    def deliver(self, conv: Conversation, first: int, ts: int, items: list[Item], now: float) -> None:
        self.delivered.append((conv.id, first, ts, [item.cid for item in items]))

    def repeat(self, item: Item, seq: int, ts: int) -> None:
        item.answered(give_back=True)
        self.repeated.append((item.cid, seq))

    def outcome_unknown(self, convs: set[ConvId], writers: object) -> None:
        self.unknown.append(convs)

    @property
    def waiting(self) -> int:
        return len(self.firsts)

    def waits(self, user: UserId, to: UserId) -> bool:
        return any(to == first.request.to for first in self.firsts)

    def put(self, first: FirstSend, sends: FirstSends, now: float) -> errors.Retryable | None:
        if self.refusal is None:
            self.firsts.append(first)
        return self.refusal

    def limit_hit(self, item: Item, now: float) -> None: ...
    def refused(self, item: Item, error: errors.Refused) -> None: ...
    def bug(self, user: UserId, error: Exception) -> None:
        self.bugs.append(error)


class Later:
    """Admission that lets nothing through before `go`. Implements `ports.Admission`."""

    decides_at_once = False

    def __init__(self) -> None:
        self.room = True
        self._waiting: list[Callable[[float], None]] = []

    def windows(self, user: UserId) -> Windows:
        return OwnCount(RATES, lambda: 0.0).windows(user)

    def put(self, window: SlidingWindow, then: Callable[[float], None]) -> bool:
        if self.room:
            self._waiting.append(then)
        return self.room

    def go(self, now: float) -> None:
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(now)

    async def take(self, window: SlidingWindow) -> tuple[float, float]:
        raise NotImplementedError

    async def idle(self) -> None: ...


class Place:
    """A pipeline, and alice with conversations with bob and carol."""

    def __init__(self, later: Later | None = None) -> None:
        self.now = 0.0
        admission: Admission = OwnCount(RATES, lambda: self.now) if later is None else later
        self.registry, self.metrics, self.near = Registry(), Metrics(), Neighbours()
        self.user = User(ALICE, *admission.windows(ALICE))
        self.registry.add_user(self.user, 0.0)
        self.convs = [self.registry.hold(ConvId(n), ALICE, peer) for n, peer in enumerate((BOB, CAROL), 1)]
        for conv in self.convs:
            conv.head = 5
        near = self.near
        self.pipeline = SendPipeline(self.registry, near, admission, near, near, near, self.metrics, near)
        self.wire = Wire()
        self.session = self.join(self.wire)

    def join(self, wire: Wire) -> Session:
        session = Session(wire, FrameRate(1e6, 1_000_000), 0.0)
        session.state, session.user, session.device = State.LIVE, self.user, DeviceId("d")
        return session

    def post(self, to: UserId, cid: Cid, now: float = 1.0, **more: Any) -> errors.Refused | None:
        """A send that has just been read; gives its refusal."""
        self.session.last_id += 1
        return self.enter(Send(self.session.last_id, None, to, cid, "hi", more.get("retry", False)), now)

    def enter(self, request: Send | Edit | Delete, now: float = 1.0) -> errors.Refused | None:
        try:
            self.pipeline.enter(self.session, request, now)
        except errors.Refused as e:
            return e
        return None

    def answer(self, what: What, now: float = 1.0, seq: int = 0) -> None:
        """What became of the oldest item that is queued: it made nothing."""
        item = self.near.queued.pop(0)
        self.pipeline.committed(Batch([item], []), Answer({}, {0: Result(what, seq, 7)}, []), now)

    def fill(self, now: float = 1.0) -> None:
        for n in range(10):
            assert self.post(CAROL, Cid(f"fill{n}"), now) is None
        self.near.queued.clear()

    @property
    def codes(self) -> list[str]:
        return [frame["code"] for frame in self.wire.frames]


# ---- in ------------------------------------------------------------------------------------------


def test_an_entry_is_in_its_lane_when_enter_returns_with_its_slot_taken() -> None:
    place = Place()
    assert place.post(BOB, A, 3.0, retry=True) is None
    (item,) = place.near.queued
    assert (item.conv.id, item.peer, item.side, item.cid, item.taken_at) == (1, BOB, 0, A, 3.0)
    assert not item.flags & PROBE
    assert place.metrics.sends == 1


def test_a_change_goes_to_its_conversation_by_id_or_by_peer() -> None:
    place = Place()
    assert place.enter(Edit(1, ConvId(2), None, A, Seq(3), "new", False)) is None
    assert place.enter(Delete(2, None, BOB, B, Seq(3), False)) is None
    assert [item.conv.id for item in place.near.queued] == [2, 1]
    assert place.enter(Edit(3, None, DAVE, C, Seq(3), "new", False)) is not None, "no conversation, and none is made"
    assert not place.near.firsts


def test_over_the_rate_an_entry_is_a_probe_and_its_answer_says_how_long_to_wait() -> None:
    place = Place()
    place.fill(1.0)
    assert place.post(BOB, A, 2.0) is None
    assert place.near.queued[0].flags & PROBE
    place.answer(What.LIMITED, 2.5)
    assert place.wire.frames == [
        {"t": "err", "id": 11, "code": "rate_limited", "msg": "over 10 messages in 5 s: wait", "retry_ms": 3_500}
    ]
    assert not place.session.order.probing
    blocked = place.post(BOB, B, 2.6)
    assert isinstance(blocked, errors.Blocked)
    assert blocked.cid == A


@given(st.floats(0.001, 1e6), st.floats(0, 4.9))
def test_who_waits_the_milliseconds_told_gets_through(start: float, gap: float) -> None:
    place = Place()
    place.fill(start)
    at = start + gap
    place.post(BOB, A, at)
    place.answer(What.LIMITED, at)
    place.post(BOB, A, at + place.wire.frames[0]["retry_ms"] / 1000)
    (item,) = place.near.queued
    assert not item.flags & PROBE
    assert not item.resent_early


def test_who_never_waits_is_closed() -> None:
    place = Place()
    place.fill(1.0)
    for n in range(12):
        place.post(BOB, A, 2.0 + n / 100)
        place.answer(What.LIMITED, 2.0 + n / 100)
    assert place.wire.closed[0] == CloseCode.RATE_LIMITED
    assert place.codes == ["rate_limited"] * 9
    assert place.metrics.limit_hits == 12


@pytest.mark.parametrize("is_probe", [False, True])
def test_a_full_lane_refuses_and_takes_nothing(is_probe: bool) -> None:
    place = Place()
    if is_probe:
        place.fill(1.0)
    before = list(place.user.window._takes or ())
    place.near.room = False
    refused = place.post(BOB, A, 1.0)
    assert isinstance(refused, errors.Overloaded)
    assert list(place.user.window._takes or ()) == before
    assert not place.session.order.probing
    assert isinstance(place.post(BOB, B, 1.0), errors.Blocked)


def test_a_frame_too_many_blocks_its_conversation_if_it_makes_an_entry() -> None:
    place = Place()
    with pytest.raises(errors.RateLimited) as refused:
        place.pipeline.throttled(place.session, Throttled(Send(1, None, BOB, A, "hi", False), 2_000))
    assert refused.value.retry_ms == 2_000
    place.session.last_id = 1
    assert isinstance(place.post(BOB, B), errors.Blocked)
    assert place.post(CAROL, B) is None
    assert place.metrics.frames_throttled == 1


# ---- the waits -----------------------------------------------------------------------------------


def test_a_first_message_waits_and_what_follows_it_does_not_overtake() -> None:
    place = Place()
    assert place.post(DAVE, A) is None
    first = place.near.firsts[0]
    conv = place.registry.hold(ConvId(3), ALICE, DAVE)
    assert place.post(DAVE, B) is None, "it is in memory now, and A still waits"
    assert not place.near.queued
    firsts, place.near.firsts = place.near.firsts, []
    assert firsts[0] is first
    for one in firsts:
        place.pipeline.made(one, conv)
    assert place.post(DAVE, C) is None
    assert [item.cid for item in place.near.queued] == [A, B, C]


def test_a_first_message_that_may_not_wait_blocks_what_follows() -> None:
    place = Place()
    place.near.refusal = errors.TooManyConversations("too many", retry_ms=5_000)
    assert isinstance(place.post(DAVE, A), errors.TooManyConversations)
    place.near.refusal = None
    assert isinstance(place.post(DAVE, B), errors.Blocked)


def test_a_conversation_that_is_not_made_blocks_what_follows_unless_it_never_will_be() -> None:
    place = Place()
    place.post(DAVE, A)
    place.post(UserId("erin"), A)
    dave, erin = place.near.firsts
    place.near.firsts.clear()
    place.pipeline.not_made(dave, AWAY)
    place.pipeline.not_made(erin, errors.NoUser("no such user"))
    assert place.codes == ["unavailable", "no_user"]
    assert isinstance(place.post(DAVE, B), errors.Blocked)
    assert place.post(UserId("erin"), B) is None


def test_entries_that_wait_for_all_nodes_limits_go_on_in_order_or_hear_why_not() -> None:
    later = Later()
    place = Place(later)
    for cid in (A, B):
        assert place.post(BOB, cid) is None
    assert not place.near.queued
    later.go(2.0)
    assert [(item.cid, item.taken_at) for item in place.near.queued] == [(A, 2.0), (B, 2.0)]
    later.room = False
    assert isinstance(place.post(CAROL, A), errors.Overloaded)
    assert isinstance(place.post(CAROL, B), errors.Blocked)


def test_what_fails_while_an_entry_waits_stops_it_and_a_drain_names_the_one_that_failed() -> None:
    """An entry behind a failed one must not be the one that is waited for, also in a drain."""
    later = Later()
    place = Place(later)
    place.post(BOB, A)
    later.go(1.0)
    place.post(BOB, B)
    place.pipeline.failed(place.near.queued, AWAY)
    assert place.post(BOB, A) is None, "it is back"
    place.pipeline.drain()
    later.go(2.0)
    assert [(frame["code"], frame.get("cid")) for frame in place.wire.frames] == [
        ("unavailable", None), ("blocked", A), ("unavailable", None)
    ]  # fmt: skip


def test_a_drain_refuses_what_comes_and_what_waits() -> None:
    later = Later()
    place = Place(later)
    place.post(BOB, A)
    place.pipeline.drain()
    assert isinstance(place.post(CAROL, A), errors.Unavailable)
    assert isinstance(place.post(DAVE, A), errors.Unavailable)
    later.go(1.0)
    assert place.codes == ["unavailable"]
    assert not place.near.queued
    assert place.user.window._takes is None


def test_what_waited_is_not_written_to_another_log() -> None:
    later = Later()
    place = Place(later)
    place.post(BOB, A)
    place.registry.forget_conversations()
    later.go(1.0)
    assert place.codes == ["unavailable"]
    assert not place.near.queued


def test_a_bug_ends_the_connection_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    later = Later()
    place = Place(later)
    place.post(BOB, A)
    monkeypatch.setattr(place.near, "submit", lambda _item: 1 / 0)
    later.go(1.0)
    assert place.wire.closed == [CloseCode.INTERNAL]
    assert [type(bug) for bug in place.near.bugs] == [ZeroDivisionError]


# ---- out -----------------------------------------------------------------------------------------


def queued(place: Place, *cids: Cid, to: UserId = BOB) -> list[Item]:
    for cid in cids:
        assert place.post(to, cid) is None
    items, place.near.queued = place.near.queued, []
    return items


def test_entries_between_duplicates_are_delivered_in_the_order_in_which_they_arrived() -> None:
    place = Place()
    items = queued(place, A, B, C)
    answer = Answer({ConvId(1): First(6, 70)}, {1: Result(What.DUPLICATE, 3, 30)}, [])
    place.pipeline.committed(Batch(items, []), answer, 2.0)
    assert place.near.delivered == [(1, 6, 70, [A]), (1, 7, 70, [C])]
    assert place.near.repeated == [(B, 3)]


def test_a_change_that_named_its_message_by_cid_gets_its_seq() -> None:
    place = Place()
    place.enter(Edit(1, None, BOB, A, None, "new", False, B))
    (item,) = place.near.queued
    place.pipeline.committed(Batch([], [item]), Answer({}, {}, [Result(What.WRITTEN, 6, 70, 4)]), 2.0)
    assert item.ref == 4
    assert place.near.delivered == [(1, 6, 70, [A])]


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (What.NO_MESSAGE, "no_message"),
        (What.NOT_AUTHOR, "not_author"),
        (What.DELETED, "deleted"),
        (What.TOO_LATE, "too_late"),
    ],
)
def test_a_refused_change_keeps_its_slot_and_blocks_nothing(what: What, code: str) -> None:
    place = Place()
    place.enter(Edit(1, None, BOB, A, Seq(3), "new", False))
    place.session.last_id = 1
    (item,) = place.near.queued
    place.pipeline.committed(Batch([], [item]), Answer({}, {}, [Result(what)]), 2.0)
    assert place.codes == [code]
    assert list(place.user.window._takes or ()) == [1.0]
    assert place.post(BOB, B) is None


@pytest.mark.parametrize("is_unknown", [False, True])
def test_what_may_have_been_written_keeps_its_slot_and_its_twins_do_not(is_unknown: bool) -> None:
    place = Place()
    item, twin = queued(place, A, A)
    item.twins = [twin]
    place.pipeline.failed([item], AWAY, is_unknown=is_unknown)
    assert place.codes == ["unavailable"] * 2
    assert len(place.user.window._takes or ()) == is_unknown
    assert place.metrics.sends_err == 2


def test_what_the_database_refuses_for_good_blocks_nothing() -> None:
    place = Place()
    (item,) = queued(place, A)
    place.pipeline.refused(item)
    assert place.codes == ["refused"]
    assert place.post(BOB, B) is None


def test_what_stood_behind_a_failed_entry_hears_which_one() -> None:
    place = Place()
    first, second = queued(place, A, B)
    place.pipeline.failed([first], AWAY)
    place.pipeline.blocked([second])
    assert [(frame["code"], frame.get("cid")) for frame in place.wire.frames] == [("unavailable", None), ("blocked", A)]
    assert place.user.window._takes is None


def test_batches_of_unknown_outcome_are_looked_up() -> None:
    place = Place()
    place.pipeline.outcome_unknown({ConvId(1)}, set())
    assert place.near.unknown == [{ConvId(1)}]
